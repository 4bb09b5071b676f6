"""The rungs of the parity ladder for the two Conformers of `transformers`: pairs of networks, and their stations.

Run as a program it prints the largest difference of each rung: `python -m tests.parity.conformers`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from speechssl.config.data import TextConfig
from speechssl.interop.foreign import build_model
from speechssl.interop.huggingface.folder import read_huggingface
from speechssl.interop.huggingface.processor import EPSILON
from speechssl.model.speech_model import SpeechModel
from speechssl.model.wav2vec2 import normalize_waveforms
from speechssl.text.vocabulary import build_vocabulary
from tests.conftest import make_speech
from tests.parity.ladder import Rungs, _first, _input, listen

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_depthwise_kernel_size": 7, "mask_time_prob": 0.3, "layerdrop": 0.0,
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout"), 0.0),
    "conformer_conv_dropout": 0.0, "feat_proj_dropout": 0.0, "feat_quantizer_dropout": 0.0,
}  # fmt: skip
CONVOLUTIONS = {
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "num_codevectors_per_group": 10, "codevector_dim": 8, "proj_codevector_dim": 12,
}  # fmt: skip

ADAPTER = {"left_max_position_embeddings": 9, "right_max_position_embeddings": 4, "add_adapter": True}

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec 2.0, relative": ("Wav2Vec2Conformer", CONVOLUTIONS),
    "wav2vec 2.0, rotary, layer norm": (
        "Wav2Vec2Conformer",
        CONVOLUTIONS
        | {
            "position_embeddings_type": "rotary",
            "hidden_act": "swish",
            "feat_extract_norm": "layer",
            "conv_bias": True,
        },
    ),
    "wav2vec 2.0, no positions": ("Wav2Vec2Conformer", CONVOLUTIONS | {"position_embeddings_type": None}),
    "w2v-BERT, relative_key": (
        "Wav2Vec2Bert",
        {"left_max_position_embeddings": 9, "right_max_position_embeddings": 4},
    ),
    "w2v-BERT, length adapter": ("Wav2Vec2Bert", ADAPTER),
    "w2v-BERT, length adapter of 2 after a feed-forward part": (
        "Wav2Vec2Bert",
        ADAPTER | {"num_adapter_layers": 2, "use_intermediate_ffn_before_adapter": True, "adapter_kernel_size": 5},
    ),
    "w2v-BERT, length adapter of stride 3": ("Wav2Vec2Bert", ADAPTER | {"adapter_stride": 3}),
    "w2v-BERT, relative": ("Wav2Vec2Bert", {"position_embeddings_type": "relative"}),
    "w2v-BERT, rotary, gelu": ("Wav2Vec2Bert", {"position_embeddings_type": "rotary", "hidden_act": "gelu"}),
    "w2v-BERT, no positions": ("Wav2Vec2Bert", {"position_embeddings_type": None}),
}
"""Stem of the class, and what sets its network apart."""

LENGTHS = {"single": [12_800], "alike": [12_800] * 3, "padded": [12_800, 8_500, 10_480]}
"""Samples of the rows of a batch."""


@dataclass
class Pair:
    """A network of ours and the same of theirs, with the head of `kind`."""

    ours: SpeechModel
    theirs: nn.Module
    folder: Path

    @property
    def has_bands(self) -> bool:
        """Whether bands go in, and not waveforms."""
        return self.ours.config.front_end == "kaldi_fbank"

    @property
    def has_adapter(self) -> bool:
        """Whether the output has fewer frames than the blocks."""
        return self.ours.config.length_adapter_layers > 0

    @property
    def lets_padding_in(self) -> bool:
        """Whether their convolutions see what lies beyond a row's end."""
        return not self.has_bands or self.has_adapter

    def count(self, rung: str, num_samples: int) -> int:
        """Count the frames of a rung."""
        config = self.ours.config
        if rung.startswith("adapter"):
            frames = config.count_frames(num_samples)
            for _ in range(int(rung.removeprefix("adapter ")[0])):
                frames = config.shorten(frames)
            return frames
        return (config.count_outputs if rung in ("encoder", "logits") else config.count_frames)(num_samples)


def save_theirs(name: str, kind: str, folder: Path, **changes: Any) -> nn.Module:
    """Make a network with random weights and save it as `transformers` does, with all that is beside it.

    Args:
        name: one of `NETWORKS`.
        kind: `Model`, `ForCTC`, `ForPreTraining` or another head.
    """
    stem, keys = NETWORKS[name]
    torch.manual_seed(3)
    vocabulary = build_vocabulary(TextConfig(), [])
    config = getattr(transformers, f"{stem}Config")(**(SMALL | keys | {"vocab_size": len(vocabulary)} | changes))
    model: nn.Module = getattr(transformers, f"{stem}{kind}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(1.0, 2.0)
    model.save_pretrained(folder)
    has_bands = stem == "Wav2Vec2Bert"
    extractor = transformers.SeamlessM4TFeatureExtractor() if has_bands else transformers.Wav2Vec2FeatureExtractor()
    if kind != "ForCTC":
        extractor.save_pretrained(folder)
        return model
    names = ("<pad>", "<s>", "</s>", "<unk>", *vocabulary.symbols[4:])
    (folder / "vocab.json").write_text(json.dumps({n: i for i, n in enumerate(names)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    processor = transformers.Wav2Vec2BertProcessor if has_bands else transformers.Wav2Vec2Processor
    processor(extractor, tokenizer).save_pretrained(folder)
    return model


def build_pair(name: str, kind: str, folder: Path) -> Pair:
    """Make theirs and read it as ours, in evaluation mode."""
    theirs = save_theirs(name, kind, folder)
    return Pair(build_model(read_huggingface(folder)).eval(), theirs.eval(), folder)


def draw_waveforms(lengths: list[int]) -> tuple[Tensor, Tensor | None]:
    """Draw sounds of the given lengths, padded with zeros on the right, and the lengths where they differ."""
    rows = [torch.from_numpy(make_speech(length / 16_000, seed)) for seed, length in enumerate(lengths)]
    batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return batch, torch.tensor(lengths) if len(set(lengths)) > 1 else None


def list_places(pair: Pair, is_ours: bool) -> dict[str, Any]:
    """List where both sides are listened to, in the order of the computation."""
    if is_ours:
        backbone = pair.ours.backbone
        places = {"features": (backbone.encoder, _first), "feature norm": (backbone.feature_norm, _first)}
        places["projection"] = (backbone.projection, _first)
        blocks, parts = backbone.transformer.blocks, ("first", "attention", "convolution", "last")
    else:
        base = getattr(pair.theirs, pair.theirs.base_model_prefix, pair.theirs)
        norm = base.feature_projection.layer_norm
        places = {"features": (norm, _input), "feature norm": (norm, _first)}
        places["projection"] = (base.feature_projection.projection, _first)
        blocks, parts = base.encoder.layers, ("ffn1", "self_attn", "conv_module", "ffn2")
    places["layer 0"] = (blocks[0], _input)
    for n, block in enumerate(blocks, 1):
        for name, part in zip(("first", "attention", "convolution", "last"), parts, strict=True):
            places[f"{name} {n}"] = (getattr(block, part), _first)
        places[f"layer {n}"] = (block, _first)
    adapter = pair.ours.backbone.length_adapter if is_ours else base.adapter if pair.has_adapter else None
    if adapter is not None and pair.ours.config.length_adapter_ffn:
        places["half"] = (adapter.first if is_ours else base.intermediate_ffn, _first)
    for n, layer in enumerate(adapter.layers if adapter is not None else (), 1):
        places[f"adapter {n}, attention"] = (layer.attention if is_ours else layer.self_attn, _first)
        places[f"adapter {n}"] = (layer, _first)
    return places


def record_ours(pair: Pair, waveforms: Tensor, num_samples: Tensor | None, mask: Tensor | None = None) -> Rungs:
    """Run ours and note its stations; in training mode gradients are on."""
    model, config = pair.ours, pair.ours.config
    if config.normalize_waveform:
        waveforms = normalize_waveforms(waveforms, num_samples, config.waveform_epsilon)
    places = list_places(pair, is_ours=True)
    with listen(places) as heard, torch.set_grad_enabled(model.training):
        features = model.backbone.encode(waveforms, num_samples)
        last = model.backbone.finish(model.backbone.contextualise(features, mask)[0], features)
        heard |= {"encoder": last} | ({} if model.head is None else {"logits": model.head(last)})
    return {name: heard[name] for name in (*places, "encoder", *(["logits"] if "logits" in heard else []))}


def record_theirs(pair: Pair, inputs: Tensor, attention_mask: Tensor | None, mask: Tensor | None = None) -> Rungs:
    """Run theirs on what its feature extractor gave, and note the same stations."""
    base = getattr(pair.theirs, pair.theirs.base_model_prefix, pair.theirs)
    places = list_places(pair, is_ours=False)
    with listen(places) as heard, torch.set_grad_enabled(base.training):
        last = base(inputs, attention_mask=attention_mask, mask_time_indices=mask).last_hidden_state
        head = getattr(pair.theirs, "lm_head", None)
        heard |= {"encoder": last} | ({} if head is None else {"logits": head(last)})
    return {name: heard[name] for name in (*places, "encoder", *(["logits"] if "logits" in heard else []))}


def prepare_theirs(pair: Pair, waveforms: Tensor, num_samples: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Make what goes into theirs. Bands are ours: those of its extractor are a rung of their own."""
    if not pair.has_bands:
        return normalize_waveforms(waveforms, num_samples, EPSILON), None
    with torch.no_grad():
        bands, num_frames = pair.ours.backbone.encoder(waveforms, num_samples)
    return bands, None if num_frames is None else (torch.arange(bands.shape[1]) < num_frames[:, None]).long()


def split_rows(pair: Pair, rungs: Rungs, lengths: list[int]) -> dict[str, list[Tensor]]:
    """Give each row of each rung without its padding; packed rows lie one behind the other."""
    rows = {}
    for name, value in rungs.items():
        num_frames = [pair.count(name, length) for length in lengths]
        parts = value[0].split(num_frames) if len(value) < len(num_frames) else value
        rows[name] = [part[:count] for part, count in zip(parts, num_frames, strict=True)]
    return rows


def measure(pair: Pair, lengths: list[int], mask: Tensor | None = None) -> dict[str, float]:
    """Measure the largest difference of each rung over valid frames.

    wav2vec 2.0 Conformer and length adapters let padding into their convolutions, so their padded rows are run there
    one by one.
    """
    waveforms, num_samples = draw_waveforms(lengths)
    waveforms = waveforms.to(pair.ours.backbone.mask_embedding.dtype)
    mine = split_rows(pair, record_ours(pair, waveforms, num_samples, mask), lengths)
    if num_samples is None or not pair.lets_padding_in:
        inputs = prepare_theirs(pair, waveforms, num_samples)
        theirs = split_rows(pair, record_theirs(pair, *inputs, mask), lengths)
    else:
        theirs = {name: [] for name in mine}
        for row, length in zip(waveforms, lengths, strict=True):
            alone = record_theirs(pair, *prepare_theirs(pair, row[None, :length], None))
            for name, value in split_rows(pair, alone, [length]).items():
                theirs[name] += value
    pairs = {name: zip(rows, theirs[name], strict=True) for name, rows in mine.items()}
    return {name: max(float((x - y).detach().abs().max()) for x, y in rows) for name, rows in pairs.items()}


def main() -> None:
    """Print the largest difference of each kind of rung."""
    inside = ("first", "attention", "convolution", "last", "layer", "half", "adapter")
    kinds = ("features", "feature", "projection", *inside, "encoder", "logits")
    print("| network | batch | " + " | ".join(kinds) + " |")
    print("| --- | --- |" + " --- |" * len(kinds))
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            pair = build_pair(name, "ForCTC", Path(folder))
        for batch, lengths in LENGTHS.items():
            found = measure(pair, lengths)
            worst = {
                kind: max((v for rung, v in found.items() if rung.split()[0] == kind), default=0.0) for kind in kinds
            }
            print(f"| {name} | {batch} | " + " | ".join(f"{worst[kind]:.1e}" for kind in kinds) + " |")


if __name__ == "__main__":
    main()
