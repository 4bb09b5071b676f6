"""`speechssl doctor`: what is installed, what is missing and how to get it, what this machine can do."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from speechssl.config.verbs import DoctorConfig
from speechssl.processes import SPIN_KEYS
from speechssl.verbs.frame import verb

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Need:
    """A package that speechssl uses: its distribution, its module, what for, and how to get it."""

    distribution: str
    module: str
    purpose: str
    extra: str = ""

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install 'speechssl[{self.extra}]'" if self.extra else f"pip install {self.distribution}"


NEEDS = (
    Need("torch", "torch", "everything that learns"),
    Need(
        "torchaudio",
        "torchaudio",
        "objective=masked_codes (filter banks, MFCC) and torchaudio:BUNDLE; nothing else",
    ),
    Need("numpy", "numpy", "arrays"),
    Need("soundfile", "soundfile", "reads and writes audio"),
    Need("soxr", "soxr", "resamples"),
    Need("librosa", "librosa", "log-mel input (model=small), probes and reports"),
    Need("pyarrow", "pyarrow", "manifests and embeddings"),
    Need("safetensors", "safetensors", "checkpoints"),
    Need("scikit-learn", "sklearn", "k-means codes (objective.targets=kmeans), maps of speakers in reports"),
    Need("sentencepiece", "sentencepiece", "labels that are pieces of words (text.vocabulary=bpe)"),
    Need("hydra-core", "hydra", "the command line's key=value"),
    Need("omegaconf", "omegaconf", "configurations"),
    Need("jaxtyping", "jaxtyping", "shapes in signatures"),
    Need("jinja2", "jinja2", "reports"),
    Need("jiwer", "jiwer", "word and character error rates"),
    Need("tensorboard", "torch.utils.tensorboard", "curves"),
    Need("rich", "rich", "progress bars"),
    Need("huggingface_hub", "huggingface_hub", "models of the Hugging Face Hub", extra="hub"),
    Need("onnx", "onnx", "exports for serving", extra="onnx"),
    Need("onnxscript", "onnxscript", "exports for serving", extra="onnx"),
    Need("onnxruntime", "onnxruntime", "runs what was exported", extra="onnx"),
    Need("whisper-normalizer", "whisper_normalizer.english", "normaliser=english", extra="english"),
    Need("uroman", "uroman", "texts in Latin letters (romanise=true)", extra="romanise"),
    Need("wandb", "wandb", "curves at Weights & Biases (logging.wandb_project)", extra="wandb"),
    Need("mlflow", "mlflow", "curves in MLflow (logging.mlflow_experiment)", extra="mlflow"),
    Need("espeakng-loader", "espeakng_loader", "the demo's speech (eSpeak NG, GPL-3)", extra="demo"),
)


@verb
def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Look at the installation and the machine, log what a person wants to know, and return it as a dict."""
    packages = {need.distribution: _examine(need) for need in NEEDS}
    missing = [
        {"package": need.distribution, "why": packages[need.distribution]["problem"], "get": need.remedy}
        for need in NEEDS
        if packages[need.distribution]["problem"]
    ]
    machine = _describe_machine(has_torch=not packages["torch"]["problem"])
    result = {"python": platform.python_version(), "packages": packages, "missing": missing, "machine": machine}
    _log_findings(result)
    return result


def _examine(need: Need) -> dict[str, Any]:
    """Import one package, since an installed one may still not load (torchaudio for another torch)."""
    try:
        found = version(need.distribution)
    except PackageNotFoundError:
        return {"version": None, "purpose": need.purpose, "problem": "not installed"}
    try:
        import_module(need.module)
    except (ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        return {"version": found, "purpose": need.purpose, "problem": f"installed, but does not load: {reason}"}
    return {"version": found, "purpose": need.purpose, "problem": None}


def _describe_machine(has_torch: bool) -> dict[str, Any]:
    """Describe processors, memory, disk and accelerators."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if sys.platform != "win32" else 0
    machine: dict[str, Any] = {
        "system": platform.platform(),
        "cpu_cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "gpus": [],
        "waiting": {key: os.environ[key] for key in SPIN_KEYS if os.environ.get(key)},
    }
    if has_torch:
        machine.update(_describe_torch())
    return machine


def _describe_torch() -> dict[str, Any]:
    """Say which devices torch sees and what `device=auto precision=auto` comes to."""
    import torch

    from speechssl.devices import resolve_device, resolve_precision

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)})
    device = resolve_device("auto")
    return {
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": resolve_precision("auto", device),
    }


def _log_findings(result: dict[str, Any]) -> None:
    """Log a table for people; scripts read the JSON line."""
    _logger.info("Python %s", result["python"])
    for name, package in result["packages"].items():
        state = package["version"] if not package["problem"] else package["problem"]
        _logger.info("  %-16s %-14s %s", name, state, package["purpose"])
    for item in result["missing"]:
        _logger.info("to get %s: %s", item["package"], item["get"])
    machine = result["machine"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in machine["gpus"]) or "none"
    _logger.info("%s cores, %s GiB memory, GPUs: %s", machine["cpu_cores"], machine["memory_gib"], gpus)
    waiting = " ".join(f"{key}={value}" for key, value in machine["waiting"].items())
    _logger.info("waiting threads: %s", waiting or "OpenMP's default, which keeps their cores busy")
    if "device" in machine:
        _logger.info("device=auto is %s, precision=auto is %s", machine["device"], machine["precision"])
