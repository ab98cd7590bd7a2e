"""Compare two programs at the same work: their time, their memory, and whether their outputs agree.

Time is measured in this process, where both sides take turns, so that other load on the machine affects both alike.
Memory is measured in a fresh process per side (``detector.dev.benchmark.child``), as a side could reuse what the other
has freed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torchvision

from detector.errors import DetectorError
from detector.structures import SIZE_DIVISOR
from detector.system.processes import child_command, child_environment

Run = Callable[[], Any]  # the work that is timed; returns what is compared

RUNS = 5


@dataclass(frozen=True)
class Settings:
    """The request; the same in every process."""

    device: str = "cpu"
    config: str | None = None  # of train and infer
    overrides: tuple[str, ...] = ()
    classes: int = 80  # of train and infer
    data: str | None = None  # a folder with images/ and annotations/train.json; None: generated
    scale: float = 1.0  # of image sides and of the numbers of images and detections
    runs: int | None = None
    against: bool = True

    def scaled(self, number: int, least: int = 1) -> int:
        """A number of things at this scale."""
        return max(least, round(number * self.scale))

    def side(self, pixels: int) -> int:
        """An image side at this scale, in whole cells of P5."""
        return max(64, round(pixels * self.scale / SIZE_DIVISOR) * SIZE_DIVISOR)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    ``inputs`` takes a folder for files and makes the inputs of both sides. A side takes them, builds what it needs (its
    model, its loader), whose memory counts and whose time does not, and returns the run.
    """

    name: str
    inputs: Callable[[Path], Any]
    ours: Callable[[Any], Run]
    theirs: Callable[[Any], Run] | None = None
    # Takes the inputs and both outputs of the first run; theirs is None if there is no other side.
    equal: Callable[[Any, Any, Any], bool] | None = None
    files: Callable[[Path], None] | None = None  # writes what ``inputs`` reads, once for all processes
    images: int | None = None  # per run, for images per second
    cores: int | None = None  # that our side occupies, where they do the same work, for images per second of each
    runs: int = RUNS
    slow: bool = False  # theirs takes minutes: it runs once, without a warm-up
    has_memory: bool = True  # False where the work is done in other processes


class Memory(NamedTuple):
    """Of a process that does one side's work, in MB of 10^6 bytes."""

    peak: float | None  # the most that building and running a side added
    held: float | None  # what was still allocated at the end, with the last output


@dataclass(frozen=True)
class Row:
    """What ``--json`` prints for a case."""

    part: str
    case: str
    ours_seconds: float  # median
    theirs_seconds: float | None
    time_ratio: float | None  # ours / theirs, and None where outputs differ
    ours_spread: tuple[float, float]  # quartiles, in seconds
    theirs_spread: tuple[float, float] | None
    ours_peak_mb: float | None
    theirs_peak_mb: float | None
    memory_ratio: float | None
    ours_held_mb: float | None
    theirs_held_mb: float | None
    ours_images_per_second: float | None
    theirs_images_per_second: float | None
    ours_images_per_second_per_core: float | None
    outputs_equal: bool | None  # None: nothing to compare with
    runs: int
    hardware: str


class Timing(NamedTuple):
    ours: list[float]  # seconds of each run
    theirs: list[float]
    outputs_equal: bool | None


def measure_part(part: str, settings: Settings, module: str | None = None) -> Iterator[Row]:
    """The rows of a part, as they are measured; ``module`` replaces the part's own."""
    module = module or f"detector.dev.benchmark.{part}"
    with TemporaryDirectory(prefix="detector-benchmark-") as name:
        for case in find_cases(module, settings):
            yield measure_case(part, module, case, settings, Path(name))
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def find_cases(module: str, settings: Settings) -> list[Case]:
    return importlib.import_module(module).cases(settings)


def measure_case(part: str, module: str, case: Case, settings: Settings, folder: Path) -> Row:
    print(f"{part}: {case.name}", file=sys.stderr, flush=True)
    if case.files:
        case.files(folder)
    sides = ["ours"] + ["theirs"] * (case.theirs is not None and settings.against)
    memory = dict.fromkeys(("ours", "theirs"), Memory(None, None))
    if case.has_memory:
        memory |= {side: measure_memory(module, case.name, side, settings, folder) for side in sides}
    timing = measure_time(case, settings, folder)
    ours, theirs = timing.ours, timing.theirs
    may_compare = timing.outputs_equal is not False
    return Row(
        part=part,
        case=case.name,
        ours_seconds=statistics.median(ours),
        theirs_seconds=statistics.median(theirs) if theirs else None,
        time_ratio=statistics.median(ours) / statistics.median(theirs) if theirs and may_compare else None,
        ours_spread=quartiles(ours),
        theirs_spread=quartiles(theirs) if theirs else None,
        ours_peak_mb=memory["ours"].peak,
        theirs_peak_mb=memory["theirs"].peak,
        memory_ratio=divide(memory["ours"].peak, memory["theirs"].peak) if may_compare else None,
        ours_held_mb=memory["ours"].held,
        theirs_held_mb=memory["theirs"].held,
        ours_images_per_second=divide(case.images, statistics.median(ours)),
        theirs_images_per_second=divide(case.images, statistics.median(theirs)) if theirs else None,
        ours_images_per_second_per_core=divide(divide(case.images, statistics.median(ours)), case.cores),
        outputs_equal=timing.outputs_equal,
        runs=len(ours),
        hardware=hardware(settings.device),
    )


def measure_time(case: Case, settings: Settings, folder: Path) -> Timing:
    """Time both sides in alternating runs; the first run of each is a warm-up, whose outputs are compared."""
    inputs = case.inputs(folder)
    sides = [case.ours(inputs)]
    if case.theirs is not None and settings.against:
        sides.append(case.theirs(inputs))
    runs = settings.runs or case.runs
    seconds: list[list[float]] = [[], []]
    # Existing objects belong to neither side: collections during a run skip them.
    gc.collect()
    gc.freeze()
    outputs_equal = None
    for number in range(runs if case.slow else 1 + runs):
        outputs = []
        for side, run in enumerate(sides):
            if side == 1 and case.slow and number:
                continue
            finish(settings.device)
            start = time.perf_counter()
            outputs.append(run())
            finish(settings.device)
            if number or case.slow:
                seconds[side].append(time.perf_counter() - start)
            if number:
                outputs.clear()
        if number == 0 and case.equal and (len(sides) == 2 or case.theirs is None):
            outputs_equal = bool(case.equal(inputs, *outputs, *[None] * (2 - len(sides))))
    gc.unfreeze()
    return Timing(*seconds, outputs_equal)


def finish(device: str) -> None:
    """Wait for a GPU's pending work."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def measure_memory(module: str, case: str, side: str, settings: Settings, folder: Path) -> Memory:
    """The memory of one side in a process of its own; unknown, with a line that says why, if that dies."""
    request = {"module": module, "case": case, "side": side, "settings": asdict(settings), "folder": str(folder)}
    command = child_command("detector.dev.benchmark.child", json.dumps(request))
    # In its own session: Ctrl-C reaches only this process, which ends the other, so there is one traceback.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=child_environment(), start_new_session=True)
    if done.returncode:
        print(f"{case}: the process that measures the memory of {side} ended with {done.returncode}", file=sys.stderr)
        return Memory(None, None)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def divide(number: float | None, by: float | None) -> float | None:
    return number / by if number is not None and by else None


def hardware(device: str) -> str:
    """The machine and versions of a measurement."""
    parts = [
        processor(),
        f"{num_cores()} cores",
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        f"torchvision {torchvision.__version__}",
    ]
    if device != "cpu":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class BenchmarkError(DetectorError):
    """A part cannot be measured as asked."""
