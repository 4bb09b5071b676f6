"""AdamW in the decoupled form, on every parameter alike, and gradients divided by the count of the update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from speechssl.checkpoints.sharding import is_spread, spread_like
from speechssl.config.training import TrainingConfig

FIELDS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter; nothing of one that has never had a gradient."""


def build_optimizer(
    module: nn.Module, config: TrainingConfig, find_depth: Callable[[str], int] = lambda _: 0
) -> torch.optim.AdamW:
    """Build the optimizer. Biases, norms, mask embedding and codebook decay too, as in the reference.

    Args:
        module: what is trained, apart from what needs no gradient.
        config: its knobs.
        find_depth: says how many blocks below the head a parameter lies (`Objective.find_depth`). There is a group for
            each depth, whose `lr_scale` is `training.layer_lr_decay` to that power; without a decay there is one group.

    Source: fairseq's Adam, whose weight decay is decoupled (Loshchilov and Hutter 2019).
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(config.layer_lr_decay ** find_depth(name), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr_scale": scale} for scale, parameters in groups.items()],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the head, and of each group as far below it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def scale_gradients(module: nn.Module, count: Tensor, clip_norm: float) -> Tensor:
    """Divide the gradients by the count of the update, clip them where asked, and return their norm before clipping.

    Args:
        module: what is trained; parameters without a gradient are left alone.
        count: scalar, items of the whole update.
        clip_norm: largest norm; 0 does not clip.
    """
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, (1.0 / count.double()).float())
    norm = torch.nn.utils.get_total_norm(gradients)
    if is_spread(norm):
        norm = norm.full_tensor()
    if clip_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(list(module.parameters()), clip_norm, norm)
    return norm


def export_state(optimizer: torch.optim.AdamW, module: nn.Module) -> dict[str, Tensor]:
    """Flatten the optimizer's state into named tensors: `<field>/<parameter>`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    state = {}
    for parameter, fields in optimizer.state.items():
        for field, value in fields.items():
            state[f"{field}/{names[parameter]}"] = value
    return state


def import_state(optimizer: torch.optim.AdamW, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Give the optimizer back what `export_state` made of it.

    Raises:
        ValueError: something in it belongs to no parameter, has another shape than its own, or lacks its fellows; the
            optimizer is as it was.
    """
    parameters = dict(module.named_parameters())
    loaded: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in state.items():
        field, _, name = key.partition("/")
        if name not in parameters:
            raise ValueError(f"{key} belongs to no parameter")
        parameter = parameters[name]
        if field != "step" and value.shape != parameter.shape:
            raise ValueError(f"{key} is of shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
        # The fused AdamW counts steps where its parameter is.
        counter_device = parameter.device if parameter.is_cuda else torch.device("cpu")
        moved = value.to(counter_device) if field == "step" else spread_like(value, parameter)
        loaded.setdefault(parameter, {})[field] = moved
    for name, parameter in parameters.items():
        held = loaded.get(parameter, {})
        if held and held.keys() != set(FIELDS):
            raise ValueError(f"the optimizer's state of {name} must have {', '.join(FIELDS)}, but has {sorted(held)}")
    optimizer.state.clear()
    optimizer.state.update(loaded)
