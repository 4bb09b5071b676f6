"""Files of fairseq's HuBERT and data2vec, and of WavLM's authors: the names that their source gives, and the numbers.

No real file was at hand. Names and fields are those of fairseq's `hubert.py`, `hubert_asr.py`, `data2vec_audio.py` and
`wav2vec2.py` and of `WavLM.py` and `modules.py` in microsoft/unilm; the weights are those of `transformers`' classes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is the other side of this test")

from speechssl.interop.fairseq.checkpoint import read_fairseq
from speechssl.interop.foreign import find_kind
from speechssl.interop.load import load_model
from tests.cases import each_case
from tests.parity.families import LETTERS, build_there
from tests.parity.ladder import draw_inputs

NAMES = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"^masked_spec_embed$", "mask_emb"),
    (r"^encoder\.pos_conv_embed\.batch_norm\.", "encoder.pos_conv.0."),
    (r"^encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.", r"encoder.pos_conv.\1.0."),
    (r"^encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0$", "encoder.pos_conv.0.weight_g"),
    (r"^encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1$", "encoder.pos_conv.0.weight_v"),
    (r"^(encoder\.layers\.\d+)\.attention\.gru_rel_pos_linear\.", r"\1.self_attn.grep_linear."),
    (r"^(encoder\.layers\.\d+)\.attention\.gru_rel_pos_const$", r"\1.self_attn.grep_a"),
    (r"^(encoder\.layers\.\d+)\.attention\.rel_attn_embed\.", r"\1.self_attn.relative_attention_bias."),
    (r"^(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"^(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"^(encoder\.layers\.\d+)\.feed_forward\.intermediate_dense\.", r"\1.fc1."),
    (r"^(encoder\.layers\.\d+)\.feed_forward\.output_dense\.", r"\1.fc2."),
)

NETWORK = {
    "encoder_layers": 3,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "feature_grad_mult": 0.1,
}
LAYER = {"extractor_mode": "layer_norm", "layer_norm_first": True}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "hubert": ("hubert", {}, {"_name": "hubert", "logit_temp": 0.1}, "hubert"),
    "hubert, large": ("hubert, large", {}, {"_name": "hubert", **LAYER}, "hubert"),
    "mhubert": ("mhubert", {"feat_proj_layer_norm": True}, {"_name": "hubert", "conv_pos_batch_norm": True}, "hubert"),
    "data2vec": (
        "data2vec-audio",
        {"conv_pos_kernel_size": 3},
        {"_name": "data2vec_audio", "extractor_mode": "layer_norm", "pos_conv_depth": 5, "average_top_k_layers": 2},
        "data2vec-audio",
    ),
    "wavlm": (
        "wavlm",
        {},
        {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 16, "max_distance": 40},
        "wavlm",
    ),
}
"""A row of `ROWS`, changes of their configuration, fairseq's fields of the model, and the family that is read."""


def to_fairseq(model: nn.Module, layer_norm: bool) -> dict[str, Tensor]:
    """Give the weights of a model of `transformers` the names of fairseq's source."""
    norms = r"feature_extractor.conv_layers.\1." + ("2.1." if layer_norm else "2.")
    names = (*NAMES, (r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", norms))
    is_batch = any("batch_norm" in name for name in model.state_dict())
    names += ((r"^encoder\.pos_conv_embed\.conv\.", f"encoder.pos_conv.{int(is_batch)}."),)
    found = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in names:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        found[name] = value
    return found


def make_file(case: str, path: Path, finetuned: bool) -> nn.Module:
    """Write a file as fairseq or WavLM's authors would, with the heads of pretraining or a fine-tuned one."""
    row, changes, fields, _ = CASES[case]
    theirs = build_there(row, **changes)
    weights = to_fairseq(theirs.base_model, fields.get("extractor_mode") == "layer_norm")
    model = NETWORK | fields
    if case == "wavlm":
        torch.save({"cfg": {**model, "normalize": False}, "model": weights}, path)
        return theirs
    cfg: dict[str, Any] = {"model": model, "task": {"_name": "hubert_pretraining", "normalize": False}}
    if finetuned:
        weights = {f"w2v_encoder.w2v_model.{name}": value for name, value in weights.items()}
        weights |= {f"w2v_encoder.proj.{part}": value for part, value in theirs.lm_head.state_dict().items()}
        weights["w2v_encoder.w2v_model.label_embs_concat"] = torch.zeros(4, 8)
        outer = {"_name": "hubert_ctc", "w2v_path": "", "w2v_args": cfg, "apply_mask": True, "layerdrop": 0.1}
        cfg = {"model": outer, "task": {"_name": "audio_finetuning", "normalize": False}}
        (path.parent / "dict.ltr.txt").write_text("".join(f"{letter} 1\n" for letter in LETTERS[4:]))
    else:
        weights |= {"final_proj.weight": torch.zeros(8, 32), "final_proj.bias": torch.zeros(8)}
        weights |= {"label_embs_concat": torch.zeros(4, 8)} if "hubert" in case else {"_ema": {"a": torch.zeros(1)}}
    history = [{"num_updates": 400_000}]
    torch.save({"args": None, "cfg": cfg, "model": weights, "optimizer_history": history, "task_state": {}}, path)
    return theirs


@each_case(
    "case, finetuned", [(case, tuned) for case in CASES for tuned in (False, True) if not tuned or case != "wavlm"]
)
def test_a_file_loads_with_the_same_numbers(case: str, finetuned: bool, tmp_path: Path) -> None:
    theirs = make_file(case, tmp_path / "a.pt", finetuned)
    ours = load_model(str(tmp_path / "a.pt"))
    assert ours.config.family == CASES[case][3]
    assert find_kind(ours) == ("ctc" if finetuned else "backbone")
    waveforms = draw_inputs(ours.config, [24_000]).waveforms
    with torch.no_grad():
        frames, base = ours(waveforms), theirs.base_model(waveforms)
        torch.testing.assert_close(frames.last, base.last_hidden_state, atol=1e-5, rtol=0)
        if finetuned:
            torch.testing.assert_close(frames.logits, theirs(waveforms).logits, atol=1e-5, rtol=0)


def test_what_a_file_has_for_its_pretraining_is_named(tmp_path: Path) -> None:
    for case, left in (("hubert", ("heads of pretraining",)), ("data2vec", ("model['_ema']", "heads of pretraining"))):
        make_file(case, tmp_path / "a.pt", finetuned=False)
        foreign = read_fairseq(tmp_path / "a.pt")
        assert foreign.dropped == left
        assert (foreign.card.kind, foreign.card.update) == ("backbone", 400_000)
