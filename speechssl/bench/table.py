"""The table that `speechssl bench` ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechssl.printable import format_columns, make_printable

_MEANINGS = {
    "data": "waiting for data",
    "front_end": "front-end",
    "transformer": "transformer",
    "transformer/positions": "  positions",
    "transformer/attention": "  attention",
    "transformer/convolution": "  convolution",
    "transformer/rest": "  feed-forward, norms",
    "loss": "quantizer and loss",
    "optimizer": "optimizer",
    "metrics": "metrics",
    "pooling": "means over time",
}


def format_table(result: Mapping[str, Any]) -> str:
    """Lay the result out for a terminal: what was measured, the figures, and the time of a step by part."""
    what = f"{result['bench']} {result['model']}, {result['batch']} × {result['seconds']:g} s, {result['precision']}"
    where = f"{result['device_name']} ({result['device']}, {result['threads']} threads)"
    rows = [
        ("audio", f"{result['audio_s_per_s']:.1f} s/s", f"± {result['spread_percent'] / 2:.1f} % (quartiles)"),
        ("step", f"{1000 * result['step_s']:.1f} ms", f"median of {result['steps']}"),
        *_list_compute(result),
        *_list_memory(result),
        *_list_parts(result),
    ]
    return f"{make_printable(f'{what}; {where}')}\n{format_columns(rows, right={1})}"


def _list_compute(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if "share_of_peak" not in result:
        opened, first = result["build_s"], result["first_step_s"]
        return [("first batch", f"{opened + first:.2f} s", f"{opened:.2f} s of it for manifest and plan")]
    rate, peak = result["gflop_per_s"], result["peak_gflop_per_s"]
    return [
        ("work", f"{result['gflop_per_audio_s']:.2f} GFLOP", "for each second of audio"),
        ("share of peak", f"{100 * result['share_of_peak']:.1f} %", f"{rate:.0f} of {peak:.0f} GFLOP/s, measured"),
    ]


def _list_memory(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    peak, worker = result["peak_mib"], result.get("worker_mib")
    rows = [] if peak is None else [("peak memory", f"{peak:.0f} MiB", "")]
    return rows if worker is None else [*rows, ("one worker", f"{worker:.0f} MiB", "shared pages by their share")]


def _list_parts(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    parts = result["parts_s"]
    total = sum(parts.values()) or 1.0
    inner = {f"transformer/{name}": seconds for name, seconds in result.get("transformer_s", {}).items()}
    parts = parts | inner
    ordered = [name for name in _MEANINGS if name in parts]
    meanings = _MEANINGS | ({"loss": "head and loss"} if result["bench"] == "ctc" else {})
    return [(meanings[name], f"{1000 * parts[name]:.1f} ms", f"{100 * parts[name] / total:.1f} %") for name in ordered]
