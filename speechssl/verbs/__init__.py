"""The verbs as functions: a typed configuration in, the dict of the result out; nothing here knows hydra.

    from speechssl.config.verbs import PrepareConfig
    speechssl.verbs.prepare(PrepareConfig(root="recordings", out="m"))

A verb's file is imported when its name is first used: `prepare` never loads torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechssl.verbs.align import align as align
    from speechssl.verbs.analyse import analyse as analyse
    from speechssl.verbs.bench import bench as bench
    from speechssl.verbs.compare import compare as compare
    from speechssl.verbs.convert import convert as convert
    from speechssl.verbs.demo import demo as demo
    from speechssl.verbs.doctor import doctor as doctor
    from speechssl.verbs.embed import embed as embed
    from speechssl.verbs.evaluate import evaluate as evaluate
    from speechssl.verbs.finetune import finetune as finetune
    from speechssl.verbs.lm import lm as lm
    from speechssl.verbs.prepare import prepare as prepare
    from speechssl.verbs.pretrain import pretrain as pretrain
    from speechssl.verbs.probe import probe as probe
    from speechssl.verbs.report import report as report
    from speechssl.verbs.score import score as score
    from speechssl.verbs.similar import similar as similar
    from speechssl.verbs.transcribe import transcribe as transcribe
    from speechssl.verbs.tune import tune as tune
    from speechssl.verbs.units import units as units

__all__ = [
    "align", "analyse", "bench", "compare", "convert", "demo", "doctor", "embed", "evaluate", "finetune", "lm",
    "prepare", "pretrain", "probe", "report", "score", "similar", "transcribe", "tune", "units",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{name}"), name)


class _Package(ModuleType):
    """Keeps the function `prepare` where the import system would put the module `prepare`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
