"""What processes of the tests do: a command, with a tiny network at hand; training writes its report on demand."""

from __future__ import annotations

from pathlib import Path

from networks import TINY

from detector.dev.stress import _run
from detector.models.backbones import BACKBONES
from detector.training import fitting


def run(command: str, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    BACKBONES["tiny"] = TINY
    if "WITH_REPORT" not in environment:  # it takes longer than a short training
        fitting.report_best = lambda *_: None
    _run(command, arguments, log, environment)
