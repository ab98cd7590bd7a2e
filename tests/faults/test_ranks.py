"""Several ranks: they end together, continue with another number, and are restarted by torchrun."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from networks import TINY_BACKBONE, Tiny

from detector.data.loading.sampler import epoch_batches
from detector.dev.stress import CONFIG, TINY, data_overrides, differences, finish, kill, rows_of, start
from detector.errors import ConfigError, DataError, RankLostError
from detector.training import distributed

SECONDS = 60  # within which all ranks have ended after one has


def environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


class Ranks:
    """Training in several processes on this machine, without torchrun: nothing but each other tells them of an end."""

    def __init__(
        self,
        folder: Path,
        name: str,
        ranks: int,
        *overrides: str,
        config: tuple[str, ...] = (CONFIG, *TINY, TINY_BACKBONE),
        own: list[list[str]] | None = None,  # what each rank is given beside it
        **environment: str,
    ) -> None:
        self.run = folder / name
        self.logs = [folder / f"{name}_{rank}.txt" for rank in range(ranks)]
        file, *given = config
        arguments = ["--config", file, "--runs", str(folder), "--name", name, "--resume", "--device", "cpu"]
        self.processes: list[BaseProcess] = [
            start("train", [*arguments, *given, *overrides, *(own[rank] if own else [])], self.logs[rank], group)
            for rank, group in enumerate(environment | of_rank for of_rank in environments(ranks))
        ]

    def wait_for_step(self, step: int) -> None:
        while not (rows := rows_of(self.run)) or rows[-1]["step"] < step:
            assert all(process.is_alive() for process in self.processes), self.said()
            time.sleep(0.005)

    def codes(self) -> list[int]:
        return [finish(process, log, SECONDS) for process, log in zip(self.processes, self.logs, strict=True)]

    def said(self) -> list[str]:
        return [log.read_text(errors="replace") for log in self.logs]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone whose statistics stay: then ranks compute what one process computes with the whole batch."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(Tiny().state_dict(), path)
    return f"model.backbone={{name: tiny, norm: frozen_bn, weights: {path}}}"


def test_a_killed_rank_ends_the_others_and_another_number_continues(shapes: Path, tmp_path: Path, frozen: str) -> None:
    """On tiles, of which each epoch has others without objects."""
    given = [*data_overrides(shapes), frozen, "train.batch_size=4", "train.steps=18", "train.checkpoint_steps=1"]
    given += ["data.tiles={size: 96, overlap: 0, negatives: 0.5}", "data.resize={long: 64}", "data.workers=0"]
    given += ["train.epochs=99", "eval.every_epochs=99"]
    assert Ranks(tmp_path, "whole", 1, *given).codes() == [0]

    two = Ranks(tmp_path, "changed", 2, *given)
    two.wait_for_step(4)
    kill(two.processes[1])
    assert two.codes() == [RankLostError.exit_code, -signal.SIGKILL]
    assert two.said()[0].splitlines()[-1].startswith("error: rank 0: another rank has ended")
    assert "Traceback" not in two.said()[0]

    one = Ranks(tmp_path, "changed", 1, *given)
    one.wait_for_step(9)
    kill(one.processes[0])
    assert "changed: 1 rank instead of 2; the order of the images is the same, 4 of each" in one.said()[0]

    assert Ranks(tmp_path, "changed", 2, *given).codes() == [0, 0]
    whole, changed = (rows_of(tmp_path / name) for name in ("whole", "changed"))
    assert [row["step"] for row in changed] == [*range(1, 19), 18]  # and an evaluation
    # The same images in every step: another one would change a loss by per cents, not by rounding.
    losses = [[row["loss"] for row in rows[:18]] for rows in (whole, changed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_machines_that_share_no_folder_continue_together(shapes: Path, tmp_path: Path) -> None:
    """Rank 1's disk has no checkpoint, or one of long ago; then it has other weights, and all ranks say so."""
    given = [*data_overrides(shapes), "train.batch_size=4", "train.steps=6", "train.checkpoint_steps=1"]
    given += ["data.workers=0", "train.schedule.warmup_steps=0"]
    whole = Ranks(tmp_path, "whole", 2, *given)
    assert whole.codes() == [0, 0], whole.said()
    elsewhere = tmp_path / "elsewhere"
    for name in ("begun", "continued"):
        own = [["--name", "killed"], ["--name", "killed", "--runs", str(elsewhere)]]
        ranks = Ranks(tmp_path, name, 2, *given, own=own)
        ranks.run = tmp_path / "killed"
        if name == "begun":
            ranks.wait_for_step(3)
            kill(ranks.processes[0])
            assert ranks.codes() == [-signal.SIGKILL, RankLostError.exit_code]
            assert not elsewhere.exists()
            (elsewhere / "killed").mkdir(parents=True)
            (elsewhere / "killed" / "last.pt").write_bytes(b"of long ago")
        else:
            assert ranks.codes() == [0, 0], ranks.said()
    assert list(differences(tmp_path / "whole", tmp_path / "killed")) == []
    assert [path.name for path in (elsewhere / "killed").iterdir()] == ["last.pt"]

    for rank in range(2):
        torch.manual_seed(rank)
        torch.save(Tiny().state_dict(), tmp_path / f"{rank}.pt")
    own = [[f"model.backbone.weights={tmp_path}/{rank}.pt", "train.steps=1"] for rank in range(2)]
    ranks = Ranks(tmp_path, "differ", 2, *given, own=own)
    assert ranks.codes() == [ConfigError.exit_code] * 2, ranks.said()
    for said in ranks.said():
        assert said.splitlines()[-1].startswith("error: rank 1: its weights differ from rank 0's (")


def collectives(environment: dict[str, str], results: Connection) -> None:
    """What a rank of two gets of each; the main one keeps the other waiting for longer than a step may take."""
    os.environ.update(environment)
    distributed.STEP_TIMEOUT = timedelta(seconds=2)
    distributed.start("cpu")
    if distributed.is_main():
        time.sleep(4)
    distributed.barrier()

    def refuse() -> None:
        raise ConfigError("only the main rank looks")

    rank, got = distributed.rank(), []
    for call in (
        lambda: distributed.from_main(lambda: {"rank": rank}),
        lambda: distributed.from_main(refuse),
        lambda: distributed.gather(rank),
        lambda: distributed.gather_on_main(np.full(2, rank)),
        lambda: distributed.check_same(weights="a", step=3),
        lambda: distributed.check_same(weights="a", step=rank),
    ):
        try:
            got.append(call())
        except ConfigError as error:
            got.append(str(error))
    results.send(got)
    distributed.stop()


def test_what_each_rank_gets_of_a_collective() -> None:
    context = multiprocessing.get_context("forkserver")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=collectives, args=(environment, writer))
        for environment, (_, writer) in zip(environments(2), pipes, strict=True)
    ]
    for process in processes:
        process.start()
    main, other = (reader.recv() if reader.poll(SECONDS) else None for reader, _ in pipes)
    for process in processes:
        process.join()
    differ = "rank 1: its step differ from rank 0's (1, 0); give every rank the same config, data and weight files"
    for got in (main, other):
        assert [*got[:3], *got[4:]] == [{"rank": 0}, "only the main rank looks", [0, 1], None, differ]
    assert np.array_equal(main[3], [[0, 0], [1, 1]])
    assert other[3] == []


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [
        (None, 2, "cuda:2"),
        ("cuda", 2, "cuda:2"),
        ("cpu", 2, "cpu"),
        ("cuda", 4, "--nproc-per-node: rank 4 has no GPU, there are 4 here"),
        ("cuda:1", 2, "--device cuda:1: each rank takes a GPU of its own; use cuda or cpu"),
    ],
)
def test_each_rank_takes_a_gpu_of_its_own(
    name: str | None, local_rank: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other GPU is touched, and the group knows which it is."""
    asked: dict[str, Any] = {}
    touched: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: touched.append(str(device)))
    monkeypatch.setattr(torch, "empty", lambda _size, device: touched.append(str(device)))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **given: asked.update(given))
    monkeypatch.setattr(torch.distributed, "new_group", lambda **given: None)
    for key, value in {"WORLD_SIZE": "8", "RANK": "6", "LOCAL_RANK": str(local_rank)}.items():
        monkeypatch.setenv(key, value)
    if expected.startswith("--"):
        with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
            distributed.start(name)
        assert touched == []
        return
    device = distributed.start(name)
    assert str(device) == expected
    assert set(touched) == {expected}
    assert asked["device_id"] == (device if device.type == "cuda" else None)
    assert asked["timeout"] == distributed.STEP_TIMEOUT


def test_ranks_without_objects_or_images_finish(shapes: Path, tmp_path: Path) -> None:
    """One image of five has boxes, five do not fill two batches of four, and one is evaluated by two ranks."""
    for split, count in (("train", 5), ("val", 1)):
        tree = json.loads((shapes / f"annotations/{split}.json").read_text())
        tree["images"] = tree["images"][:count]
        tree["annotations"] = [row for row in tree["annotations"] if row["image_id"] == tree["images"][0]["id"]]
        (tmp_path / f"{split}.json").write_text(json.dumps(tree))
    given = [f"data.{split}.annotations={tmp_path}/{split}.json" for split in ("train", "val")]
    given += [f"data.{split}.images={shapes}/images" for split in ("train", "val")]
    given += ["train.batch_size=4", "train.epochs=2", "data.workers=1"]
    ranks = Ranks(tmp_path, "run", 2, *given, WITH_REPORT="1")
    assert ranks.codes() == [0, 0], ranks.said()
    assert [row["step"] for row in rows_of(ranks.run)] == [1, 2, 3, 4, 4]  # two steps an epoch, and an evaluation
    assert (ranks.run / "report.html").exists()  # of the first rank, with the other one waiting


def test_classes_with_fewer_images_than_ranks_finish(colors: Path, tmp_path: Path) -> None:
    for split, names in (("train", ("red", "green", "blue")), ("val", ("red",))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            file = colors / split / name / f"{name}_0.png"
            (tmp_path / split / name / file.name).hardlink_to(file)
    given = [f"data.{split}.images={tmp_path / split}" for split in ("train", "val")]
    given += ["train.batch_size=2", "train.epochs=2", "data.workers=0"]
    config = ("classify_quickstart.yaml", TINY_BACKBONE)
    ranks = Ranks(tmp_path, "run", 2, *given, "data.crop.size=64", config=config)
    assert ranks.codes() == [0, 0], ranks.said()
    assert [row["step"] for row in rows_of(ranks.run)] == [1, 2, 3, 4, 4]
    assert json.loads((ranks.run / "results.json").read_text())["top1"] in (0, 1)

    ranks = Ranks(tmp_path, "single", 2, *given, "data.crop.size=32", config=config)
    assert ranks.codes() == [ConfigError.exit_code] * 2
    assert "error: a batch norm is given a single value per channel" in ranks.said()[0].splitlines()[-1]


@pytest.mark.parametrize("place", ["training", "evaluation"])
def test_an_error_on_one_rank_ends_all(place: str, shapes: Path, tmp_path: Path) -> None:
    split = "train" if place == "training" else "val"
    tree = json.loads((shapes / f"annotations/{split}.json").read_text())
    # Of a step's pair of images the second is rank 1's, and of those evaluated every second one.
    index = epoch_batches(None, 12, 2, seed=0, epoch=0)[2][1] if place == "training" else 1
    images = tmp_path / "images"
    images.mkdir()
    for file in (shapes / "images").iterdir():
        (images / file.name).hardlink_to(file)
    broken = images / tree["images"][index]["file_name"]
    broken.unlink()
    broken.write_bytes(b"no image")
    given = [*data_overrides(shapes), f"data.{split}.images={images}", "train.batch_size=2", "train.epochs=1"]
    ranks = Ranks(tmp_path, "run", 2, *given, "data.group_by_aspect=false", "data.workers=0")
    assert ranks.codes() == [RankLostError.exit_code, DataError.exit_code], ranks.said()
    assert f"error: {broken}: " in ranks.said()[1]
    assert "error: rank 0: another rank has ended" in ranks.said()[0]
    assert torch.load(ranks.run / "last.pt", weights_only=True)["step"] == {"training": 2, "evaluation": 6}[place]


def test_torchrun_restarts_what_was_killed_and_passes_its_signal_on(shapes: Path, tmp_path: Path) -> None:
    """With two loader processes a rank at first, and one after the restart; a signal comes to those, too."""
    given = [*data_overrides(shapes), "train.batch_size=2", "train.epochs=500", "train.checkpoint_steps=2"]
    given += ["data.augment.photometric=0"]  # each process that starts would import albumentations for it
    arguments = ["--config", CONFIG, "--runs", str(tmp_path), "--name", "run", "--resume", "--device", "cpu", *TINY]
    train = shlex.join([sys.executable, "-m", "detector", "train", *arguments, *given])
    workers = "data.workers=$((2 - TORCHELASTIC_RESTART_COUNT))"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    log, run = tmp_path / "torchrun.txt", tmp_path / "run"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*launcher, "--no-python", "bash", "-c", f"exec {train} {workers}"],
            stdout=file,
            stderr=file,
            # Without it, a restart on gloo hangs or dies most of the time: the old store is used again.
            env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )

    def wait_until(is_there: Callable[[], bool]) -> None:
        while not is_there():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)

    try:
        wait_until(lambda: len(rows_of(run)) >= 5)
        os.kill(rank_of(process.pid, 1), signal.SIGKILL)
        wait_until(lambda: "resumed from" in log.read_text())
        resumed_at = len(rows_of(run))
        wait_until(lambda: len(rows_of(run)) >= resumed_at + 2)
    finally:
        process.terminate()  # torchrun ends its ranks then
        process.wait(60)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["workers"] == 1
    steps = [row["step"] for row in rows_of(run) if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))
    assert torch.load(run / "last.pt", weights_only=True)["step"] == len(steps) >= resumed_at


def rank_of(torchrun: int, rank: int) -> int:
    """The process id of a rank."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or f"\nPPid:\t{torchrun}\n" not in (folder / "status").read_text():
            continue
        if f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
            return int(folder.name)
    raise AssertionError(f"torchrun {torchrun} has no rank {rank}")
