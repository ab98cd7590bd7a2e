"""A run's folder: what training leaves behind, and where it continues."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from detector.checkpoint import versions
from detector.config import Config
from detector.configfile import save_config
from detector.errors import ConfigError


class RunFolder:
    """``runs/NAME/``: config.yaml, environment.json, first_batch.jpg, metrics.jsonl, results.json, last.pt, best.pt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.board: Any = None  # a SummaryWriter, where append should write for TensorBoard too

    def check_free(self) -> None:
        """A run is never written over."""
        if self.path.exists():
            raise ConfigError(f"{self.path}: the run exists; continue it with --resume, or choose another --name")

    def create(self) -> None:
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be made: {error.strerror}") from None

    def describe(self, config: Config) -> None:
        save_config(config, self.path / "config.yaml")
        environment = {
            **versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "command": sys.argv,
        }
        (self.path / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board:
            numbers = {"train": row} | {key: value for key, value in row.items() if isinstance(value, dict)}
            for section, values in numbers.items():
                for key, value in values.items():
                    if isinstance(value, int | float) and key != "step":
                        self.board.add_scalar(f"{section}/{key}", value, row["step"])
            self.board.flush()

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will do again, and a line that a kill cut short."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["step"] <= step:
                kept.append(line + "\n")
        partial = self.metrics.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.metrics)

    def write_results(self, results: dict[str, Any]) -> None:
        partial = self.results.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.results)


def tensorboard_writer() -> Any:
    """TensorBoard's ``SummaryWriter``, from the extra ``log``."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("train.tensorboard: TensorBoard is not installed; pip install tensorboard") from None
    return SummaryWriter
