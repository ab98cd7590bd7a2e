"""Several ranks: they end together, continue with another number, and are restarted by torchrun."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import yaml

from detector.data.sampler import epoch_batches
from detector.errors import ConfigError, DataError, RankLostError
from detector.stress import CONFIG, TINY, data_overrides, differences, finish, kill, rows_of, start

SECONDS = 60  # within which all ranks have ended after one has


class Ranks:
    """Training in several processes on this machine, without torchrun: nothing but each other tells them of an end."""

    def __init__(
        self, folder: Path, name: str, ranks: int, *overrides: str, config: tuple[str, ...] = (CONFIG, *TINY)
    ) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        self.run = folder / name
        self.logs = [folder / f"{name}_{rank}.txt" for rank in range(ranks)]
        file, *given = config
        arguments = ["--config", file, "--runs", str(folder), "--name", name, "--resume", "--device", "cpu"]
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        self.processes: list[BaseProcess] = [
            start("train", [*arguments, *given, *overrides], log, group | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank, log in enumerate(self.logs)
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
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), path)
    return f"model.backbone={{name: mobilenet_v3_small, norm: frozen_bn, weights: {path}}}"


def test_a_killed_rank_ends_the_others_and_another_number_continues(shapes: Path, tmp_path: Path, frozen: str) -> None:
    given = [*data_overrides(shapes), frozen, "train.batch_size=4", "train.epochs=6", "train.checkpoint_steps=1"]
    given += ["data.workers=0", "eval.every_epochs=6"]  # 12 pictures: 3 steps an epoch, 18 steps
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
    assert "changed: 1 rank in place of 2; the order of the pictures goes on as before, 4 of each" in one.said()[0]

    assert Ranks(tmp_path, "changed", 2, *given).codes() == [0, 0]
    whole, changed = (rows_of(tmp_path / name) for name in ("whole", "changed"))
    assert [row["step"] for row in changed] == [*range(1, 19), 18]  # and an evaluation
    # The same pictures in every step: another one would change a loss by per cents, not by rounding.
    losses = [[row["loss"] for row in rows[:18]] for rows in (whole, changed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_ranks_without_objects_or_pictures_finish(shapes: Path, tmp_path: Path) -> None:
    """One picture of five has boxes, five do not fill two batches of four, and one is evaluated by two ranks."""
    for split, count in (("train", 5), ("val", 1)):
        tree = json.loads((shapes / f"annotations/{split}.json").read_text())
        tree["images"] = tree["images"][:count]
        tree["annotations"] = [row for row in tree["annotations"] if row["image_id"] == tree["images"][0]["id"]]
        (tmp_path / f"{split}.json").write_text(json.dumps(tree))
    given = [f"data.{split}.annotations={tmp_path}/{split}.json" for split in ("train", "val")]
    given += [f"data.{split}.images={shapes}/images" for split in ("train", "val")]
    ranks = Ranks(tmp_path, "run", 2, *given, "train.batch_size=4", "train.epochs=2", "data.workers=1")
    assert ranks.codes() == [0, 0], ranks.said()
    assert [row["step"] for row in rows_of(ranks.run)] == [1, 2, 3, 4, 4]  # two steps an epoch, and an evaluation


def test_classes_with_fewer_pictures_than_ranks_finish(colors: Path, tmp_path: Path) -> None:
    for split, names in (("train", ("red", "green", "blue")), ("val", ("red",))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            file = colors / split / name / f"{name}_0.png"
            (tmp_path / split / name / file.name).hardlink_to(file)
    given = [f"data.{split}.images={tmp_path / split}" for split in ("train", "val")]
    given += ["train.batch_size=2", "train.epochs=2", "data.workers=0"]
    config = ("classify_quickstart.yaml", "model.backbone={name: resnet10, norm: bn}")
    ranks = Ranks(tmp_path, "run", 2, *given, "data.crop.size=64", config=config)
    assert ranks.codes() == [0, 0], ranks.said()
    assert [row["step"] for row in rows_of(ranks.run)] == [1, 2, 3, 4, 4]
    assert json.loads((ranks.run / "results.json").read_text())["top1"] in (0, 1)

    ranks = Ranks(tmp_path, "single", 2, *given, "data.crop.size=32", config=config)
    assert ranks.codes() == [ConfigError.exit_code] * 2
    assert "error: a batch norm is given a single value a channel" in ranks.said()[0].splitlines()[-1]


@pytest.mark.parametrize("place", ["training", "evaluation"])
def test_an_error_on_one_rank_ends_all(place: str, shapes: Path, tmp_path: Path) -> None:
    split = "train" if place == "training" else "val"
    tree = json.loads((shapes / f"annotations/{split}.json").read_text())
    # Of a step's pair of pictures the second is rank 1's, and of those evaluated every second one.
    index = epoch_batches(None, 12, 2, seed=0, epoch=0)[2][1] if place == "training" else 1
    images = tmp_path / "images"
    images.mkdir()
    for file in (shapes / "images").iterdir():
        (images / file.name).hardlink_to(file)
    broken = images / tree["images"][index]["file_name"]
    broken.unlink()
    broken.write_bytes(b"no picture")
    given = [*data_overrides(shapes), f"data.{split}.images={images}", "train.batch_size=2", "train.epochs=1"]
    ranks = Ranks(tmp_path, "run", 2, *given, "data.group_by_aspect=false", "data.workers=0")
    assert ranks.codes() == [RankLostError.exit_code, DataError.exit_code], ranks.said()
    assert f"error: {broken}: " in ranks.said()[1]
    assert "error: rank 0: another rank has ended" in ranks.said()[0]
    assert torch.load(ranks.run / "last.pt", weights_only=True)["step"] == {"training": 2, "evaluation": 6}[place]


def test_torchrun_restarts_what_was_killed(shapes: Path, tmp_path: Path) -> None:
    """With two loader processes a rank at first, and one after the restart."""
    given = [*data_overrides(shapes), "train.batch_size=2", "train.epochs=3", "train.checkpoint_steps=2"]
    whole = Ranks(tmp_path, "whole", 2, *given, "data.workers=1")

    arguments = ["--config", CONFIG, "--runs", str(tmp_path), "--name", "killed", "--resume", "--device", "cpu", *TINY]
    train = shlex.join([sys.executable, "-m", "detector", "train", *arguments, *given])
    workers = "data.workers=$((2 - TORCHELASTIC_RESTART_COUNT))"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    log = tmp_path / "torchrun.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*launcher, "--no-python", "bash", "-c", f"exec {train} {workers}"],
            stdout=file,
            stderr=file,
            # Without it, a restart on gloo hangs or dies most of the time: the old store is used again.
            env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )
    try:
        while len(rows_of(tmp_path / "killed")) < 5:
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        os.kill(rank_of(process.pid, 1), signal.SIGKILL)
        assert process.wait(300) == 0, log.read_text()
    finally:
        process.terminate()  # torchrun ends its ranks then
        process.wait(60)
    assert "resumed from" in log.read_text()
    assert yaml.safe_load((tmp_path / "killed/config.yaml").read_text())["data"]["workers"] == 1
    assert whole.codes() == [0, 0], whole.said()
    assert list(differences(tmp_path / "whole", tmp_path / "killed")) == []


def rank_of(torchrun: int, rank: int) -> int:
    """The process id of a rank."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or f"\nPPid:\t{torchrun}\n" not in (folder / "status").read_text():
            continue
        if f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
            return int(folder.name)
    raise AssertionError(f"torchrun {torchrun} has no rank {rank}")
