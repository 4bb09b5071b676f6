"""Self-supervised speech representations: pretrain wav2vec 2.0, fine-tune with CTC, measure, embed.

The Python face. Nothing heavy is imported until a name is used:

    import speechssl
    model = speechssl.load("runs/base")
    frames = model(waveforms, num_samples)

Every verb of the command line is a function of its name with the same keys, which returns the dict of its JSON line:
`speechssl.pretrain(model="tiny", out="runs/a", **{"data.train": "m/train.tsv", "training.max_updates": 5})`.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from speechssl.printable import OneLine
from speechssl.processes import limit_spinning

if TYPE_CHECKING:
    from speechssl import verbs as verbs
    from speechssl.api import align as align
    from speechssl.api import analyse as analyse
    from speechssl.api import bench as bench
    from speechssl.api import compare as compare
    from speechssl.api import convert as convert
    from speechssl.api import demo as demo
    from speechssl.api import doctor as doctor
    from speechssl.api import embed as embed
    from speechssl.api import evaluate as evaluate
    from speechssl.api import finetune as finetune
    from speechssl.api import lm as lm
    from speechssl.api import load as load
    from speechssl.api import prepare as prepare
    from speechssl.api import pretrain as pretrain
    from speechssl.api import pretraining_forward as pretraining_forward
    from speechssl.api import probe as probe
    from speechssl.api import report as report
    from speechssl.api import save as save
    from speechssl.api import score as score
    from speechssl.api import similar as similar
    from speechssl.api import transcribe as transcribe
    from speechssl.api import tune as tune
    from speechssl.api import units as units
    from speechssl.errors import CheckpointError as CheckpointError
    from speechssl.errors import ConfigError as ConfigError
    from speechssl.errors import DataError as DataError
    from speechssl.errors import SpeechSSLError as SpeechSSLError
    from speechssl.evaluation.wer import compute_error_rates as compute_error_rates
    from speechssl.inference.decoding.greedy import greedy_decode as greedy_decode
    from speechssl.objectives import losses as losses
    from speechssl.text.vocabulary import Vocabulary as Vocabulary
    from speechssl.text.vocabulary import build_vocabulary as build_vocabulary

__version__ = "0.1.0.dev0"

logging.getLogger("speechssl").addFilter(OneLine())
limit_spinning()

_FUNCTIONS = (
    "load", "save", "embed", "transcribe", "pretraining_forward",
    "prepare", "pretrain", "finetune", "evaluate", "score", "compare", "tune", "align", "lm", "probe", "units",
    "convert", "doctor", "similar", "analyse",
)  # fmt: skip

_HOMES = {
    **{name: "speechssl.api" for name in _FUNCTIONS},
    **{name: "speechssl.errors" for name in ("SpeechSSLError", "ConfigError", "DataError", "CheckpointError")},
    "Vocabulary": "speechssl.text.vocabulary",
    "build_vocabulary": "speechssl.text.vocabulary",
    "greedy_decode": "speechssl.inference.decoding.greedy",
    "compute_error_rates": "speechssl.evaluation.wer",
}

_ROOMS = ("bench", "demo", "report")
_SUBMODULES = {"losses": "speechssl.objectives.losses", **{name: f"speechssl.{name}" for name in ("verbs", *_ROOMS)}}

__all__ = ["__version__", *_SUBMODULES, *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used (PEP 562)."""
    if name in _SUBMODULES:
        return import_module(_SUBMODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'speechssl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


class _CallableModule(ModuleType):
    """A room that is named like a verb: `speechssl.report(run="runs/a")` calls the verb."""

    def __call__(self, **keys: Any) -> dict[str, Any]:
        """Run the verb of this name; see `speechssl.api`."""
        verb = self.__name__.rpartition(".")[2]
        result: dict[str, Any] = getattr(import_module("speechssl.api"), verb)(**keys)
        return result


class _Package(ModuleType):
    """The package. Importing a room puts a module where users call a function, so it is made callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
