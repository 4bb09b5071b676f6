"""Which checkpoint the trainer calls best, and when it ends early."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from speechssl.checkpoints.snapshot import Progress
from speechssl.config.training import TrainingConfig
from speechssl.data.loader import Batch
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.objectives.ctc import CTCObjective
from speechssl.objectives.probe import Probe, ProbeObjective
from speechssl.objectives.protocol import LossTerms, Metrics
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.trainer import Trainer

NAN = float("nan")


class ScriptedRecogniser(ProbeObjective):
    """A probe whose validations, one an update, say what a script says: (WER, CER)."""

    best_metric, tie_metric = CTCObjective.best_metric, CTCObjective.tie_metric

    def __init__(self, script: list[tuple[float, float]], broken: int) -> None:
        super().__init__(Probe(1, 2, 2))
        self.script, self.broken = script, broken

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss, which is NaN in the validation of one update."""
        terms = super().compute(batch, update)
        is_broken = update == self.broken and not self.module.training
        return LossTerms(terms.sum * NAN, terms.count, terms.stats) if is_broken else terms

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Say what the script has for this update."""
        wer, cer = self.script[update - 1]
        return {**super().summarise(terms, update), "wer": wer, "cer": cer}


def make_batch(update: int) -> Batch:
    inputs = {"features": torch.ones(1, 1, 2), "labels": torch.zeros(1, 1, dtype=torch.int64)}
    plan = ForwardPlan(update, (SubBatch(update, update, (0,), 0),), True)
    return Batch(torch.zeros(1, 1), None, ["a"], plan, torch.ones(1, 1), inputs, [{"first": 0, "rows": 1}])


def train(
    script: list[tuple[float, float]], began: Progress | None = None, broken: int = 0, patience: int = 0
) -> Progress:
    def source(first: int, last: int) -> Iterator[list[Batch]]:
        for update in range(first, last + 1):
            yield [make_batch(update)]

    config = TrainingConfig(max_updates=len(script), validate_every=1, patience=patience)
    objective = ScriptedRecogniser(script, broken)
    trainer = Trainer(
        objective, config, source, Ranks(), "float32", 1, validate=lambda: iter([make_batch(0)]), is_quiet=True
    )
    trainer.state.progress = began or Progress()
    trainer.run()
    return trainer.progress


def test_among_equal_word_errors_fewer_letter_errors_are_best() -> None:
    cases = (
        ([(100.0, 100.0), (100.0, 94.0), (100.0, 81.9)], 3),
        ([(100.0, 94.0), (100.0, 97.0), (100.0, 94.0)], 1),
        ([(100.0, 81.0), (99.0, 85.0), (100.0, 70.0)], 2),
    )
    for script, best in cases:
        progress = train(script)
        assert (progress.best_update, progress.best_value, progress.best_tie) == (best, *script[best - 1])
    before = Progress(update=1, best_value=90.0, best_tie=80.0, best_update=1, validated_update=1)
    assert train([(90.0, 80.0), (91.0, 70.0)], before).best_update == 1


def test_a_validation_that_is_not_finite_is_never_the_best() -> None:
    assert train([(NAN, NAN)]).best_value is None
    assert train([(NAN, NAN), (80.0, 40.0), (NAN, 30.0), (70.0, NAN)]).best_update == 2
    assert train([(float("inf"), 50.0), (80.0, 40.0), (90.0, 10.0)]).best_update == 2
    # An output of nothing but NaN decodes to some text, with a WER like any other: its loss tells.
    assert train([(90.0, 40.0), (80.0, 30.0)], broken=2).best_update == 1


def test_a_run_ends_when_validation_has_been_no_better_for_long() -> None:
    script = [(90.0, 40.0), (80.0, 40.0), (80.0, 41.0), (70.0, 30.0), (71.0, 30.0), (70.0, 30.0), (10.0, 10.0)]
    for patience, ends, best in ((0, 7, 7), (1, 3, 2), (2, 6, 4), (3, 7, 7)):
        progress = train(script, patience=patience)
        assert (progress.update, progress.best_update) == (ends, best)
        assert train(script, replace(progress), patience=patience) == progress, "nothing is left to do"
    assert train(script, train(script, patience=1), patience=2).update == 6, "more patience goes on"
