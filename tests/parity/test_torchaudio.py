"""State dicts that go to torchaudio and come from there, one of its bundles among them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechssl.errors import CheckpointError
from speechssl.interop.load import load_model
from speechssl.interop.names import MASK
from speechssl.interop.torchaudio import make_arguments, read_torchaudio, write_torchaudio
from speechssl.model.speech_model import SpeechModel
from speechssl.model.wav2vec2 import normalize_waveforms
from tests.parity.test_huggingface_folders import NORMS, draw_waveforms, make_model

torchaudio = pytest.importorskip("torchaudio", reason="torchaudio is the other side of this test")

KINDS = ("backbone", "pretraining", "ctc")


def build_there(arguments: dict[str, object]) -> torch.nn.Module:
    return torchaudio.models.wav2vec2_model(**arguments).eval()


def compare(ours: SpeechModel, theirs: torch.nn.Module) -> None:
    """Compare every layer, and the output: the final norm's, or the head's."""
    waveforms = draw_waveforms(2)
    inputs = waveforms
    if ours.config.normalize_waveform:
        inputs = normalize_waveforms(waveforms, None, ours.config.waveform_epsilon)
    with torch.inference_mode():
        layers, _ = theirs.extract_features(inputs)
        out, _ = theirs(inputs)
        frames = ours(waveforms)
        last = ours.head(frames.last) if ours.head is not None else frames.last
    for layer, reference in zip(frames.layers[1:], layers, strict=True):
        torch.testing.assert_close(layer, reference, atol=1e-5, rtol=0)
    torch.testing.assert_close(last, out, atol=1e-5, rtol=0)


def test_an_exported_file_loads_strictly_and_comes_back_bitwise(tmp_path: Path) -> None:
    for kind, norms, suffix in product(KINDS, NORMS, (".pt", ".safetensors")):
        ours = make_model(kind, norms, feature_gradient_scale=0.3)
        path = tmp_path / f"{kind}-{norms}-{suffix[1:]}{suffix}"
        write_torchaudio(ours, path, update=4)
        theirs = build_there(json.loads(path.with_suffix(".json").read_text())["torchaudio"])
        if suffix == ".pt":
            theirs.load_state_dict(torch.load(path))
        else:
            theirs.load_state_dict(load_file(path))
        compare(ours, theirs)
        back = load_model(str(path))
        assert back.config == ours.config
        assert back.vocabulary == ours.vocabulary
        assert read_torchaudio(path).card.update == 4
        weights = {name: value for name, value in ours.state_dict().items() if not name.startswith("pretraining.")}
        assert back.state_dict().keys() == weights.keys()
        assert all(torch.equal(back.state_dict()[name], value) for name, value in weights.items() if name != MASK)


def test_a_state_dict_of_theirs_loads_with_a_few_facts(tmp_path: Path) -> None:
    for norms in NORMS:
        config = make_model("backbone", norms, group_norm_frames="valid").config
        torch.manual_seed(1)
        theirs = build_there(make_arguments(config, 29))
        torch.save({f"model.{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "theirs.pt")
        facts = {
            "torchaudio": {"encoder_num_heads": 4, "encoder_layer_norm_first": config.norm_first},
            "normalize_waveform": config.normalize_waveform,
            "labels": ["-", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"],
        }
        (tmp_path / "theirs.json").write_text(json.dumps(facts))
        ours = load_model(str(tmp_path / "theirs.pt"))
        compare(ours, theirs)
        assert ours.vocabulary is not None
        assert ours.vocabulary.case == "upper"
        assert ours.config.conv_norm == config.conv_norm


def test_what_a_state_dict_does_not_say_is_asked_for(tmp_path: Path) -> None:
    write_torchaudio(make_model("ctc"), tmp_path / "a.pt")
    facts = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").unlink()
    with pytest.raises(CheckpointError, match=r"`checkpoint` must have a\.json beside .*encoder_num_heads"):
        load_model(str(tmp_path / "a.pt"))
    del facts["speechssl"], facts["torchaudio"]["encoder_num_heads"], facts["normalize_waveform"]
    (tmp_path / "a.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="must say encoder_num_heads and normalize_waveform"):
        load_model(str(tmp_path / "a.pt"))


def test_a_bundle_loads_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's network is made small, and its file lies where torch would have put it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    for name in ("WAV2VEC2_ASR_BASE_960H", "WAV2VEC2_LARGE_LV60K"):
        bundle = getattr(torchaudio.pipelines, name)
        is_layer = bundle._params["extractor_mode"] == "layer_norm"
        config = make_model("backbone", "layer" if is_layer else "group").config
        for key, value in make_arguments(config, bundle._params["aux_num_out"]).items():
            monkeypatch.setitem(bundle._params, key, value)
        torch.manual_seed(3)
        stored = build_there(bundle._params)
        weights = stored.state_dict()
        if "aux.weight" in weights:
            # The file on the server still has the rows of <pad>, </s> and <unk>, which torchaudio takes out.
            for part in ("aux.weight", "aux.bias"):
                rows = weights[part]
                weights[part] = torch.cat([rows[:1], torch.zeros_like(rows[:3]), rows[1:]])
        torch.save(weights, tmp_path / "hub" / "checkpoints" / Path(bundle._path).name)
        ours = load_model(f"torchaudio:{name}")
        assert ours.config.normalize_waveform == is_layer
        compare(ours, stored)
        if not is_layer:
            assert ours.vocabulary is not None
            assert ours.vocabulary.symbols[:3] == ("-", "|", "E")


def test_nothing_that_lies_in_the_cache_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Call:
        def __reduce__(self) -> object:
            return open, (str(tmp_path / "executed"), "w")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    for name in ("WAV2VEC2_BASE", "HUBERT_BASE", "WAVLM_BASE_PLUS"):
        bundle = getattr(torchaudio.pipelines, name)
        monkeypatch.setitem(bundle._params, "encoder_num_layers", 1)
        torch.save({"mask": Call()}, tmp_path / "hub" / "checkpoints" / Path(bundle._path).name)
        with pytest.raises(CheckpointError, match=f"`checkpoint` must be a bundle that can be fetched, but .*{name}"):
            load_model(f"torchaudio:{name}")
        assert not (tmp_path / "executed").exists()


def test_a_wrong_bundle_is_one_sentence() -> None:
    with pytest.raises(CheckpointError, match="one of .*WAV2VEC2_BASE.*but is torchaudio:WAVE2VEC"):
        load_model("torchaudio:WAVE2VEC")


def test_a_bundle_that_does_not_load_is_refused_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("fetched")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils.load_state_dict_from_url", refuse)
    for name, sentence in (("MMS_FA", "torchaudio:MMS_FA"), ("HUBERT_BASE", "must be Wav2Vec2 or WavLM, but")):
        if name == "HUBERT_BASE":
            monkeypatch.setattr(torchaudio.pipelines.HUBERT_BASE, "_model_type", "Other")
        with pytest.raises(CheckpointError, match=sentence):
            load_model(f"torchaudio:{name}")


def test_a_bundle_that_cannot_be_fetched_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(torchaudio.pipelines.WAV2VEC2_BASE._params, "encoder_num_layers", 1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(CheckpointError, match="torchaudio:WAV2VEC2_BASE cannot be read .no route to host"):
        load_model("torchaudio:WAV2VEC2_BASE")
