"""``runs``: what a run's small files say of it, whole or damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from detector.__main__ import run_command
from detector.analysis.runs import duration, read_run


def make_run(folder: Path, config: str, steps: int, evaluations: list[float]) -> Path:
    """A run of 10 steps per epoch, evaluated after each epoch, with these scores."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    rows = [{"step": step, "epoch": step / 10, "loss": 1.0} for step in range(1, steps + 1)]
    for epoch, score in enumerate(evaluations, start=1):
        rows.insert(rows.index({"step": 10 * epoch, "epoch": epoch, "loss": 1.0}) + 1, {
            "step": 10 * epoch, "epoch": epoch, "evaluation": {"AP": score},
        })  # fmt: skip
        best = max(evaluations[:epoch])
        results = {
            "metric": "AP",
            "best": best,
            "best_epoch": evaluations.index(best) + 1,
            "train_seconds": 9.0 * epoch,
        }
        (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "done", "task: detection\ntrain: {epochs: 3}", 30, [0.1, 0.3, 0.2])
    make_run(tmp_path / "half", "train: {epochs: 3}", 25, [0.1, 0.4])
    make_run(tmp_path / "by steps", "train: {epochs: 12, steps: 15}", 15, [0.2])
    make_run(tmp_path / "impatient", "train: {epochs: 50, patience: 2}", 30, [0.5, 0.1, 0.2])
    make_run(tmp_path / "new", "train: {epochs: 3}", 0, [])
    (tmp_path / ".labels").mkdir()
    return tmp_path


def test_how_far_each_run_is(runs: Path) -> None:
    found = {path.name: read_run(path) for path in runs.iterdir() if path.name != ".labels"}
    assert {name: (run.state, run.step, run.epochs, run.best, run.best_epoch) for name, run in found.items()} == {
        "done": ("finished", 30, 3, 0.3, 2),
        "half": ("stopped", 25, 3, 0.4, 2),
        "by steps": ("finished", 15, 1.5, 0.2, 1),
        "impatient": ("finished", 30, 50, 0.5, 1),
        "new": ("not begun", 0, 3, None, None),
    }
    for process, state in ((os.getppid(), "running"), (2**22 + 1, "stopped")):  # there is no process of that number
        (runs / "half/lock").write_text(json.dumps({"pid": process, "host": os.uname().nodename}))
        assert read_run(runs / "half").state == state


def test_damaged_files_say_nothing(runs: Path) -> None:
    (runs / "half/results.json").write_text("{")
    (runs / "half/config.yaml").write_text("a: [")
    with (runs / "half/metrics.jsonl").open("a") as file:
        file.write('{"step": 26, "epo')
    run = read_run(runs / "half")
    assert (run.state, run.step, run.epochs, run.best) == ("stopped", 25, None, None)


def test_the_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(runs.rglob("*"))
    assert run_command("runs", ["--runs", str(runs), "--sort", "best"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "task", "state", "epoch"]
    assert [line[: head.index("task")].strip() for line in lines] == ["impatient", "half", "done", "by steps", "new"]
    assert "2.5/3" in lines[1]
    assert "0.4000" in lines[1]
    assert run_command("runs", ["--runs", str(runs), "--json"]) == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)] == [
        "by steps",
        "done",
        "half",
        "impatient",
        "new",
    ]
    assert sorted(runs.rglob("*")) == before
    for folder, said in ((runs / "done", "has no runs"), (runs / "dome", "is not a folder; did you mean")):
        assert run_command("runs", ["--runs", str(folder)]) == 2
        assert said in capsys.readouterr().err


def test_durations() -> None:
    assert [duration(seconds) for seconds in (7.4, 99, 720, 12_240, 172_800)] == [
        "7 s",
        "99 s",
        "12 min",
        "3.4 h",
        "2.0 d",
    ]
