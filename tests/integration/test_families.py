"""Every verb on a reduced model of every family, from a folder of another toolkit: one row a family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import speechssl
from speechssl.config.model import ModelConfig
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from tests.integration.test_training import finetune, manifests  # noqa: F401  (a fixture)

LAYER = {"conv_norm": "layer", "conv_bias": True, "normalize_waveform": True, "waveform_epsilon": 1e-7}

CONFORMER = {"block": "conformer", "norm_first": True, "macaron": True, "block_bias": False, "block_kernel": 7}
BERT = {
    "family": "wav2vec2-bert", "front_end": "kaldi_fbank", "block_causal": True, "final_norm": False,
    "positions": "relative_key",
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("huggingface", {"family": "hubert"}),
    "mhubert": ("huggingface", {"family": "hubert", "position_norm": "batch", "feature_norm": False}),
    "unispeech": ("huggingface", {"family": "unispeech"}),
    "unispeech-sat": ("huggingface", LAYER | {"family": "unispeech-sat", "norm_first": True}),
    "data2vec-audio": (
        "huggingface",
        {**LAYER, "family": "data2vec-audio", "position_norm": "layer", "position_depth": 2, "position_kernel": 5},
    ),
    "wavlm": ("huggingface", {"family": "wavlm", "position_buckets": 8, "position_max_distance": 20}),
    "wav2vec2-conformer": (
        "huggingface",
        {**CONFORMER, "family": "wav2vec2-conformer", "block_norm": "batch", "positions": "relative"},
    ),
    "wav2vec2-bert": ("huggingface", CONFORMER | BERT),
    "wav2vec2-bert, length adapter": ("huggingface", CONFORMER | BERT | {"length_adapter_layers": 1}),
}
"""The format that a family is published in, and the keys of `model` by which it differs from the tiny wav2vec 2.0."""


QUICK = "wavlm"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != QUICK]


@pytest.mark.parametrize("name", [QUICK, *SLOW])
def test_every_verb(
    name: str,
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    tiny_model_config: ModelConfig,
) -> None:
    format, changes = FAMILIES[name]
    torch.manual_seed(2)
    there, run, dev = tmp_path / "there", tmp_path / "run", str(manifests / "dev.tsv")
    speechssl.save(SpeechModel(replace(tiny_model_config, **changes)), there, format=format)
    device = {"device": "cpu"}

    embedded = speechssl.embed(checkpoint=str(there), audio=[dev], out=str(tmp_path / "e.parquet"), **device)
    assert (embedded["dim"], embedded["num_utterances"]) == (32, 4)
    unit = speechssl.units(checkpoint=str(there), audio=[dev], num_codes=5, out=str(tmp_path / "u.tsv"), **device)
    assert unit["num_utterances"] == 4 and unit["num_frames"] > 200
    probe = {"data.train": [dev], "out": str(tmp_path / "probe"), "updates": 2, "num_resamples": 10, **device}
    assert [row["layer"] for row in speechssl.probe(checkpoint=str(there), **probe)["layers"]] == [0, 1, 2]
    tuning = {"init": str(there), "data.train": [dev], "training.max_updates": 1, "training.ema_decay": 0.0}
    assert finetune(manifests, run, **tuning, **{"training.validate_every": 1})["updates"] == 1
    test = {"data.test": [dev], "num_resamples": 10, "out": str(tmp_path / "eval"), **device}
    assert speechssl.evaluate(checkpoint=str(run), **test)["num_utterances"] == 4
    texts = speechssl.transcribe(checkpoint=str(run), audio=[dev], out=str(tmp_path / "texts"), **device)
    assert texts["num_utterances"] == 4
    done = speechssl.convert(checkpoint=str(run), to=format, out=str(tmp_path / "back"))
    assert (done["kind"], done["left_behind"]) == ("ctc", [])
    before, after = load_model(str(run)), load_model(str(tmp_path / "back"))
    assert after.config.family == changes["family"]
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in after.state_dict().items())
    assert Path(speechssl.report(run=str(run), out=str(tmp_path / "page.html"))["out"]).exists()
