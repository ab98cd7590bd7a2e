"""Two programs at the same work: time run by run in turns, memory in a process of its own each, and whether they agree.

Time is measured in this process, where both sides are built and take turns, so that what else the machine does meets
both alike. Memory is measured in a fresh process a side (``detector.dev.benchmark.child``): one that has held the other
side before would hide in what was freed.
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
from detector.processes import child_command, child_environment
from detector.structures import SIZE_DIVISOR

Run = Callable[[], Any]  # the work that is timed; returns what is compared

RUNS = 5


@dataclass(frozen=True)
class Settings:
    """What was asked for; the same in every process."""

    device: str = "cpu"
    config: str | None = None  # of train and infer
    overrides: tuple[str, ...] = ()
    classes: int = 80  # of train and infer
    data: str | None = None  # a folder with images/ and annotations/train.json; None: generated
    scale: float = 1.0  # of what grows: sides of images, numbers of images and detections
    runs: int | None = None
    against: bool = True

    def scaled(self, number: int, least: int = 1) -> int:
        """A number of things at this scale."""
        return max(least, round(number * self.scale))

    def side(self, pixels: int) -> int:
        """A side of an image at this scale, in whole cells of P5."""
        return max(64, round(pixels * self.scale / SIZE_DIVISOR) * SIZE_DIVISOR)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    ``inputs`` takes a folder for files and makes what both sides are given. A side takes them and builds what it needs
    (its model, its loader), whose memory counts and whose time does not; it returns the run.
    """

    name: str
    inputs: Callable[[Path], Any]
    ours: Callable[[Any], Run]
    theirs: Callable[[Any], Run] | None = None
    # Of the inputs and both outputs of the first run; without another side, theirs is None.
    equal: Callable[[Any, Any, Any], bool] | None = None
    files: Callable[[Path], None] | None = None  # writes what ``inputs`` reads, once for all processes
    images: int | None = None  # a run, for images a second
    runs: int = RUNS
    slow: bool = False  # theirs takes minutes: it runs once, and nothing is warmed up
    has_memory: bool = True  # False where the work is in yet another process


class Memory(NamedTuple):
    """Of a process that does one side's work, in MB of 10^6 bytes."""

    peak: float | None  # the most that was added while a side was built and run
    held: float | None  # what of it was still there at the end, with the last output


@dataclass(frozen=True)
class Row:
    """What ``--json`` prints of a case."""

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
    outputs_equal: bool | None  # None: there is nothing to compare with
    runs: int
    hardware: str


class Timing(NamedTuple):
    ours: list[float]  # seconds of each run
    theirs: list[float]
    outputs_equal: bool | None


def measure_part(part: str, settings: Settings, module: str | None = None) -> Iterator[Row]:
    """The rows of a part, as they are measured; ``module`` stands in for the part's own."""
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
        outputs_equal=timing.outputs_equal,
        runs=len(ours),
        hardware=hardware(settings.device),
    )


def measure_time(case: Case, settings: Settings, folder: Path) -> Timing:
    """Both sides run by run in turns; the first run of each warms up, and its outputs are compared."""
    inputs = case.inputs(folder)
    sides = [case.ours(inputs)]
    if case.theirs is not None and settings.against:
        sides.append(case.theirs(inputs))
    runs = settings.runs or case.runs
    seconds: list[list[float]] = [[], []]
    # What is there belongs to neither side: a collection in the middle of a run need not walk through it.
    gc.collect()
    gc.freeze()
    outputs_equal = None
    for number in range(runs if case.slow else 1 + runs):
        outputs = []
        for place, run in enumerate(sides):
            if place == 1 and case.slow and number:
                continue
            finish(settings.device)
            start = time.perf_counter()
            outputs.append(run())
            finish(settings.device)
            if number or case.slow:
                seconds[place].append(time.perf_counter() - start)
            if number:
                outputs.clear()
        if number == 0 and case.equal and (len(sides) == 2 or case.theirs is None):
            outputs_equal = bool(case.equal(inputs, *outputs, *[None] * (2 - len(sides))))
    gc.unfreeze()
    return Timing(*seconds, outputs_equal)


def finish(device: str) -> None:
    """Wait for what a GPU was given to do; a CPU does it at once."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def measure_memory(module: str, case: str, side: str, settings: Settings, folder: Path) -> Memory:
    """What a process of its own needs for one side; nothing is known, and a line says why, if it dies."""
    request = {"module": module, "case": case, "side": side, "settings": asdict(settings), "folder": str(folder)}
    command = child_command("detector.dev.benchmark.child", json.dumps(request))
    # Ctrl-C reaches this process alone, which then ends the other one: no two tracebacks.
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
    """What it was measured on."""
    parts = [
        processor(),
        f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores",
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        f"torchvision {torchvision.__version__}",
    ]
    if device != "cpu":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class BenchmarkError(DetectorError):
    """A part cannot be measured as asked."""
