"""A run's folder: what training writes, and what it resumes from."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import save_config
from detector.config.schema import Config
from detector.errors import ConfigError
from detector.evaluation.tally import Kept, Tally
from detector.structures import Category
from detector.system.atomic import LOCK, append_line, atomic_write, make_folder, only_one, sync, write_json
from detector.system.device import environment
from detector.training.trackers import Trackers


def kept_labels(run: Path) -> Path:
    """The folder beside a run, and for all runs beside it, that keeps what was read from many label files.

    It is there before the run's own folder is, and a run's data is read several times before its first step.
    """
    return run.parent / ".labels"


class RunFolder:
    """``runs/NAME/``: config.yaml, environment.json, first_batch.jpg, metrics.jsonl, results.json, last.pt, best.pt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.trackers: Trackers | None = None  # that get what append writes
        self._best_tally: tuple[IO[bytes], tuple[Kept, ...], dict[str, Any]] | None = None
        self.saved_at = time.monotonic()  # when this process started or last wrote last.pt
        self.is_locked = False
        self._lock = contextlib.ExitStack()

    @classmethod
    def named(cls, runs: str | Path, name: str) -> RunFolder:
        """``runs/name``. Raises :class:`detector.errors.ConfigError` for a name that leads elsewhere."""
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
            raise ConfigError(f"--name {name!r}: is not the name of a folder in {runs}/; --runs says where runs are")
        return cls(Path(runs) / name)

    def check_free(self) -> None:
        """Refuse an existing folder: a run is never overwritten."""
        if self.path.exists():
            raise ConfigError(f"{self.path}: the run exists; continue it with --resume, or choose another --name")

    def create(self) -> None:
        make_folder(self.path, may_exist=False)
        self.lock()

    def lock(self) -> None:
        """Keep other processes out of the folder until :meth:`unlock`. Raises an error if one is in it."""
        self._lock.enter_context(only_one(self.path))
        self.is_locked = True

    def unlock(self) -> None:
        self.is_locked = False
        self._lock.close()

    def describe(self, config: Config) -> None:
        save_config(config, self.path / "config.yaml")
        write_json(self.path / "environment.json", {**environment(), "command": sys.argv})

    def append(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        append_line(self.metrics, json.dumps(row))
        if self.trackers:
            self.trackers.show(row)

    def save_last(self, config: Config, categories: list[Category], state: dict[str, Any]) -> None:
        """Write ``last.pt``, after flushing metrics.jsonl to disk, so that a resumed run lacks no line."""
        sync(self.metrics)
        save_checkpoint(self.last, config, categories, state)
        self.saved_at = time.monotonic()

    def keep_best(self, tally: Tally, metrics: dict[str, Any]) -> None:
        """Keep the best epoch's tally and metrics for this process; the rows on disk, as they can be large."""
        self._best_tally = None
        with contextlib.suppress(OSError):  # without room on disk, the best model predicts again
            file = TemporaryFile(dir=self.path)  # noqa: SIM115 (it lives as long as this object)
            np.save(file, tally.rows)
            self._best_tally = file, tally.worst, metrics

    @property
    def has_best(self) -> bool:
        return self._best_tally is not None

    @property
    def best_tally(self) -> tuple[Tally, dict[str, Any]] | None:
        """What :meth:`keep_best` kept last, without the sums; None if the best epoch was another process's."""
        if self._best_tally is None:
            return None
        file, worst, metrics = self._best_tally
        file.seek(0)
        return Tally(np.load(file), None, worst), metrics

    def is_shared(self) -> bool:
        """Whether this machine sees the main rank's folder, by the lock in it."""
        return (self.path / LOCK).exists()

    def forget_after(self, step: int, evaluated_step: int) -> None:
        """Drop the lines of steps that a resumed run repeats, and a line that a kill cut short."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                if row["step"] <= (evaluated_step if "evaluation" in row else step):
                    kept.append(line + "\n")
            except (ValueError, TypeError, KeyError):
                continue
        with atomic_write(self.metrics) as file:
            file.writelines(kept)

    def write_results(self, results: dict[str, Any]) -> None:
        write_json(self.results, results)
