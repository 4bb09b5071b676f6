"""Makes tests/parity/goldens/fairseq.json: the loss of fairseq's wav2vec 2.0, written out in NumPy, in float64.

fairseq itself no longer installs. What is transcribed here, from its published source, formula by formula:

- `modules/gumbel_vector_quantizer.py`, `GumbelVectorQuantizer.forward`: code and probability perplexity, the hard
  choice with the gradient of the soft one;
- `models/wav2vec/wav2vec2.py`, `compute_preds` (cosine over the temperature, the target first, negatives equal to the
  target become -inf), `get_extra_losses` (diversity), `features_pen`, and `set_num_updates` of the quantizer;
- `criterions/wav2vec_criterion.py`: cross entropy summed over masked frames, each extra loss times its weight and the
  number of masked frames, logged per masked frame and in bits.

It imports nothing of speechssl. Gradients are central differences; for the choice of codes, which has no derivative,
the choice is held and the soft part moves, which is what the straight-through gradient means.

    python tools/make_fairseq_goldens.py [folder]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Values = dict[str, Array]

ROWS, MASKED, FRAMES, NEGATIVES = 2, 7, 12, 5
GROUPS, CODES, CHANNELS, CODE_DIM, TARGET_DIM = 2, 4, 6, 8, 5
TEMPERATURE, LOGIT_TEMPERATURE = 1.7, 0.1
DIVERSITY_WEIGHT, FEATURE_WEIGHT = 0.1, 10.0
STEP = 1e-6


def draw() -> tuple[Values, npt.NDArray[np.int64]]:
    """Draw what the formula takes: everything that has a gradient, the noise, and the negatives of each frame."""
    rng = np.random.default_rng(20)
    values = {
        "raw_features": rng.normal(0, 1, (ROWS, FRAMES, CHANNELS)),
        "features": rng.normal(0, 1, (ROWS, MASKED, CHANNELS)),
        "code_weight": rng.normal(0, 1, (GROUPS * CODES, CHANNELS)),
        "code_bias": rng.normal(0, 0.1, GROUPS * CODES),
        "codebook": rng.uniform(0, 1, (GROUPS, CODES, CODE_DIM // GROUPS)),
        "target_weight": rng.normal(0, 0.5, (TARGET_DIM, CODE_DIM)),
        "target_bias": rng.normal(0, 0.1, TARGET_DIM),
        "predictions": rng.normal(0, 1, (ROWS, MASKED, TARGET_DIM)),
        "noise": rng.gumbel(0, 1, (ROWS, MASKED, GROUPS, CODES)),
    }
    others = rng.integers(0, MASKED - 1, (ROWS, MASKED, NEGATIVES))
    own = np.arange(MASKED)[None, :, None]
    return values, others + (others >= own)


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def score_codes(values: Values) -> Array:
    """Logits of the codes, (rows, masked, groups, codes)."""
    scores = values["features"] @ values["code_weight"].T + values["code_bias"]
    return np.asarray(scores.reshape(ROWS, MASKED, GROUPS, CODES))


def compute(values: Values, negatives: npt.NDArray[np.int64], held: Values | None = None) -> dict[str, Any]:
    """Compute all that fairseq computes from its inputs.

    Args:
        values: from `draw`.
        negatives: (rows, masked, negatives) indices among the row's masked frames.
        held: `choice` and `soft` of the point at which a gradient is taken.
    """
    scores = score_codes(values)
    soft = softmax((scores + values["noise"]) / TEMPERATURE)
    if held is None:
        codes = (scores + values["noise"]).argmax(-1)
        choice = np.eye(CODES)[codes]
    else:
        codes = held["choice"].argmax(-1)
        choice = held["choice"] + soft - held["soft"]
    vectors = np.concatenate([choice[:, :, g] @ values["codebook"][g] for g in range(GROUPS)], axis=-1)
    targets = vectors @ values["target_weight"].T + values["target_bias"]
    logits = compare(values["predictions"], targets, codes, negatives)
    contrastive = -np.log(softmax(logits)[..., 0]).sum()
    mean_probs = softmax(scores).reshape(-1, GROUPS, CODES).mean(0)
    perplexity = np.exp(-(mean_probs * np.log(mean_probs + 1e-7)).sum(-1))
    hard = np.eye(CODES)[scores.argmax(-1)].reshape(-1, GROUPS, CODES).mean(0)
    count = ROWS * MASKED
    diversity = (GROUPS * CODES - perplexity.sum()) / (GROUPS * CODES)
    features = np.square(values["raw_features"]).mean()
    total = contrastive + count * (DIVERSITY_WEIGHT * diversity + FEATURE_WEIGHT * features)
    right = (logits[..., 0] >= logits.max(-1)) & ~(logits.argmin(-1) == 0)
    return {
        "codes": codes, "vectors": vectors, "targets": targets, "logits": logits, "contrastive": contrastive,
        "perplexity": perplexity, "code_perplexity": np.exp(-(hard * np.log(hard + 1e-7)).sum(-1)),
        "diversity": diversity, "feature_penalty": features, "total": total, "right": right.sum(), "count": count,
        "logged_loss": total / count / np.log(2), "logged_contrastive": contrastive / count / np.log(2),
        "held": {"choice": choice, "soft": soft},
    }  # fmt: skip


def compare(predictions: Array, targets: Array, codes: Array, negatives: npt.NDArray[np.int64]) -> Array:
    """Cosine of each prediction with its target and its negatives over the temperature; equals of the target: -inf."""
    rows = np.arange(ROWS)[:, None, None]
    candidates = np.concatenate([targets[:, :, None], targets[rows, negatives]], axis=2)
    same = (codes[rows, negatives] == codes[:, :, None]).all(-1)
    dots = (candidates * predictions[:, :, None]).sum(-1)
    norms = np.linalg.norm(candidates, axis=-1) * np.linalg.norm(predictions, axis=-1)[..., None]
    logits = dots / norms / LOGIT_TEMPERATURE
    logits[:, :, 1:][same] = -np.inf
    return np.asarray(logits)


def differentiate(function: Callable[[Values], float], values: Values, name: str) -> Array:
    """Central differences of a function in one of its inputs."""
    gradient = np.zeros_like(values[name])
    for index in np.ndindex(gradient.shape):
        ends = []
        for sign in (1, -1):
            moved = values[name].copy()
            moved[index] += sign * STEP
            ends.append(function({**values, name: moved}))
        gradient[index] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient


def make() -> dict[str, Any]:
    """Make everything that the file holds."""
    values, negatives = draw()
    result = compute(values, negatives)
    held = result.pop("held")

    def total(moved: Values) -> float:
        return float(compute(moved, negatives, held)["total"])

    gradients = {name: differentiate(total, values, name).tolist() for name in values if name != "noise"}
    updates = (0, 1, 1000, 100_000, 277_258, 277_260, 400_000)
    return {
        "settings": {"temperature": TEMPERATURE, "logit_temperature": LOGIT_TEMPERATURE},
        "inputs": {name: value.tolist() for name, value in values.items()} | {"negatives": negatives.tolist()},
        "outputs": {name: np.asarray(value).tolist() for name, value in result.items()},
        "gradients": gradients,
        "temperatures": {str(n): max(2.0 * 0.999995**n, 0.5) for n in updates},
    }


def main() -> None:
    """Write the file into the folder that is given, or into the tests."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "tests" / "parity" / "goldens"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(make()).replace("-Infinity", '"-inf"')
    (folder / "fairseq.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
