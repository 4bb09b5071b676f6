"""The positional convolution, forward and backward: ours and other ways to compute the same, side by side.

    python -m tests.benchmarks.positions model=base batch=16 seconds=15.6 device=cuda

A library convolves few channels a group with a long kernel far below what its products reach. `1-D` is the same call
without the second dimension; `contiguous`, on channels that lie apart; `gathered` multiplies the frames that each tap
sees, group by group; `fft` multiplies spectra, in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.cli.compose import compose
from speechssl.config.verbs import BenchConfig
from speechssl.devices import autocast, resolve_device
from speechssl.model.transformer import PositionalConvolution
from tests.benchmarks.side_by_side import Contest, Contestant, hold, make_parser


def convolve_1d(module: PositionalConvolution, x: Tensor) -> Tensor:
    """Convolve (B, T, D) with `F.conv1d`."""
    conv = module.conv
    y = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, padding=conv.padding[0], groups=conv.groups)
    return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


def convolve_contiguous(module: PositionalConvolution, x: Tensor) -> Tensor:
    """Convolve (B, T, D) with `F.conv1d` on a copy whose channels lie apart."""
    conv = module.conv
    y = F.conv1d(x.transpose(1, 2).contiguous(), conv.weight, conv.bias, padding=conv.padding[0], groups=conv.groups)
    return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


def multiply_gathered(module: PositionalConvolution, x: Tensor) -> Tensor:
    """Gather what each frame's taps see and multiply, group by group: (B, T, D)."""
    batch, num_frames, dim = x.shape
    groups, (_, width, kernel) = module.conv.groups, module.conv.weight.shape
    padded = F.pad(x, (0, 0, kernel // 2, kernel - 1 - kernel // 2))
    seen = padded.unfold(1, kernel, 1).view(batch, num_frames, groups, width, kernel)
    seen = seen.permute(2, 0, 1, 3, 4).reshape(groups, batch * num_frames, width * kernel)
    weight = module.conv.weight.view(groups, dim // groups, width * kernel)
    y = torch.baddbmm(module.conv.bias.view(groups, 1, -1), seen, weight.transpose(1, 2))
    return F.gelu(y.view(groups, batch, num_frames, -1).permute(1, 2, 0, 3).reshape(batch, num_frames, dim))


def multiply_spectra(module: PositionalConvolution, x: Tensor) -> Tensor:
    """Multiply the spectra of frames and kernels, in float32: (B, T, D)."""
    batch, num_frames, dim = x.shape
    groups, (_, width, kernel) = module.conv.groups, module.conv.weight.shape
    with torch.autocast(x.device.type, enabled=False):
        size = 1 << (num_frames + kernel - 1).bit_length()
        frames = torch.fft.rfft(F.pad(x.float(), (0, 0, kernel // 2, 0)), size, dim=1)
        taps = torch.fft.rfft(module.conv.weight.float(), size, dim=2).conj()
        frames = frames.view(batch, -1, groups, width).permute(2, 1, 0, 3)
        taps = taps.view(groups, dim // groups, width, -1).permute(0, 3, 2, 1)
        y = torch.fft.irfft((frames @ taps).permute(2, 1, 0, 3).reshape(batch, -1, dim), size, dim=1)
        return F.gelu(y[:, :num_frames] + module.conv.bias)


WAYS: dict[str, Callable[[PositionalConvolution, Tensor], Tensor]] = {
    "ours": lambda module, x: module(x),
    "1-D": convolve_1d,
    "contiguous": convolve_contiguous,
    "gathered": multiply_gathered,
    "fft": multiply_spectra,
}


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = make_parser(str(__doc__).splitlines()[0]).parse_intermixed_args(words)
    config: BenchConfig = compose("bench", ["pretrain", *options.words])
    device = resolve_device(config.device)
    precision = "bf16" if config.precision == "auto" else config.precision
    title = f"Positions, {config.model.name}, {config.batch} × {config.seconds:g} s, {precision}"
    build = partial(build_contestant, config, device, precision)
    contest = Contest(title, "tests.benchmarks.positions", words, device, build, list(WAYS))
    print(hold(contest, options, config.warmup_steps))


def build_contestant(config: BenchConfig, device: torch.device, precision: str, name: str) -> Contestant:
    """Build one of `WAYS`; a run is a forward and a backward."""
    network, num_samples = config.model, round(config.seconds * SAMPLE_RATE)
    num_frames = network.count_frames(num_samples)
    torch.manual_seed(config.seed)
    module = PositionalConvolution(network).to(device)
    x = torch.randn(config.batch, num_frames, network.model_dim, device=device, requires_grad=True)

    def run() -> None:
        with autocast(device, precision):
            y = WAYS[name](module, x)
        y.float().square().sum().backward()
        x.grad = None
        module.zero_grad()

    width = network.model_dim // network.position_groups
    flop = 6.0 * config.batch * num_frames * network.model_dim * width * network.position_kernel
    return Contestant(name, precision, run, config.batch * config.seconds, flop)


if __name__ == "__main__":
    main()
