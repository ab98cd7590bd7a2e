"""The example of a sweep: stopped and started again, no trial is lost or done twice."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import detector
from detector.config.loader import load_config

SWEEP = str(Path(__file__).resolve().parent.parent / "examples/sweep.py")


def test_a_stopped_sweep_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked: list[str] = []

    def train(config: str, overrides: list[str], name: str, runs: Path, resume: bool) -> Path:
        settings = load_config(config, overrides)  # the keys exist
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        assert resume
        (runs / name).mkdir()
        (runs / name / "results.json").write_text(json.dumps({"best": settings.train.optimizer.lr}))
        return runs / name

    monkeypatch.setattr(detector, "train", train, raising=False)
    given = ["--config", "quickstart.yaml", "--runs", str(tmp_path), "--trials", "3", "train.epochs=1"]
    monkeypatch.setattr(sys, "argv", [SWEEP, *given])
    with pytest.raises(KeyboardInterrupt):
        runpy.run_path(SWEEP, run_name="__main__")
    for _ in range(2):  # the second time, all is done
        runpy.run_path(SWEEP, run_name="__main__")
    assert len(asked) == 4
    assert asked[1] == asked[2]  # the trial that was stopped
    results: dict[str, Any] = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/results.json")
    }
    assert results.keys() == set(asked)
    best = max(results, key=lambda name: results[name]["best"])
    assert f"best: {results[best]['best']:.4f} by {tmp_path / best}" in capsys.readouterr().out
