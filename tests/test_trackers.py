"""Trackers: the numbers of a run, also of one that is resumed, and training that goes on without them."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from test_training import TINY

from detector.config.loader import load_config
from detector.config.schema import TrainConfig
from detector.errors import ConfigError
from detector.training import trackers
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder
from detector.training.trackers import TRACKERS, Numbers, Run, Trackers, check_trackers

CPU = torch.device("cpu")
SETTINGS = {"task": "detection", "train": {"epochs": 3, "milestones": []}}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trackers read from it is theirs alone, and is forgotten again."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 2, "loss": 10.0 - step, "normaliser": None, "skipped": ["a.jpg"], **more}


def of_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: {each.step: each.value for each in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def of_mlflow(folder: Path) -> dict[str, dict[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder.parent / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("detector").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"task": "detection", "train.epochs": "3", "train.milestones": "[]"}
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: {each.step: each.value for each in history} for name, history in histories.items()}


def of_wandb(folder: Path) -> dict[str, dict[int, float]]:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process has written all then

    def records(path: Path) -> Iterator[Record]:
        """LevelDB's log format: blocks of 32 KB, each of pieces: checksum, length, type (1 whole, 4 last), data."""
        data, place, whole = path.read_bytes(), 7, b""  # after the file's own header
        while place + 7 < len(data):
            if 2**15 - place % 2**15 < 7:  # the rest of a block, too short for a piece
                place += 2**15 - place % 2**15
            length, kind = struct.unpack_from("<HB", data, place + 4)
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                yield Record.FromString(whole)
                whole = b""

    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in paths}) == 1  # one run, in two parts
    found: dict[str, dict[int, float]] = {}
    for record in (record for path in paths for record in records(path)):
        if record.HasField("history"):
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            for name, value in values.items():
                if not name.startswith("_"):
                    found.setdefault(name, {})[values["_step"]] = value
    return found


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_continues_in_the_same_one(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(TRACKERS[name].PACKAGE)
    folder = tmp_path / "run"
    folder.mkdir()
    for first, finished in ((1, False), (3, True)):
        running = Trackers([name], Run(folder, SETTINGS, first - 1, None))
        running.show(row(first))
        running.show(row(first + 1))
        running.show({"step": first + 1, "epoch": (first + 1) / 2, "evaluation": {"AP": first / 10, "per_class": []}})
        running.close(finished)
        time.sleep(1 if name == "wandb" and not finished else 0)  # the names of its folders count seconds
    assert "warning" not in capsys.readouterr().err
    found = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}[name](folder)
    assert {key: pytest.approx(values) for key, values in found.items()} == {
        "train/epoch": {step: step / 2 for step in (1, 2, 3, 4)},
        "train/loss": {step: 10.0 - step for step in (1, 2, 3, 4)},
        "evaluation/AP": {2: 0.1, 4: 0.3},
    }


class Broken:
    """Fails where its name says; or hangs, when training is at its end."""

    PACKAGE, identity = "json", None

    def __init__(self, run: Run) -> None:
        self._maybe("start")

    def show(self, rows: Sequence[Numbers]) -> None:
        self._maybe("show")

    def close(self, finished: bool) -> None:
        self._maybe("close")
        time.sleep(3)

    def _maybe(self, where: str) -> None:
        if where == BREAKS:
            raise OSError(f"no {where}\nwith the server")


BREAKS = ""


def notice(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("warning: train.trackers: mlflow ")]
    return line


@pytest.mark.parametrize("where", ["start", "close", "hang"])
def test_a_broken_tracker_costs_one_notice(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", Broken)
    monkeypatch.setitem(globals(), "BREAKS", where)
    monkeypatch.setattr(trackers, "SECONDS_TO_END", 0.3)
    running = Trackers(["mlflow"], Run(tmp_path, SETTINGS, 0, None))
    running.show(row(1))
    running.close(True)
    said = "did not answer within 0.3 s" if where == "hang" else f"OSError: no {where} with the server"
    assert said in notice(capsys.readouterr().err)


def test_training_goes_on_without_a_tracker(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", Broken)
    monkeypatch.setitem(globals(), "BREAKS", "show")
    data = [f"data.train.annotations={shapes}/annotations/train.json", f"data.train.images={shapes}/images"]
    given = ["data.val=null", "train.steps=2", "train.batch_size=4", "data.workers=0", "train.trackers=[mlflow]"]
    run = RunFolder(tmp_path / "run")
    assert fit(load_config("quickstart.yaml", [*TINY, *data, *given]), run, CPU)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]
    assert "OSError: no show with the server" in notice(capsys.readouterr().err)


def test_the_names_are_the_configs_and_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    (names,) = get_args(TrainConfig.model_fields["trackers"].annotation)
    assert set(get_args(names)) == set(TRACKERS)
    monkeypatch.setattr(TRACKERS["wandb"], "PACKAGE", "nowhere_to_be_found")
    with pytest.raises(
        ConfigError, match=r"train.trackers: wandb is not installed; pip install 'pyramid-detector\[wandb\]'"
    ):
        check_trackers(["wandb"])
