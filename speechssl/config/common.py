"""The keys of every verb that computes."""

from __future__ import annotations

from dataclasses import dataclass

from speechssl.config.knobs import check, check_choice, knob


@dataclass(kw_only=True)
class CommonConfig:
    """What every verb that computes takes."""

    seed: int = knob(1, "seed of everything random")
    device: str = knob("auto", "`auto`, `cpu`, `cuda` or `cuda:N`")
    precision: str = knob("auto", "`float32`, `bf16`, or `auto`: bf16 where the device is faster with it")
    overwrite: bool = knob(False, "replace a finished result")

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, ("float32", "bf16", "auto"))
        check(0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1", self.seed)
