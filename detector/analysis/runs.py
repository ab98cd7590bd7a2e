"""A table of run folders: how far each is, its best score and its times. Imports no torch, and writes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from detector.errors import DataError, near_path
from detector.system.atomic import user_of

TAIL = 2**17  # bytes at the end of metrics.jsonl that are read: some hundred lines


class Run(NamedTuple):
    """A run folder; None where nothing is known yet."""

    name: str
    task: str
    state: str  # running, finished, stopped (--resume continues), not begun
    step: int
    epoch: float
    epochs: float | None  # of the whole run
    metric: str | None  # that decides which checkpoint is the best
    best: float | None
    best_epoch: int | None
    seconds: float | None  # of training, at the last evaluation
    changed: float  # seconds since 1970


def list_runs(folder: Path) -> list[Run]:
    """The runs in ``folder``, by name. Raises DataError where there is no such folder, or no run in it."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder{near_path(folder)}")
    runs = [read_run(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    if not runs:
        raise DataError(f"{folder}: has no runs (folders with config.yaml, which train writes)")
    return runs


def read_run(folder: Path) -> Run:
    """What a run's small files say; a file that is missing or damaged says nothing."""
    config, results, rows = _config(folder / "config.yaml"), _results(folder / "results.json"), _tail(folder)
    steps = [row for row in rows if "loss" in row]
    last: dict[str, Any] = steps[-1] if steps else {"step": 0, "epoch": 0.0}
    train = config.get("train") or {}
    epochs = train.get("epochs")
    if train.get("steps") and last["epoch"]:
        epochs = train["steps"] * last["epoch"] / last["step"]
    files = [folder, *(folder / name for name in ("metrics.jsonl", "results.json", "last.pt"))]
    return Run(
        folder.name,
        config.get("task", "detection"),
        _state(folder, last, rows, train, epochs, results),
        last["step"],
        last["epoch"],
        epochs,
        *(results.get(key) for key in ("metric", "best", "best_epoch", "train_seconds")),
        changed=max(file.stat().st_mtime for file in files if file.exists()),
    )


def _state(
    folder: Path,
    last: dict[str, Any],
    rows: list[dict[str, Any]],
    train: dict[str, Any],
    epochs: float | None,
    results: dict[str, Any],
) -> str:
    if user_of(folder):
        return "running"
    if not last["step"]:
        return "not begun"
    patience = train.get("patience")
    since = [row for row in rows if "evaluation" in row and row["epoch"] > results.get("best_epoch", 0)]
    is_done = epochs is not None and last["epoch"] > epochs - 1e-6
    return "finished" if is_done or (patience and len(since) >= patience) else "stopped"


def _config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _results(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tail(folder: Path) -> list[dict[str, Any]]:
    """The last rows of metrics.jsonl."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # cut at the beginning, or by a kill
            continue
        if isinstance(row, dict) and "step" in row and "epoch" in row:
            rows.append(row)
    return rows


def as_text(runs: list[Run], now: float) -> str:
    """A table with a line per run."""
    head = ["run", "task", "state", "epoch", "metric", "best", "at epoch", "trained", "changed"]
    lines = [head, *(_cells(run, now) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(run: Run, now: float) -> list[str]:
    total = "?" if run.epochs is None else f"{run.epochs:.3g}"
    return [
        run.name,
        run.task,
        run.state,
        f"{run.epoch:.3g}/{total}",
        run.metric or "–",
        "–" if run.best is None or run.best < 0 else f"{run.best:.4f}",
        "–" if run.best_epoch is None else str(run.best_epoch),
        "–" if run.seconds is None else duration(run.seconds),
        f"{duration(now - run.changed)} ago",
    ]


def duration(seconds: float) -> str:
    """``"45 s"``, ``"12 min"``, ``"3.4 h"`` or ``"2.0 d"``."""
    for limit, divisor, unit in ((100, 1, "s"), (6_000, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86_400:.1f} d"
