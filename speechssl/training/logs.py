"""Everything that a run writes while it trains, its checkpoints apart: one object, which the trainer tells things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechssl.checkpoints.layout import SKIPPED
from speechssl.checkpoints.snapshot import Progress
from speechssl.config.training import LoggingConfig
from speechssl.data.dataset import LeftOut
from speechssl.training.left_out import LeftOutTable
from speechssl.training.metrics import JsonLinesWriter
from speechssl.training.trackers import (
    MetricsWriter,
    MlflowWriter,
    TensorBoardWriter,
    WandbWriter,
    import_tracker,
    open_ledger,
)


@dataclass
class RunLogs:
    """Metrics, skipped updates, and utterances that cannot be read. Until it is opened it takes no note of anything.

    Attributes:
        folder: of the run; None writes nowhere (a probe, or a rank that is not the first).
        config: which trackers there are.
        run: configuration of the run, which the trackers show.
        sizes: utterances behind each key, such as `data.train`.
    """

    folder: Path | None = None
    config: LoggingConfig = field(default_factory=LoggingConfig)
    run: dict[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writers: list[MetricsWriter] = []
        self.skipped: JsonLinesWriter | None = None
        self.left_out: LeftOutTable | None = None

    @contextmanager
    def opened(self, progress: Progress) -> Iterator[None]:
        """Write while inside, from where the run goes on: what was logged after its checkpoint is cut off first.

        Raises:
            ConfigError: the package of a tracker is not installed, or a log cannot be written.
        """
        if self.folder is None:
            yield
            return
        self._open(self.folder, progress)
        try:
            yield
        finally:
            for writer in (*self.writers, self.skipped):
                if writer is not None:
                    writer.close()

    def _open(self, folder: Path, progress: Progress) -> None:
        trackers = {"wandb": self.config.wandb_project, "mlflow": self.config.mlflow_experiment}
        asked = {name: value for name, value in trackers.items() if value}
        for name in asked:
            # Before anything is opened that would have to be closed again.
            import_tracker(name)
        # Before metrics.jsonl is cut back: what it holds has been sent.
        ledger = open_ledger(folder) if asked else None
        self.writers = [JsonLinesWriter(folder, progress.update, progress.validated_update)]
        if self.config.tensorboard:
            self.writers.append(TensorBoardWriter(folder, progress.update))
        for name, value in asked.items():
            assert ledger is not None
            tracker = WandbWriter if name == "wandb" else MlflowWriter
            self.writers.append(tracker(folder, value, self.run, ledger))
        self.skipped = JsonLinesWriter(folder, progress.update, name=SKIPPED)
        self.left_out = LeftOutTable(folder, self.sizes)

    def write(self, record: dict[str, Any]) -> None:
        """Log a record with `update` and `split`."""
        for writer in self.writers:
            writer.write(record)

    def write_skipped(self, record: dict[str, Any]) -> None:
        """Log an update that was skipped."""
        if self.skipped is not None:
            self.skipped.write(record)

    def note_left_out(self, key: str, found: Sequence[LeftOut], is_pass: bool) -> None:
        """Take note of utterances that cannot be read; see `LeftOutTable.note`."""
        if self.left_out is not None:
            self.left_out.note(key, found, is_pass)
