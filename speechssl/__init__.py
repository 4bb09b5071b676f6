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

if TYPE_CHECKING:
    from speechssl import losses as losses
    from speechssl.errors import CheckpointError as CheckpointError
    from speechssl.errors import ConfigError as ConfigError
    from speechssl.errors import DataError as DataError
    from speechssl.errors import SpeechSSLError as SpeechSSLError
    from speechssl.evaluation.decoding import greedy_decode as greedy_decode
    from speechssl.evaluation.wer import compute_error_rates as compute_error_rates
    from speechssl.evaluation.wer import score as score
    from speechssl.functions import bench as bench
    from speechssl.functions import convert as convert
    from speechssl.functions import demo as demo
    from speechssl.functions import doctor as doctor
    from speechssl.functions import embed as embed
    from speechssl.functions import evaluate as evaluate
    from speechssl.functions import finetune as finetune
    from speechssl.functions import load as load
    from speechssl.functions import prepare as prepare
    from speechssl.functions import pretrain as pretrain
    from speechssl.functions import pretraining_forward as pretraining_forward
    from speechssl.functions import probe as probe
    from speechssl.functions import report as report
    from speechssl.functions import save as save
    from speechssl.functions import transcribe as transcribe
    from speechssl.text import Vocabulary as Vocabulary
    from speechssl.text import build_vocabulary as build_vocabulary

__version__ = "0.1.0.dev0"

logging.getLogger("speechssl").addFilter(OneLine())

_FUNCTIONS = (
    "load", "save", "embed", "transcribe", "pretraining_forward",
    "demo", "prepare", "pretrain", "finetune", "evaluate", "probe", "convert", "bench", "doctor",
)  # fmt: skip

_HOMES = {
    **{name: "speechssl.functions" for name in _FUNCTIONS},
    **{name: "speechssl.errors" for name in ("SpeechSSLError", "ConfigError", "DataError", "CheckpointError")},
    "Vocabulary": "speechssl.text",
    "build_vocabulary": "speechssl.text",
    "greedy_decode": "speechssl.evaluation.decoding",
    "score": "speechssl.evaluation.wer",
    "compute_error_rates": "speechssl.evaluation.wer",
}

_SUBMODULES = ("losses", "report")

__all__ = ["__version__", *_SUBMODULES, *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used (PEP 562)."""
    if name in _SUBMODULES:
        return import_module(f"speechssl.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'speechssl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


class _CallableModule(ModuleType):
    """The room `speechssl.report`, which is called like the verb `report`."""

    def __call__(self, **keys: Any) -> dict[str, Any]:
        """Run the verb; see `speechssl.functions.report`."""
        result: dict[str, Any] = import_module("speechssl.functions").report(**keys)
        return result


class _Package(ModuleType):
    """The package. Importing the room `report` puts a module where users call a function, so it is made callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "report" and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
