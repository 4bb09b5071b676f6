"""Lines of progress for people."""

from __future__ import annotations

from speechssl.objectives.protocol import Metrics

SHOWN = ("loss", "loss_contrastive", "accuracy", "hard_perplexity", "wer", "cer", "grad_norm", "lr", "audio_s_per_s")


def format_progress(update: int, total: int, split: str, metrics: Metrics) -> str:
    """Write one plain line of progress: the metrics that a user looks at first."""
    parts = [f"{name} {_format(metrics[name])}" for name in SHOWN if name in metrics]
    return f"{split} {update}/{total}  " + "  ".join(parts)


def _format(value: float | list[float]) -> str:
    if isinstance(value, list):
        return "+".join(f"{item:.0f}" for item in value)
    return f"{value:.2e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"
