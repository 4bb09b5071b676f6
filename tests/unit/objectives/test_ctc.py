"""Fine-tuning's loss, computed anew with plain torch one row at a time, and what it is told to keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.bench.batches import make_batches
from speechssl.checkpoints.model_folder import load_weights, save_model
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import BenchConfig, FinetuneConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.load import write_model
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.ctc import CTCObjective, CTCOptions
from speechssl.text.vocabulary import build_vocabulary
from speechssl.training.finetuning import check_layers, choose_options, start_from
from speechssl.training.optim import build_optimizer, set_lr

OPTIONS = CTCOptions(intermediate_weight=0.3, intermediate_layer=1, consistency_weight=0.2)


def build_objective(config: ModelConfig, options: CTCOptions = OPTIONS, told: int = 1) -> CTCObjective:
    """Build a recogniser without dropout that is told something after its first block."""
    silent = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "input_dropout", "head_dropout"), 0.0)
    mask = replace(config.mask, prob=0.3, length=4, channel_prob=0.2, channel_length=4, equalise=False)
    torch.manual_seed(1)
    config = replace(config, **silent, mask=mask, norm_first=True, self_conditioning=told)
    model = SpeechModel(config, build_vocabulary(TextConfig(), ()))
    if model.conditioning is not None:
        torch.nn.init.normal_(model.conditioning.weight)
    return CTCObjective(model, seed=1, options=options)


def draw_batch(objective: CTCObjective) -> Batch:
    config = BenchConfig(job="ctc", model=objective.module.config, batch=3, seconds=2.5)
    return next(make_batches(config, objective.make_collate(), whole=True))[0]


def recognise(model: SpeechModel, waveform: Tensor, mask: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Transcribe a forward of one row: log-probabilities (T, V) after the first block and at the end."""
    backbone, transformer = model.backbone, model.backbone.transformer
    assert model.head is not None and model.conditioning is not None
    x = backbone.projection(backbone.encode(waveform[None], None).normed)[0]
    x = torch.where(mask[: len(x), None], backbone.mask_embedding, x).masked_fill(channels, 0.0)[None]
    x = x + transformer.position(x)
    inner = torch.empty(0)
    for number, block in enumerate(transformer.blocks, 1):
        x = block(x, None)
        if number == 1:
            logits = model.head(transformer.norm(x))
            inner = logits[0].log_softmax(-1)
            x = x + logits.softmax(-1) @ model.conditioning.weight.T + model.conditioning.bias
    return inner, model.head(transformer.norm(x))[0].log_softmax(-1)


def compute_anew(model: SpeechModel, batch: Batch) -> Tensor:
    """Sum over utterances: CTC of both views and layers, and half of both divergences, frame by frame."""
    total, made = torch.zeros(()), batch.inputs
    lengths = batch.num_samples if batch.num_samples is not None else [batch.waveforms.shape[1]] * len(batch.ids)
    for row, length in enumerate(lengths):
        views = []
        for start in ("", "second_"):
            masks = made[f"{start}mask"][row], made[f"{start}channel_mask"][row]
            views.append(recognise(model, batch.waveforms[row, : int(length)], *masks))
        labels = made["labels"][row, : int(made["num_labels"][row])]
        for inner, last in views:
            for share, log_probs in ((0.3, inner), (0.7, last)):
                sizes = torch.tensor([len(log_probs)]), torch.tensor([len(labels)])
                total = total + share / 2 * F.ctc_loss(log_probs[:, None], labels[None], *sizes, reduction="sum")
        for mine, other in ((views[0][1], views[1][1]), (views[1][1], views[0][1])):
            fixed = other.detach()
            total = total + 0.2 / 2 * (fixed.exp() * (fixed - mine)).sum()
    return total


def test_the_loss_is_that_of_plain_torch_row_by_row(tiny_model_config: ModelConfig) -> None:
    """With its gradients: what stands still in the divergence gets none."""
    objective = build_objective(tiny_model_config)
    batch, model = draw_batch(objective), objective.module.train()
    assert batch.num_samples is not None, "rows are padded"
    terms = objective.compute(batch, 1)
    terms.sum.backward()
    loss = float(terms.sum.detach())
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    expected = compute_anew(model, batch)
    expected.backward()
    assert int(terms.count) == 3
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_validation_and_inference_have_one_view_and_what_is_told(tiny_model_config: ModelConfig) -> None:
    objective = build_objective(tiny_model_config)
    batch, model = draw_batch(objective), objective.module.eval()
    terms = objective.compute(batch, 1)
    logits, num_frames = model.logits(batch.waveforms, batch.num_samples)
    none = torch.zeros(10_000, dtype=torch.bool), torch.zeros(model.dim, dtype=torch.bool)
    loss = 0.0
    for row, count in enumerate(num_frames.tolist()):
        assert batch.num_samples is not None
        _, expected = recognise(model, batch.waveforms[row, : int(batch.num_samples[row])], *none)
        torch.testing.assert_close(logits[row, :count].log_softmax(-1), expected, rtol=1e-5, atol=1e-5)
        labels = batch.inputs["labels"][row, : int(batch.inputs["num_labels"][row])]
        sizes = torch.tensor([count]), torch.tensor([len(labels)])
        loss += float(F.ctc_loss(expected[:, None], labels[None], *sizes, reduction="sum").detach())
    assert float(terms.sum.detach()) == pytest.approx(loss, rel=1e-6)


def test_views_are_a_function_of_seed_and_sub_batch(tiny_model_config: ModelConfig) -> None:
    two = build_objective(tiny_model_config).make_collate()
    examples = [Example(str(k), torch.zeros(16_000 + 900 * k).numpy(), "", "AB") for k in range(3)]
    drawn, again, other = two(examples, 1, 5), two(examples, 1, 5), two(examples, 1, 6)
    for name in ("mask", "channel_mask", "second_mask", "second_channel_mask"):
        rows = [[row.tolist() for row in made[name]] for made in (drawn, again, other)]
        assert rows[0] == rows[1] and rows[0] != rows[2], name
        assert [len(row) for row in rows[0]] == [len(row) for row in drawn[name.removeprefix("second_")]]
    assert any((a != b).any() for a, b in zip(drawn["mask"], drawn["second_mask"], strict=True))
    one = replace(two, num_views=1)(examples, 1, 5)
    assert one.keys() == {"labels", "num_labels", "mask", "channel_mask"}
    assert all((a == b).all() for a, b in zip(one["mask"], drawn["mask"], strict=True))


def test_rates_fall_from_block_to_block(tiny_model_config: ModelConfig) -> None:
    objective = build_objective(tiny_model_config)
    names = {parameter: name for name, parameter in objective.module.named_parameters()}
    optimizer = build_optimizer(objective.module, TrainingConfig(layer_lr_decay=0.5), objective.find_depth)
    set_lr(optimizer, 0.8)
    found = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == set(names.values())
    blocks = "backbone.transformer.blocks"
    starts = {
        "head": 0.8,
        "conditioning": 0.8,
        "backbone.transformer.norm": 0.8,
        f"{blocks}.1": 0.4,
        f"{blocks}.0": 0.2,
    }
    for name, rate in found.items():
        assert rate == next((r for start, r in starts.items() if name.startswith(f"{start}.")), 0.1), name
    assert len(build_optimizer(objective.module, TrainingConfig(), objective.find_depth).param_groups) == 1


def test_what_is_told_is_saved_goes_on_and_has_no_place_elsewhere(
    tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    model, other = (build_objective(tiny_model_config).module for _ in range(2))
    assert model.conditioning is not None and other.conditioning is not None
    torch.nn.init.ones_(model.conditioning.weight)
    save_model(model, tmp_path / "a")
    load_weights(other, tmp_path / "a")
    assert torch.equal(other.conditioning.weight, model.conditioning.weight)
    torch.nn.init.zeros_(other.conditioning.weight)
    start_from(other, FinetuneConfig(out="x", init=str(tmp_path / "a")))
    assert torch.equal(other.conditioning.weight[:, 4:], model.conditioning.weight[:, 4:])
    for name in ("fairseq", "torchaudio"):
        with pytest.raises(CheckpointError, match=f"`model.self_conditioning` must be 0 for {name}"):
            write_model(model, tmp_path / name, name)


def test_keys_that_name_blocks_fit_the_network(tiny_model_config: ModelConfig) -> None:
    told = replace(tiny_model_config, self_conditioning=1)
    bare = replace(tiny_model_config, mask=replace(tiny_model_config.mask, prob=0.0))
    cases = (
        (tiny_model_config, {"freeze_layers": 3}, "`freeze_layers` must be between -1 and 2, the blocks that"),
        (tiny_model_config, {"freeze_layers": 2, "reset_layers": 1}, "`freeze_layers` must be between -1 and 1, the"),
        (told, {"freeze_layers": 2, "intermediate_weight": 0.3}, "between -1 and 1, model.self_conditioning, but"),
        (tiny_model_config, {"intermediate_layer": 2}, "`intermediate_layer` must be 0, or a block before the last of"),
        (told, {}, "`intermediate_weight` must be positive with model.self_conditioning"),
        (bare, {"consistency_weight": 0.2}, "`consistency_weight` must be 0 without masks"),
    )
    for network, keys, message in cases:
        with pytest.raises(ConfigError, match=message):
            check_layers(FinetuneConfig(out="x", init="y", model=network, **keys))
    keys = {"freeze_layers": 1, "intermediate_weight": 0.3, "best_by": "loss"}
    training = TrainingConfig(max_updates=10, freeze_share=0.1, unfreeze_share=0.4)
    config = FinetuneConfig(out="x", init="y", model=told, training=training, **keys)
    assert choose_options(config) == CTCOptions(1, 1, 4, 0.3, 1, 0.0, "loss")
    assert choose_options(replace(config, init="")) == CTCOptions(0, -1, 4, 0.3, 1, 0.0, "loss")
