"""What `speechssl bench` measures with: time by part, peak memory, and the device's matrix-product ceiling."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

CEILING_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Sides of the square matrices whose product is timed; the fastest size is the ceiling."""

CEILING_S = 0.3
"""Seconds that each size is timed for."""

PARTS_METHOD = (
    "marks at the boundaries of the measured steps themselves: where the transformer's forward begins and ends, and "
    "where the gradients of its output and of its input are ready; host clock on the CPU, events of the stream on a GPU"
)
"""How the time of a step is shared out."""

INNER_PARTS = {"position": "positions", "attention": "attention", "convolution": "convolution"}
"""Modules within the transformer whose time is told apart, by their names there. What is left are feed-forwards, norms
and residual sums."""

_CLEAR_REFS = Path("/proc/self/clear_refs")

_logger = logging.getLogger("speechssl")


class Stopwatch:
    """Shares the time of a step out to its parts: each mark gives the time since the last one to a part.

    Within `transformer` a mark may name what it is: the time of `transformer/attention` counts for both.

    On a GPU a mark is an event of the current stream, so that nothing waits for it.

    Args:
        device: where the step runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def begin(self) -> None:
        """Start a step."""
        self._marks = [("", self._now())]

    def mark(self, part: str) -> None:
        """Give the time since the last mark to `part`."""
        self._marks.append((part, self._now()))

    def finish(self) -> dict[str, float]:
        """Return the seconds of each part of the step."""
        if self._is_cuda:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for (_, before), (part, now) in zip(self._marks, self._marks[1:], strict=False):
            passed = before.elapsed_time(now) / 1000.0 if self._is_cuda else now - before
            for name in dict.fromkeys((part.partition("/")[0], part)):
                seconds[name] = seconds.get(name, 0.0) + passed
        return seconds

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@contextmanager
def watch_parts(transformer: nn.Module, stopwatch: Stopwatch) -> Iterator[None]:
    """Mark where the transformer begins and ends, forward and backward.

    What lies before it is `front_end`, what lies after it `loss`. Autograd runs what was computed last first, so the
    gradient of the transformer's output is ready when the heads are done, quantizer included.

    Args:
        transformer: called with its input first; returns its output first.
        stopwatch: takes the marks.
    """

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        stopwatch.mark("front_end")
        _mark_gradient(args[0], "transformer", stopwatch)
        # A tensor of its own for what is inside: the gradient of this one is ready when all of that is done.
        return (args[0].view_as(args[0]), *args[1:])

    def leave(_: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        stopwatch.mark("transformer")
        _mark_gradient(output[0], "loss", stopwatch)

    handles = [transformer.register_forward_pre_hook(enter), transformer.register_forward_hook(leave)]
    for name, module in transformer.named_modules():
        inner = INNER_PARTS.get(name.rpartition(".")[2])
        if inner is not None:
            handles += _watch_inner(module, f"transformer/{inner}", stopwatch)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_inner(module: nn.Module, part: str, stopwatch: Stopwatch) -> list[RemovableHandle]:
    """Mark where a module within the transformer begins and ends, forward and backward; it takes and gives a tensor."""

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        stopwatch.mark("transformer")
        _mark_gradient(args[0], part, stopwatch)

    def leave(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        stopwatch.mark(part)
        _mark_gradient(output, "transformer", stopwatch)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _mark_gradient(x: Tensor, part: str, stopwatch: Stopwatch) -> None:
    """Mark the moment at which the gradient of `x` is ready: the end of `part` in the backward."""
    if x.requires_grad:
        x.register_hook(lambda _: stopwatch.mark(part))  # type: ignore[no-untyped-call]


class MemoryMeter:
    """The most memory that is used from its making on.

    On a GPU what torch allocated there; on Linux the process's resident memory, whose high-water mark
    (`VmHWM`) is set back first. Elsewhere unknown.

    Args:
        device: whose memory counts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._is_known = _reset_high_water_mark()

    def read_mib(self) -> float | None:
        """Return the peak in MiB, or None where the system does not tell."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device)) / 2**20
        return _read_kib("/proc/self/status", "VmHWM") / 1024 if self._is_known else None


def _reset_high_water_mark() -> bool:
    """Set `VmHWM` back to the memory in use now (proc(5), clear_refs), and say whether that worked."""
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError as error:
        _logger.warning("peak memory stays unknown: %s cannot be written (%s)", _CLEAR_REFS, error.strerror)
        return False
    return True


def read_worker_mib(pids: list[int]) -> float | None:
    """Return the largest memory of one loader worker in MiB, shared pages by their share (PSS); None without workers.

    Linux only, like `MemoryMeter`.
    """
    paths = [Path(f"/proc/{pid}/smaps_rollup") for pid in pids]
    return max((_read_kib(str(path), "Pss") / 1024 for path in paths if path.exists()), default=None)


def _read_kib(path: str, name: str) -> int:
    lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def read_device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor as the system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@torch.no_grad()
def measure_ceiling(device: torch.device, precision: str) -> float:
    """Measure how many floating-point operations a second the device's matrix product makes.

    Args:
        device: where.
        precision: `float32` or `bf16`, of both factors and of the product.

    Returns:
        The best rate over square products of `CEILING_SIZES`.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return max(_time_product(size, dtype, device) for size in CEILING_SIZES[device.type])


def _time_product(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the best rate of one size, in operations a second; the first product warms up."""
    generator = torch.Generator().manual_seed(size)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    # A GPU is asked for many products at a time, since it is told of them faster than they are done.
    count = 10 if device.type == "cuda" else 1
    out = a @ b
    best, begin = 0.0, time.perf_counter()
    while time.perf_counter() - begin < CEILING_S or best == 0.0:
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            torch.matmul(a, b, out=out)
        _wait(device)
        best = max(best, count * 2.0 * size**3 / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
