"""A training run that meets a full disk, another run, a signal, or numbers that are not finite."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from disk import Disk
from networks import TINY_BACKBONE

from detector.__main__ import run_command
from detector.checkpoints.checkpoint import read_progress
from detector.config.loader import load_config
from detector.config.schema import Config
from detector.data.loading.sampler import epoch_batches
from detector.dev.stress import CONFIG, TINY, data_overrides, finish, kill, rows_of, start, unequal
from detector.errors import ConfigError, NonFiniteError, StorageError
from detector.models.backbones import BACKBONES
from detector.reports import Report
from detector.system.processes import handled
from detector.tasks import detection, detection_views
from detector.training import fitting, loop
from detector.training.fitting import fit
from detector.training.loop import StopRequest, predict_all
from detector.training.run_folder import RunFolder

CPU = torch.device("cpu")
REPORT_BEST = fitting.report_best  # before ``short_runs`` takes it away


def tiny_config(shapes: Path, *overrides: str) -> Config:
    given = ["train.batch_size=2", "train.steps=4", "train.checkpoint_steps=1", "data.workers=0"]
    return load_config(CONFIG, [*TINY, TINY_BACKBONE, *data_overrides(shapes), *given, *overrides])


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints are small and soon written."""
    monkeypatch.setitem(BACKBONES, "tiny", networks.TINY)


# --- disk -------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_at_any_call_stops_in_one_line_and_the_run_continues(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call on each file fails the first time, on those written again and again the third time too.

    Every attempt is resumed and gets one call further.
    """
    config = tiny_config(shapes, "train.steps=2")
    assert fit(config, RunFolder(tmp_path / "whole"), CPU)
    run, times = RunFolder(tmp_path / "filled"), Counter[str]()

    def breaks(call: str) -> bool:
        times[call] += 1
        return times[call] == 1 or (times[call] == 3 and call.split()[1] in ("last.pt", "metrics.jsonl"))

    attempts = 0
    with monkeypatch.context() as patch:
        Disk(patch, breaks)
        while True:
            attempts += 1
            step = torch.load(run.last, weights_only=True)["step"] if run.last.exists() else 0
            try:
                if fit(config, run, CPU, resume=True):
                    break
            except StorageError as error:
                assert "cannot be written: No space left on device; what was saved before is intact" in str(error)
                assert "\n" not in str(error)
            if step:
                assert torch.load(run.last, weights_only=True)["step"] >= step
            assert not list(run.path.glob("*.partial"))
    files = ("config.yaml", "environment.json", "results.json", "last.pt", "best.pt", "first_batch.jpg")
    whole = {f"{verb} {name}" for verb in ("open", "write", "sync", "rename") for name in (*files, "metrics.jsonl")}
    whole.remove("write first_batch.jpg")  # by Pillow's own C
    assert {*times} == whole | {"sync folder", "open lock", "truncate lock", "write lock"}
    assert attempts > len(times)
    contents = [torch.load(folder / "last.pt", weights_only=True) for folder in (tmp_path / "whole", run.path)]
    for part in ("model", "ema", "optimizer"):
        assert list(unequal(contents[0][part], contents[1][part], part)) == []
    assert [row["step"] for row in rows_of(run.path)] == [row["step"] for row in rows_of(tmp_path / "whole")]


def test_the_exit_code_says_that_it_was_the_disk(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["--config", CONFIG, "--runs", str(tmp_path), "--device", "cpu", *TINY, *data_overrides(shapes)]
    assert run_command("train", [*arguments, "train.steps=1", "train.batch_size=2", "data.workers=0"]) == 74
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/quickstart/config.yaml: cannot be written: No space left on device")


# --- another run, signals ---------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_two_signals_end_at_once(shapes: Path, tmp_path: Path) -> None:
    arguments = ["--config", CONFIG, "--runs", str(tmp_path), "--name", "run", "--resume", "--device", "cpu", *TINY]
    arguments += [TINY_BACKBONE, *data_overrides(shapes), "train.batch_size=2", "train.epochs=500", "data.workers=1"]
    # Neither steps nor an epoch's end: minutes are what saves it.
    arguments += ["train.checkpoint_steps=100000", "train.checkpoint_minutes=0.0001"]
    log, run = tmp_path / "log.txt", tmp_path / "run"
    first = start("train", arguments, log)
    while len(rows_of(run)) < 2:
        assert first.is_alive(), log.read_text()
        time.sleep(0.01)
    second_log = tmp_path / "second.txt"
    assert finish(start("train", arguments, second_log), second_log) == ConfigError.exit_code
    assert f"error: {run}: process {first.pid} on " in second_log.read_text()
    assert first.is_alive()

    kill(first)
    assert torch.load(run / "last.pt", weights_only=True)["step"] >= 1
    assert (run / "lock").exists()
    third = start("train", arguments, log)  # at once: the dead process's lock is no lock
    steps = len(rows_of(run))
    while len(rows_of(run)) < steps + 2:
        assert third.is_alive(), log.read_text()
        time.sleep(0.01)
    third.terminate()
    assert finish(third, log) == 75
    assert "everything is saved, continue with --resume" in log.read_text()
    assert torch.load(run / "last.pt", weights_only=True)["step"] == rows_of(run)[-1]["step"]
    assert not (run / "lock").exists()


def test_the_second_signal_ends_at_once() -> None:
    before, stop = signal.getsignal(signal.SIGINT), StopRequest()
    with handled(stop.ask):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        # By the system, and so within a collective or a read that hangs, too.
        assert {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} == {signal.SIG_DFL}
    assert signal.getsignal(signal.SIGINT) == before


# --- resuming, and the report -----------------------------------------------------------------------------------------


def test_a_resumed_run_holds_its_weights_once(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = tiny_config(shapes, "train.steps=2"), RunFolder(tmp_path / "run")
    assert fit(config, run, CPU)
    read: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def read_watched(*paths: Path) -> dict[str, Any]:
        content = read_progress(*paths)
        read.extend(weakref.ref(tensor) for part in ("model", "ema") for tensor in content[part].values())
        return content

    def train_watched(*arguments: Any) -> bool:
        alive.append(sum(tensor() is not None for tensor in read))
        return True

    monkeypatch.setattr(fitting, "read_progress", read_watched)
    monkeypatch.setattr(fitting, "train", train_watched)
    assert fit(config, run, CPU, resume=True)
    assert len(read) > 80
    assert alive == [0]


def test_the_report_does_not_predict_again_what_was_just_predicted(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four epochs of which the second is the best; resumed, nothing is known of it but its weights."""
    predicted, reported = [], []
    scores = iter([0.1, 0.3, 0.2, 0.2])

    def predict_watched(*arguments: Any) -> Any:
        predicted.append(predict_all(*arguments))
        return predicted[-1]

    def evaluate_watched(rows: Any, truth: Any, config: Config) -> Any:
        return evaluate(rows, truth, config) | {"AP": next(scores, 0.0)}

    evaluate = detection.evaluate
    monkeypatch.setattr(loop, "predict_all", predict_watched)
    monkeypatch.setattr(fitting, "predict_all", predict_watched)
    monkeypatch.setattr(detection, "evaluate", evaluate_watched)
    monkeypatch.setattr(detection_views, "report", lambda scored, *rest: reported.append(scored) or Report("", [], {}))
    monkeypatch.setattr(fitting, "report_best", REPORT_BEST)
    given = ["train.steps=null", "train.epochs=4", "train.batch_size=12", "eval.every_epochs=1"]
    config = tiny_config(shapes, *given, "model.predict.score_threshold=0")
    run = RunFolder(tmp_path / "run")
    assert fit(config, run, CPU)
    assert len(predicted) == 4
    assert len(reported[0].rows) > 0
    assert np.array_equal(reported[0].rows, predicted[1].rows)
    assert reported[0].metrics["AP"] == 0.3
    assert not [path for path in run.path.iterdir() if path.suffix in (".npy", ".npz", ".partial")]
    assert fit(config, RunFolder(run.path), CPU, resume=True)
    assert len(predicted) == 5
    np.testing.assert_allclose(reported[1].rows, reported[0].rows, atol=1e-4)


# --- numbers that are not finite --------------------------------------------------------------------------------------


@pytest.fixture
def spoilt_step(monkeypatch: pytest.MonkeyPatch) -> int:
    """The loss of steps 2 and 3 is not finite."""
    from detector.tasks import detection

    calls = iter(range(100))
    loss = detection.loss

    def spoil(*arguments: Any) -> Any:
        losses = loss(*arguments)
        if next(calls) in (1, 2):
            return losses._replace(parts={name: part * torch.nan for name, part in losses.parts.items()})
        return losses

    monkeypatch.setattr(detection, "loss", spoil)
    return 2


def test_a_step_that_is_not_finite_is_skipped(
    shapes: Path, tmp_path: Path, spoilt_step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[dict[str, Any]] = []

    class Watched(RunFolder):
        def save_last(self, config: Any, categories: Any, state: dict[str, Any]) -> None:
            super().save_last(config, categories, state)
            saved.append(torch.load(self.last, weights_only=True))

    run = Watched(tmp_path / "run")
    assert fit(tiny_config(shapes, "train.non_finite=skip"), run, CPU)
    first, second, third, fourth = saved[:4]
    for content in saved:
        for group in content["optimizer"]["param_groups"]:
            del group["lr"]  # the schedule goes on
    for part in ("model", "ema", "optimizer"):  # statistics and counters of batch norms among them
        assert list(unequal(first[part], third[part], part)) == []
        assert list(unequal(third[part], fourth[part], part)) != []
    assert [content["skipped"] for content in (first, second, third, fourth)] == [0, 1, 2, 2]
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]  # strict JSON: no NaN in it
    assert "NaN" not in run.metrics.read_text()
    names = [image["file_name"] for image in json.loads((shapes / "annotations/train.json").read_text())["images"]]
    order = epoch_batches(np.ones(12, dtype=bool), 12, 2, seed=0, epoch=0)
    assert [row["loss"] is None for row in rows[:4]] == [False, True, True, False]
    assert rows[1]["skipped"] == [str(shapes / "images" / names[index]) for index in order[1]]
    assert "skipped" not in rows[0]
    said = capsys.readouterr().err
    assert f"{names[order[1][0]]}" in said
    assert "skipped, 2 of at most 20" in said


def test_skips_have_a_cap(shapes: Path, tmp_path: Path, spoilt_step: int) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(NonFiniteError, match=r"step 3: .*after 1 skipped steps \(train.max_skips\)"):
        fit(tiny_config(shapes, "train.non_finite=skip", "train.max_skips=1"), run, CPU)
    assert torch.load(run.last, weights_only=True)["step"] == 2


def test_classes_are_named_by_their_files(colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.tasks import classification

    loss = classification.loss
    monkeypatch.setattr(
        classification,
        "loss",
        lambda *arguments: loss(*arguments)._replace(parts={"cls": loss(*arguments).parts["cls"] * torch.inf}),
    )
    given = [f"data.{split}.images={colors / split}" for split in ("train", "val")]
    given += ["model.backbone.name=resnet10", "data.crop.size=32", "train.batch_size=2", "data.workers=0"]
    with pytest.raises(NonFiniteError, match=r"images \S+/(red|green|blue)_\d.png, \S+/(red|green|blue)_\d.png\)"):
        fit(load_config("classify_quickstart.yaml", given), RunFolder(tmp_path / "run"), CPU)


@pytest.mark.parametrize(("evaluated_step", "kept"), [(0, [1, 2]), (2, [1, 2, 2])])
def test_what_was_not_saved_is_forgotten(tmp_path: Path, evaluated_step: int, kept: list[int]) -> None:
    """Killed after step 2's evaluation was written and before, or after, the checkpoint that knows of it."""
    run = RunFolder(tmp_path)
    run.metrics.write_bytes(
        b'{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n{"step": 2, "evaluation": {}}\n{"step": 3, "loss": 1}\n'
        b'\0\0\0\n{"step": 4, "lo\xff'
    )
    run.forget_after(2, evaluated_step)
    assert [row["step"] for row in rows_of(tmp_path)] == kept
