"""Configs trained with several seeds each: mean and deviation of their metrics."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detector.checkpoints.checkpoint import read_checkpoint
from detector.config.loader import config_to_dict, differences
from detector.config.schema import Config
from detector.errors import ConfigError
from detector.reports import figure
from detector.system.atomic import make_folder, write_json
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

Metrics = dict[str, float]


class Spread(NamedTuple):
    """Of a metric over the seeds that have something to score: a split drawn by the seed may have no small object."""

    mean: float | None  # None where no seed has
    deviation: float | None  # of a sample; None for fewer than two
    values: list[float | None]


def train_seeds(
    config: Config, name: str, runs: Path, seeds: Sequence[int], device: torch.device
) -> dict[int, Metrics] | None:
    """The best checkpoint's metrics and the seconds of training, for each seed; None if a signal stopped it before.

    The runs are ``runs/NAME_seedN``. ``runs/NAME_seeds.json`` keeps what is done, so the same call continues.
    """
    table = runs / f"{name}_seeds.json"
    make_folder(runs)
    asked = json.loads(json.dumps(config_to_dict(config) | {"seed": None}))
    done = _done(table, asked)
    for seed in seeds:
        if str(seed) in done:
            continue
        run = RunFolder.named(runs, f"{name}_seed{seed}")
        print(f"{name}: seed {seed}", file=sys.stderr)
        if not fit(config.model_copy(update={"seed": seed}), run, device, resume=True):
            return None
        results = json.loads(run.results.read_text(encoding="utf-8"))
        done[str(seed)] = read_checkpoint(run.best)["metrics"] | {"train_seconds": results["train_seconds"]}
        write_json(table, {"config": asked, "seeds": done})
    return {seed: done[str(seed)] for seed in seeds}


def _done(table: Path, asked: dict[str, Any]) -> dict[str, Metrics]:
    """What is done, by seed. Raises :class:`detector.errors.ConfigError` where it was done by another config."""
    if not table.exists():
        return {}
    try:
        before = json.loads(table.read_text(encoding="utf-8"))
        config, done = before["config"], dict(before["seeds"])
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(f"{table}: is not what compare writes; remove it, or give another --runs") from None
    for key, was, now in differences(config, asked):
        raise ConfigError(f"{table}: {key} was {was}, is {now}; use the same, or give another --runs")
    return done


def spreads(by_seed: Mapping[int, Metrics]) -> dict[str, Spread]:
    """Mean and deviation of each metric that every seed has; whole numbers, such as ``max_detections``, are none."""
    rows = list(by_seed.values())
    found = {}
    for name, first in rows[0].items():
        if isinstance(first, float) and all(name in row for row in rows):
            values = [row[name] if row[name] >= 0 else None for row in rows]
            known = [value for value in values if value is not None]
            mean = statistics.fmean(known) if known else None
            found[name] = Spread(mean, statistics.stdev(known) if len(known) > 1 else None, values)
    return found


def as_text(columns: Mapping[str, Mapping[str, Spread]]) -> str:
    """A table of metrics by config."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    cells = {config: [_cell(column.get(name)) for name in names] for config, column in columns.items()}
    lines = [["metric", *names]] + [[config, *own] for config, own in cells.items()]
    widths = [max(map(len, line)) for line in lines]
    rows = zip(*lines, strict=True)
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell(spread: Spread | None) -> str:
    if spread is None or spread.mean is None:
        return "–"
    known, count = sum(value is not None for value in spread.values), len(spread.values)
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.3f}"
    return figure(spread.mean) + deviation + ("" if known == count else f" ({known} of {count} seeds)")
