"""Kill, watch and compare real runs: tests/faults does so briefly, tools/stress.py at length.

Processes come from a fork server that has imported torch and this package: each starts in tenths of a second, and is
still a process of its own, which a real SIGKILL ends.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import multiprocessing
import os
import random
import runpy
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import load_config
from detector.data.synthetic import CLASSES
from detector.models import build_model
from detector.structures import Category
from detector.system.atomic import PARTIAL
from detector.system.processes import end_with_parent
from detector.tasks import get_core

# Small enough to run in tenths of a second, with everything that must survive: momentum, an average, batch norm,
# augmentation, batches that wrap around an epoch, several evaluations.
COMMON = (
    "model.backbone={name: mobilenet_v3_small, norm: bn}",
    "model.fpn={levels: [3, 4, 5], channels: 16}",
    "train.optimizer={name: sgd, lr: 0.005, lr_batch_size: 4}",
    "train.schedule={name: cosine, warmup_steps: 2}",
    "train.ema=0.9",
)


def tiny_run(task: str) -> tuple[str, ...]:
    """The config and overrides of a tiny run."""
    plan = get_core(task).QUICKSTART
    return plan.config, *COMMON, *plan.tiny


TASK = "detection"
CONFIG, *TINY = tiny_run(TASK)
PRELOADED = (
    "detector.training.fitting",
    "detector.inference.folder",
    "detector.commands.train",
    "hotcoco",
    "albumentations",
)

_servers = multiprocessing.get_context("forkserver")


def data_overrides(folder: Path, task: str = TASK) -> list[str]:
    """Overrides that name the data set that the task's quickstart generates."""
    return [f"data.{key}={folder / path}" for key, path in get_core(task).QUICKSTART.data.items()]


def start(command: str, arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Start ``detector COMMAND ARGUMENTS`` as a process, whose output is appended to ``log``."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    _servers.set_forkserver_preload(list(PRELOADED))
    process = _servers.Process(target=_run, args=(command, list(arguments), log, environment or {}))
    process.start()
    return process


def _run(command: str, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    end_with_parent()
    multiprocessing.set_start_method("fork", force=True)  # loaders start as in any other process on this system
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.argv = ["detector", command, *arguments]
    runpy.run_module("detector", run_name="__main__", alter_sys=True)


def finish(process: BaseProcess, log: Path, seconds: float = 600) -> int:
    """Wait for a process to end; returns its exit code, or minus the number of the signal that ended it."""
    process.join(seconds)
    if process.exitcode is None:
        kill(process)
        raise TimeoutError(f"a process did not end within {seconds} s:\n{log.read_text(errors='replace')}")
    return process.exitcode


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl."""
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


# --- kill -------------------------------------------------------------------------------------------------------------


@dataclass
class KillReport:
    """The outcome of :func:`kill_and_resume`."""

    kills: Counter[str] = field(default_factory=Counter)  # by moment: starting, stepping, saving
    amid_save: int = 0  # kills that left a half-written file, mostly a checkpoint
    runs: int = 0  # runs that were killed until they were finished, and compared
    differences: list[str] = field(default_factory=list)  # from the run that was not killed

    def __str__(self) -> str:
        moments = ", ".join(f"{count} while {moment}" for moment, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills survived by {self.runs} runs ({moments}; {self.amid_save} left a"
            f" half-written file behind), {len(self.differences)} differences from the run that was not killed"
        )


MOMENTS = ("saving", "stepping", "starting", "stepping", "saving", "stepping")  # of successive kills


def kill_and_resume(data: Path, folder: Path, kills: int, seed: int = 0, task: str = TASK) -> KillReport:
    """Kill training ``kills`` times at random moments and resume it until its end, in the new ``folder``.

    A third of the kills wait until a checkpoint is being written. Attempts differ in their number of loaders.
    """
    rng = random.Random(seed)
    log = folder / "log.txt"
    folder.mkdir(parents=True)
    config, *given = tiny_run(task)
    given += [*data_overrides(data, task), "train.batch_size=2", "train.epochs=4", "train.checkpoint_steps=2"]

    def train(name: str, workers: int) -> BaseProcess:
        arguments = ["--config", config, "--runs", str(folder), "--name", name, "--resume", "--device", "cpu"]
        return start("train", [*arguments, *given, f"data.workers={workers}"], log)

    if code := finish(train("whole", 0), log):
        raise RuntimeError(f"training ends with code {code}:\n{log.read_text(errors='replace')}")
    report = KillReport()
    while report.kills.total() < kills:
        report.runs += 1
        run = folder / f"killed_{report.runs}"
        while True:
            process = train(run.name, workers=rng.randrange(3))
            moment = MOMENTS[report.kills.total() % len(MOMENTS)]
            if report.kills.total() < kills and _wait_until(moment, process, run, rng):
                kill(process)
                report.kills[moment] += 1
                report.amid_save += any(run.glob(f"*{PARTIAL}"))
            elif code := finish(process, log):
                report.differences.append(f"{run.name}: ended with code {code}")
                return report
            else:
                break
        report.differences += [f"{run.name}: {difference}" for difference in differences(folder / "whole", run)]
    return report


def _wait_until(moment: str, process: BaseProcess, run: Path, rng: random.Random) -> bool:
    """Wait for the moment to kill; False if the run ended before it."""
    if moment == "starting":
        time.sleep(rng.uniform(0, 0.6))
        return process.is_alive()
    lines = _lines(run / "metrics.jsonl") + rng.randrange(1, 8)
    while process.is_alive():
        if moment == "saving" and any(run.glob(f"last.pt.*{PARTIAL}")):
            time.sleep(rng.uniform(0, 0.01))
            return process.is_alive()
        if moment == "stepping" and _lines(run / "metrics.jsonl") >= lines:
            time.sleep(rng.uniform(0, 0.05))
            return process.is_alive()
        time.sleep(0.001)
    return False


def differences(first: Path, second: Path) -> Iterator[str]:
    """The differences between two finished runs, bit for bit, times and loaders apart."""
    for name, parts in (("last.pt", ("model", "ema", "optimizer", "step", "best", "skipped")), ("best.pt", ("model",))):
        contents = [torch.load(run / name, weights_only=True, map_location="cpu") for run in (first, second)]
        for part in parts:
            yield from (f"{name}: {place}" for place in unequal(contents[0][part], contents[1][part], part))
    rows = [[row | {"images_per_second": None} for row in rows_of(run)] for run in (first, second)]
    if rows[0] != rows[1]:  # each step once, each evaluation once, in order
        yield f"metrics.jsonl: {len(rows[0])} and {len(rows[1])} lines, or other numbers"


def unequal(first: Any, second: Any, place: str) -> Iterator[str]:
    """The places where nested dicts and lists of tensors and numbers differ."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if first.dtype != second.dtype or not torch.equal(first, second):
            yield place
    elif isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        for key in first:
            yield from unequal(first[key], second[key], f"{place}.{key}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, pair in enumerate(zip(first, second, strict=True)):
            yield from unequal(*pair, f"{place}[{index}]")
    elif first != second:
        yield place


# --- soak -------------------------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """The memory and descriptors of a process."""

    memory: int  # resident, bytes
    descriptors: int


def usage_of(process: BaseProcess) -> Usage:
    """The usage of a running process, from Linux's /proc."""
    folder = Path("/proc") / str(process.pid)
    pages = int((folder / "statm").read_text().split()[1])
    return Usage(pages * os.sysconf("SC_PAGE_SIZE"), len(list((folder / "fd").iterdir())))


class SoakReport(NamedTuple):
    """The usage of a long run after ``settled`` steps and at the end, and the most between."""

    steps: int
    evaluations: int
    settled: int
    early: Usage
    late: Usage
    most: Usage

    @property
    def growth(self) -> float:
        """The growth of memory, as a fraction."""
        return self.late.memory / self.early.memory - 1

    def __str__(self) -> str:
        early, late, most = (f"{usage.memory / 2**20:.1f} MB, {usage.descriptors} descriptors" for usage in self[3:])
        return (
            f"{self.steps} steps, {self.evaluations} evaluations; after step {self.settled}: {early}; at the end:"
            f" {late} ({self.growth:+.1%}); at most {most}"
        )


def soak(data: Path, folder: Path, steps: int, evaluations: int, settled: int, task: str = TASK) -> SoakReport:
    """Train for ``steps`` steps with ``evaluations`` evaluations, and watch the process's usage."""
    folder.mkdir(parents=True)
    log, run = folder / "log.txt", folder / "run"
    config, *given = tiny_run(task)
    given += [*data_overrides(data, task), "train.batch_size=2"]
    images = len(get_core(task).open_split(load_config(config, given), "train"))
    per_epoch = -(-images // 2)
    every = steps // evaluations // per_epoch
    if every * per_epoch * evaluations != steps:
        raise ValueError(f"{steps} steps are not {evaluations} times whole epochs of {per_epoch} steps")
    arguments = ["--config", config, "--runs", str(folder), "--name", run.name, "--device", "cpu", *given]
    given = [f"train.steps={steps}", f"eval.every_epochs={every}", "data.workers=1"]
    process = start("train", [*arguments, *given], log)
    usages: list[Usage] = []
    while process.is_alive():
        if (usages or _last_step(run) >= settled) and process.is_alive():
            with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile
                usage = usage_of(process)
                usages += [usage] if usage.memory else []
        time.sleep(0.1)
    if finish(process, log):
        raise RuntimeError(log.read_text(errors="replace"))
    # In its last moments the process frees everything.
    early, *_, late = usages[: -max(1, len(usages) // 100)]
    most = Usage(*(max(column) for column in zip(*usages, strict=True)))
    rows = rows_of(run)
    return SoakReport(rows[-1]["step"], sum("evaluation" in row for row in rows), settled, early, late, most)


def _last_step(run: Path) -> int:
    rows = rows_of(run)
    return rows[-1]["step"] if rows else 0


# --- infer ------------------------------------------------------------------------------------------------------------


class InferReport(NamedTuple):
    """The outcome of inference over many images, killed half way and resumed."""

    images: int
    first_seconds: float  # from the process's start to the first recorded batch
    early: Usage  # with a tenth done
    late: Usage  # with nine tenths done
    is_same: bool  # whether the killed run's files equal the other's, byte for byte

    def __str__(self) -> str:
        early, late = (f"{usage.memory / 2**20:.1f} MB" for usage in (self.early, self.late))
        same = "the same bytes" if self.is_same else "NOT the same bytes"
        return (
            f"{self.images} images: the first batch after {self.first_seconds:.1f} s; {early} at a tenth, {late} at"
            f" nine tenths; killed half way and resumed: {same}"
        )


def link_images(folder: Path, count: int, kinds: int = 20, side: int = 32) -> None:
    """Make a folder of ``count`` small images, 1,000 per subfolder: hard links to ``kinds`` files."""
    rng = np.random.default_rng(0)
    for number in range(count):
        if number % 1000 == 0:
            below = folder / f"{number // 1000:04}"
            below.mkdir(parents=True)
        path = below / f"{number:07}.jpg"
        if number < kinds:
            Image.fromarray(rng.integers(0, 256, (side + number % 3, side, 3), dtype=np.uint8)).save(path)
        else:
            path.hardlink_to(folder / "0000" / f"{number % kinds:07}.jpg")


def tiny_checkpoint(path: Path, task: str = TASK) -> Path:
    """Write a checkpoint with random weights."""
    name, *given = tiny_run(task)
    config = load_config(name, given)
    categories = [Category(label + 1, name) for label, name in enumerate(CLASSES)]
    torch.manual_seed(0)
    model = build_model(config.model, len(categories))
    save_checkpoint(path, config, categories, {"model": model.state_dict()})
    return path


def infer(checkpoint: Path, images: Path, folder: Path, count: int, task: str = TASK) -> InferReport:
    """Predict a folder of ``count`` images twice, once killed half way and resumed, and compare the results."""
    folder.mkdir(parents=True)
    log = folder / "log.txt"

    def begin(name: str) -> BaseProcess:
        arguments = ["--checkpoint", str(checkpoint), "--input", str(images), "--output", str(folder / name)]
        arguments += get_core(task).QUICKSTART.few
        return start("infer", [*arguments, "--no-images", "--resume", "--workers", "1", "--device", "cpu"], log)

    def wait_for(process: BaseProcess, name: str, done: int) -> None:
        while process.is_alive() and _lines(folder / name / "progress.jsonl") < 1 + done:
            time.sleep(0.02)
        if not process.is_alive():
            raise RuntimeError(f"inference ended before {done} images:\n{log.read_text(errors='replace')}")

    finish(start("infer", ["--help"], log), log)  # start the fork server, whose imports are not measured
    begin_time = time.monotonic()
    process = begin("whole")
    wait_for(process, "whole", 1)
    first_seconds = time.monotonic() - begin_time
    wait_for(process, "whole", count // 10)
    early = usage_of(process)
    wait_for(process, "whole", count - count // 10)
    late = usage_of(process)
    finish(process, log)
    process = begin("killed")
    wait_for(process, "killed", count // 2)
    kill(process)
    if code := finish(begin("killed"), log):
        raise RuntimeError(f"inference ends with code {code}:\n{log.read_text(errors='replace')}")
    return InferReport(count, first_seconds, early, late, _are_equal(folder / "whole", folder / "killed"))


def _are_equal(first: Path, second: Path) -> bool:
    """Whether two folders have the same files."""
    names = [sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()) for root in (first, second)]
    return names[0] == names[1] and all(filecmp.cmp(first / name, second / name, shallow=False) for name in names[0])


def _lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
