"""The collapse watch: notices a pretraining run that learns nothing any more, stops it, and warns of one that may.

Healthy runs pass through hard perplexities of 3 % of the codebook, and every run begins at the loss of guessing, so one
sign at one moment says nothing: two must hold together, and for long. `recipes/collapse` tries the limits on twenty
healthy and twenty provoked runs. Sources of the signs and remedies: fairseq issues 3109, 3300, 3661, 3735; transformers
issues 12934, 14387.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.objectives.codes import Teacher
from speechssl.objectives.losses import compute_perplexity
from speechssl.objectives.protocol import Health, LossTerms, Metrics

HELD_UPDATES = 250
TAKEN_BACK = 2
"""An update without the sign takes back so many with it. A collapsed run has a good batch now and then: counting 300 in
a row, which was tried first, one lucky stretch began the count again."""

FRAMES = 10_000
"""Masked frames that a hard perplexity is taken over: one batch has too few to use a codebook of 320."""

PERPLEXITY_PER_GROUP = 1.5
"""One code a codebook is a perplexity of 1. Provoked collapses were at 1.00 to 1.01, healthy runs above 10."""

REMOVED_SHARE = 0.5
"""Negatives equal to the target are removed. Where most are, the loss may fall, though nothing is told apart."""

LOSS_MARGIN_BITS = 0.02
"""How near the loss of guessing counts as guessing."""

SPREAD_SHARE = FEATURES_SHARE = 0.01
"""Of what differed in the first update: fresh weights tell frames apart already."""

EARLY_PERPLEXITY, EARLY_REMOVED, EARLY_SPREAD, EARLY_FEATURES = 2.0, 0.25, 0.02, 0.05
"""What is worth a warning: half way from what healthy runs show to what stops one."""

EARLY_UPDATES = {"codes": 100, "contexts": 100, "features": 100, "guessing": 400}
"""For how many updates each early sign must hold; guessing alone is how every run begins."""

REMEDIES = (
    "What has helped others: a lower training.lr, more audio an update (training.update_s), longer crops, "
    "a longer warm-up (training.warmup_share), a model with layer norm and a normalised waveform; "
    "training.on_collapse=warn goes on regardless"
)

CONSTANT_UPDATES = 300
CONSTANT_PERPLEXITY = 1.5
"""What stops a run that predicts codes: about one code for all frames, in so many updates in a row."""

FEW_CODES = 0.01
"""Targets that use less than this share of the codes leave little to learn. Log-mel that is not normalised over the
crop uses 15 of 8,192."""

LEAST_MASKED = 0.2
"""Published trainings mask 40 to 60 % of the frames. `model.mask.prob` is easily taken for that share."""


class CollapseWatch:
    """Counts for how many updates the signs of a collapse have held.

    The collapses that are known: all frames get the same codes (hard perplexity near 1 in each codebook, and most
    negatives equal the target), or all similarities become equal: the loss is that of guessing, and context vectors
    do not differ between frames, or features do not (then Gumbel noise alone chooses codes, and all are in use).
    What guessing costs depends on how many negatives are left: log2(K + 1) bits where none was removed.

    Args:
        num_groups: codebooks G.
        num_codes: codes V.
        warmup_updates: until then guessing alone is no sign.
    """

    def __init__(self, num_groups: int, num_codes: int, warmup_updates: int = 0) -> None:
        self.num_groups = num_groups
        self.counts = torch.zeros(num_groups, num_codes, dtype=torch.float64)
        self.perplexity = float("inf")
        self.held = 0
        self.early = dict.fromkeys(EARLY_UPDATES, 0)
        self.first_spread, self.first_variance = 0.0, 0.0
        self.warmup_updates = warmup_updates

    def observe(self, terms: LossTerms, metrics: Metrics, update: int) -> Health:
        """Take in one update.

        Args:
            terms: with `code_counts` (G, V), how often each code was chosen.
            metrics: of the update.
            update: its number.

        Returns:
            What is wrong, once the signs have held for 250 updates (an update without takes back two), and what looks
            like it, once early signs have held for 100.
        """
        if self.first_spread == 0.0:
            self.first_spread = _scalar(metrics["context_spread"])
            self.first_variance = _scalar(metrics["feature_variance"])
        self.counts += terms.stats["code_counts"].cpu()
        if float(self.counts[0].sum()) >= FRAMES:
            self.perplexity = float(compute_perplexity(self.counts / self.counts.sum(-1, keepdim=True)).sum())
            self.counts.zero_()
        sign = self._find_sign(metrics)
        self.held = self.held + 1 if sign else max(0, self.held - TAKEN_BACK)
        warning = self._warn(metrics, update)
        if not sign or self.held < HELD_UPDATES:
            return Health(warning=warning)
        return Health(
            f"pretraining has collapsed: for {self.held} updates up to {update}, {sign}. {REMEDIES}.", warning
        )

    def is_candidate(self, metrics: Metrics) -> bool:
        """Say whether metrics of a validation show no collapse: the loss of one that has collapsed can be very low."""
        hard = metrics["hard_perplexity"]
        perplexity = sum(hard) if isinstance(hard, list) else hard
        return not (self._same_codes(perplexity, metrics) or self._find_equal(metrics))

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered."""
        remembered = [self.perplexity, self.held, self.first_spread, self.first_variance, *self.early.values()]
        numbers = torch.tensor(remembered, dtype=torch.float64)
        return {"collapse.counts": self.counts.clone(), "collapse.numbers": numbers}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what was remembered."""
        self.counts = state["collapse.counts"].clone()
        self.perplexity, held, self.first_spread, self.first_variance, *early = state["collapse.numbers"].tolist()
        self.held = int(held)
        self.early = {name: int(count) for name, count in zip(EARLY_UPDATES, early, strict=True)}

    def _find_sign(self, metrics: Metrics) -> str:
        if self._same_codes(self.perplexity, metrics):
            removed = 100 * _scalar(metrics["removed_negatives"])
            figures = f"hard perplexity {self.perplexity:.2f}, {removed:.0f} % of negatives removed"
            return f"all frames got the same codes ({figures})"
        equal = self._find_equal(metrics)
        guessing = f"the loss is that of guessing ({_scalar(metrics['loss_of_guessing']):.2f} bits)"
        return f"{guessing} and {equal} no longer differ between frames" if equal else ""

    def _warn(self, metrics: Metrics, update: int) -> str:
        """Count for how long each early sign has held, and put those that have held long enough into a sentence."""
        signs = self._find_early_signs(metrics, update)
        self.early = {name: self.early[name] + 1 if name in signs else 0 for name in EARLY_UPDATES}
        held = [
            f"for {self.early[name]} updates {sign}"
            for name, sign in signs.items()
            if self.early[name] >= EARLY_UPDATES[name]
        ]
        return f"pretraining may be collapsing (update {update}): {', and '.join(held)}. {REMEDIES}." if held else ""

    def _find_early_signs(self, metrics: Metrics, update: int) -> dict[str, str]:
        signs = {}
        removed, variance = _scalar(metrics["removed_negatives"]), _scalar(metrics["feature_variance"])
        is_guessing = _is_guessing(metrics)
        if self.perplexity < EARLY_PERPLEXITY * self.num_groups and removed > EARLY_REMOVED:
            signs["codes"] = f"few codes are used (hard perplexity {self.perplexity:.2f})"
        if is_guessing and _scalar(metrics["context_spread"]) < EARLY_SPREAD * self.first_spread:
            signs["contexts"] = "the loss is that of guessing and context vectors hardly differ between frames"
        if variance < EARLY_FEATURES * self.first_variance:
            signs["features"] = f"the encoder's features hardly change over time (feature variance {variance:.2g})"
        if is_guessing and update > self.warmup_updates:
            signs["guessing"] = f"the loss has been that of guessing ({_scalar(metrics['loss_of_guessing']):.2f} bits)"
        return signs

    def _same_codes(self, perplexity: float, metrics: Metrics) -> bool:
        few = perplexity < PERPLEXITY_PER_GROUP * self.num_groups
        return few and _scalar(metrics["removed_negatives"]) > REMOVED_SHARE

    def _find_equal(self, metrics: Metrics) -> str:
        """Name what no longer differs between frames, where the loss is that of guessing."""
        if not _is_guessing(metrics):
            return ""
        if _scalar(metrics["context_spread"]) < SPREAD_SHARE * self.first_spread:
            return "context vectors"
        return "features" if _scalar(metrics["feature_variance"]) < FEATURES_SHARE * self.first_variance else ""


class CodesWatch:
    """Watches the prediction of codes: of predictions that are all alike, of masks, of targets, and of the teacher.

    Args:
        num_codes: V.
        mask_prob: `model.mask.prob`.
        warmup_updates: until then predictions that are all alike are no sign.
        teacher: must stay as it was when the run began; None without one.

    Attributes:
        counts: (V,) how often each code was a target in all updates so far.
    """

    def __init__(
        self, num_codes: int, mask_prob: float, warmup_updates: int = 0, teacher: Teacher | None = None
    ) -> None:
        self.counts, self.held = torch.zeros(num_codes, dtype=torch.float64), 0
        self.mask_prob, self.warmup_updates, self.teacher = mask_prob, warmup_updates, teacher

    def observe(self, terms: LossTerms, metrics: Metrics, update: int) -> Health:
        """Take in one update: stop where nothing but one code is predicted for long, warn of masks and codes."""
        self.counts += terms.stats["code_counts"].cpu()
        # Who knows only how often each code comes pays the entropy of the targets.
        is_guessing = _scalar(metrics["loss_codes"]) > _scalar(metrics["target_entropy"]) - LOSS_MARGIN_BITS
        is_constant = _scalar(metrics["prediction_perplexity"]) < CONSTANT_PERPLEXITY
        self.held = self.held + 1 if is_guessing and is_constant and update > self.warmup_updates else 0
        signs = self._find_early_signs(metrics)
        warning = f"masked_codes (update {update}): {', and '.join(signs)}" if signs else ""
        if self.held < CONSTANT_UPDATES:
            return Health(warning=warning)
        problem = (
            f"pretraining has collapsed: for {self.held} updates up to {update}, one code is predicted for all frames "
            "and the loss is no lower than the entropy of the targets. Try a lower training.lr or a longer "
            "training.warmup_share; training.on_collapse=warn goes on regardless"
        )
        return Health(problem, warning)

    def is_candidate(self, metrics: Metrics) -> bool:
        """Any checkpoint may be the best: a collapse has no low loss here."""
        return True

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered, with the digest of the teacher."""
        held = {"codes.counts": self.counts.clone(), "codes.held": torch.tensor([self.held])}
        return held if self.teacher is None else held | {"codes.teacher": self.teacher.digest()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what was remembered.

        Raises:
            ConfigError: the teacher has other weights, or other given clusters, than when the run began.
        """
        if self.teacher is not None and not torch.equal(state["codes.teacher"], self.teacher.digest()):
            what = "weights" if self.teacher.clusters is None else "weights and codes"
            raise ConfigError(
                f"`objective.teacher` must have the {what} that the run began with, but those of "
                f"{self.teacher.name} have changed (another out= starts a new run)"
            )
        self.counts, self.held = state["codes.counts"].clone(), int(state["codes.held"])

    def _find_early_signs(self, metrics: Metrics) -> list[str]:
        signs = []
        # Spans overlap, so that n starts of length l leave about exp(-n · l) of the frames.
        expected, masked = 1 - math.exp(-self.mask_prob), _scalar(metrics["masked_share"])
        if masked < LEAST_MASKED or not 0.5 < masked / max(expected, 1e-9) < 1.5:
            told = f"model.mask.prob={self.mask_prob:g} should give {expected:.0%}"
            signs.append(f"{masked:.0%} of the frames are masked, where {told}, and 40 to 60% are usual")
        used = _scalar(metrics["code_perplexity"])
        if float(self.counts.sum()) >= FRAMES and used < max(FEW_CODES * len(self.counts), CONSTANT_PERPLEXITY):
            signs.append(f"the targets use {used:.1f} of {len(self.counts)} codes in effect")
        return signs


def _is_guessing(metrics: Metrics) -> bool:
    """Say whether the loss is that of guessing; NaN, of which nothing can be said, is not."""
    return abs(_scalar(metrics["loss_contrastive"]) - _scalar(metrics["loss_of_guessing"])) < LOSS_MARGIN_BITS


def _scalar(value: float | list[float]) -> float:
    assert isinstance(value, float | int), f"a number was expected, not {value!r}"
    return float(value)
