"""The rungs of the parity ladder: the same stations of a network, ours and the peers', from the waveform up.

Run as a program it prints the largest difference of each rung: `python -m tests.parity.ladder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining

from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.model.pretraining import PretrainingModel
from speechssl.model.speech_model import SpeechModel
from speechssl.model.wav2vec2 import Wav2Vec2
from speechssl.text.vocabulary import build_vocabulary
from tests.parity.hf_weights import GROUP, LAYER, make_config, make_hf_config, rename

Rungs = dict[str, Tensor]
"""(B, T, D) at each station, in the order of the computation."""

Places = dict[str, tuple[nn.Module, Callable[[Any, Any], Tensor]]]
"""Where stations are: a module, and what to take of its inputs and output."""

NUM_NEGATIVES = 10

NORMS = {
    "group, post": GROUP,
    "layer, pre": LAYER,
    "group, pre": GROUP | {"norm_first": True},
    "layer, post": LAYER | {"norm_first": False, "conv_bias": False},
}

LENGTHS = {"single": [24_000], "padded": [24_000, 16_500, 20_160]}
"""Samples of the rows of a batch."""


@dataclass
class Inputs:
    """One batch, as both sides take it; `num_samples` is None where nothing is padded."""

    waveforms: Tensor
    num_samples: Tensor | None
    num_frames: list[int]

    @property
    def attention_mask(self) -> Tensor | None:
        """The valid samples as `transformers` wants them."""
        if self.num_samples is None:
            return None
        return (torch.arange(self.waveforms.shape[1]) < self.num_samples[:, None]).long()


def make_rung_config(norms: str) -> ModelConfig:
    """A small network with nothing drawn in it and with the peers' group norm."""
    return silence(make_config(**NORMS[norms]))


def silence(config: ModelConfig) -> ModelConfig:
    """Take out what is drawn at random or differs by definition: dropout, LayerDrop, gradient scale, valid frames."""
    off = dict.fromkeys(
        ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "feature_dropout", "head_dropout"), 0.0
    )
    return replace(config, **off, layer_drop_prob=0.0, feature_gradient_scale=1.0, group_norm_frames="all")


def draw_inputs(config: ModelConfig, lengths: list[int]) -> Inputs:
    """Draw noise of the given lengths, padded with zeros on the right."""
    rng = np.random.default_rng(0)
    waveforms = np.zeros((len(lengths), max(lengths)), dtype=np.float32)
    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = rng.normal(0, 0.1, length)
    num_frames = [int(config.count_frames(n)) for n in lengths]
    is_padded = len(set(lengths)) > 1
    return Inputs(torch.from_numpy(waveforms), torch.tensor(lengths) if is_padded else None, num_frames)


def build_pretraining_pair(config: ModelConfig) -> tuple[PretrainingModel, Wav2Vec2ForPreTraining]:
    """Build our model and theirs with the same random weights, through names written out in `hf_weights`."""
    torch.manual_seed(3)
    theirs = Wav2Vec2ForPreTraining(make_hf_config(config, NUM_NEGATIVES))
    ours = PretrainingModel(config)
    ours.load_state_dict(rename(theirs.state_dict(), config))
    return ours.eval(), theirs.eval()


def build_ctc_pair(config: ModelConfig) -> tuple[SpeechModel, Wav2Vec2ForCTC]:
    """Build our recogniser and theirs; their blank is at 0 as ours is."""
    torch.manual_seed(4)
    vocabulary = build_vocabulary(TextConfig(), [])
    hf_config: Wav2Vec2Config = make_hf_config(config, NUM_NEGATIVES)
    hf_config.update(
        {"vocab_size": len(vocabulary), "pad_token_id": 0, "ctc_zero_infinity": True, "final_dropout": 0.0}
    )
    theirs = Wav2Vec2ForCTC(hf_config)
    ours = SpeechModel(config, vocabulary)
    weights = rename(theirs.state_dict(), config)
    ours.load_state_dict({name.replace("lm_head.", "head.linear."): value for name, value in weights.items()})
    return ours.eval(), theirs.eval()


def import_into_torchaudio(theirs: Wav2Vec2ForCTC) -> nn.Module:
    """Give torchaudio the weights of a recogniser of `transformers`, by its own importer."""
    model: nn.Module = torchaudio.models.wav2vec2.utils.import_huggingface_model(theirs)
    return model.eval()


@contextmanager
def listen(places: Places) -> Iterator[Rungs]:
    """Note what passes through modules: name → (module, what to take of its inputs and output)."""
    heard: Rungs = {}
    handles = []
    for name, (module, take) in places.items():

        def note(_: nn.Module, inputs: Any, output: Any, name: str = name, take: Any = take) -> None:
            # A copy: their mask is written into the projection in place.
            heard[name] = take(inputs, output).detach().clone()

        handles.append(module.register_forward_hook(note))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _first(_: Any, output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _input(inputs: Any, _: Any) -> Tensor:
    value: Tensor = inputs[0]
    return value


def _list_blocks(blocks: nn.ModuleList) -> Places:
    return {"layer 0": (blocks[0], _input)} | {f"layer {n}": (block, _first) for n, block in enumerate(blocks, 1)}


def record_ours(model: Wav2Vec2, inputs: Inputs, mask: Tensor | None = None, head: nn.Module | None = None) -> Rungs:
    """Run our backbone, and a CTC head where there is one, and note its stations."""
    places: Places = {
        "convolutions": (model.encoder, _first),
        "feature norm": (model.feature_norm, _first),
        "projection": (model.projection, _first),
        "positions": (model.transformer.position, _first),
        **_list_blocks(model.transformer.blocks),
    }
    # Batch norm learns where there are gradients alone.
    with listen(places) as heard, torch.set_grad_enabled(model.training):
        last, _ = model.contextualise(model.encode(inputs.waveforms, inputs.num_samples), mask)
        logits = {} if head is None else {"logits": head(last).detach()}
    return order(heard) | {"encoder": last.detach()} | logits


def record_transformers(model: nn.Module, inputs: Inputs, mask: Tensor | None = None) -> Rungs:
    """Run a model of `transformers` and note the same stations."""
    head, model = getattr(model, "lm_head", None), model.base_model
    norm = getattr(model.feature_projection, "layer_norm", None)
    places: Places = {
        "convolutions": (model.feature_extractor, lambda _, output: output.transpose(1, 2)),
        # Without a norm, what is projected.
        "feature norm": (model.feature_projection.projection, _input) if norm is None else (norm, _first),
        "projection": (model.feature_projection.projection, _first),
        "positions": (model.encoder.pos_conv_embed, _first),
        **_list_blocks(model.encoder.layers),
    }
    with listen(places) as heard, torch.no_grad():
        last = model(inputs.waveforms, attention_mask=inputs.attention_mask, mask_time_indices=mask).last_hidden_state
        logits = {} if head is None else {"logits": head(last)}
    return order(heard) | {"encoder": last} | logits


def record_torchaudio(model: nn.Module, inputs: Inputs) -> Rungs:
    """Run torchaudio's model and note the same stations."""
    transformer, projection = model.encoder.transformer, model.encoder.feature_projection
    places = {
        "convolutions": (model.feature_extractor, _first),
        "feature norm": (projection.layer_norm, _first),
        "projection": (projection.projection, _first),
        "positions": (transformer.pos_conv_embed, _first),
        **_list_blocks(transformer.layers),
    }
    with listen(places | {"encoder": (model.encoder, _first)}) as heard, torch.no_grad():
        logits, _ = model(inputs.waveforms, inputs.num_samples)
    return order(heard) | {"encoder": heard["encoder"], "logits": logits}


def order(heard: Rungs) -> Rungs:
    """Put stations in the order of the computation: hooks of blocks are called after those inside them."""
    names = ["convolutions", "feature norm", "projection", "positions"]
    return {name: heard[name] for name in [*names, *sorted(name for name in heard if name.startswith("layer"))]}


def measure(ours: Rungs, theirs: Rungs, num_frames: list[int]) -> dict[str, float]:
    """Measure the largest difference of each rung over valid frames."""
    assert ours.keys() == theirs.keys()
    found = {}
    for name, value in ours.items():
        rows = zip(_split(value, num_frames), _split(theirs[name], num_frames), num_frames, strict=True)
        found[name] = max(float((x[:count] - y[:count]).abs().max()) for x, y, count in rows)
    return found


def _split(value: Tensor, num_frames: list[int]) -> Iterable[Tensor]:
    """Give each row; on the CPU our blocks see them one behind the other, without their padding."""
    return value[0].split(num_frames) if len(value) < len(num_frames) else value


def find_first(differences: dict[str, float], bar: float, wider: Mapping[str, float] | None = None) -> str:
    """Name the first rung above its bar; an empty string where there is none.

    Args:
        differences: from `measure`.
        bar: largest difference allowed.
        wider: other bars, by the first word of a rung's name.
    """
    for name, value in differences.items():
        if not value <= (wider or {}).get(name.split()[0], bar):
            return f"{name}: {value:.1e}"
    return ""


def measure_peers(norms: str) -> dict[str, dict[str, float]]:
    """Measure the largest difference of each rung to each peer, over single and padded utterances."""
    config = make_rung_config(norms)
    ours, theirs = build_ctc_pair(config)
    there = import_into_torchaudio(theirs)
    worst: dict[str, dict[str, float]] = {"transformers": {}, "torchaudio": {}}
    for lengths in LENGTHS.values():
        batch = draw_inputs(config, lengths)
        mine = record_ours(ours.backbone, batch, head=ours.head)
        peers = {"transformers": record_transformers(theirs, batch), "torchaudio": record_torchaudio(there, batch)}
        for peer, rungs in peers.items():
            found = measure(mine, rungs, batch.num_frames)
            worst[peer] = {name: max(value, worst[peer].get(name, 0.0)) for name, value in found.items()}
    return worst


def main() -> None:
    """Print the largest difference of each rung."""
    columns = ["convolutions", "feature norm", "projection", "positions", "layers", "encoder", "logits"]
    print("| norms | peer | " + " | ".join(columns) + " |")
    print("| --- | --- |" + " --- |" * len(columns))
    for norms in NORMS:
        for peer, found in measure_peers(norms).items():
            found["layers"] = max(value for name, value in found.items() if name.startswith("layer "))
            print(f"| {norms} | {peer} | " + " | ".join(f"{found[name]:.1e}" for name in columns) + " |")


if __name__ == "__main__":
    main()
