"""No process that a command starts outlives it, whatever it dies of; SIGTERM is handled as Ctrl-C is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from PIL import Image

import detector
from detector.config.loader import load_config
from detector.dev.stress import CONFIG, TINY, data_overrides, link_images, start, tiny_checkpoint
from detector.system.processes import WAIT_POLICIES
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

END_SECONDS = 10  # within which all descendants are gone


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> dict[str, Path]:
    """A checkpoint, 20,000 images, and an annotation file that has all of them."""
    folder = tmp_path_factory.mktemp("inputs")
    link_images(folder / "images", 20_000)
    tree = json.loads((shapes / "annotations/val.json").read_text())
    names = [f"{number // 1000:04}/{number:07}.jpg" for number in range(20_000)]
    sizes = [Image.open(folder / "images" / name).size for name in names[:20]]  # all others are links to these
    tree["images"] = [
        {"id": number, "file_name": name, "width": sizes[number % 20][0], "height": sizes[number % 20][1]}
        for number, name in enumerate(names)
    ]
    tree["annotations"] = [
        {"id": number + 1, "image_id": number, "category_id": tree["categories"][0]["id"], "bbox": [4, 4, 16, 16]}
        | {"area": 256, "iscrowd": 0}
        for number in range(20_000)
    ]
    (folder / "all.json").write_text(json.dumps(tree))
    return {
        "checkpoint": tiny_checkpoint(folder / "tiny.pt"),
        "images": folder / "images",
        "all": folder / "all.json",
        "shapes": shapes,
    }


def command_of(name: str, inputs: dict[str, Path], folder: Path) -> list[str]:
    """A command that works for a minute or longer, most of it in processes that it has started."""
    shown = [f"data.val.annotations={inputs['all']}", f"data.val.images={inputs['images']}", "data.workers=2"]
    train = ["--config", CONFIG, "--runs", folder, *TINY, *data_overrides(inputs["shapes"]), "train.batch_size=2"]
    train += ["train.epochs=5000", "data.workers=2"]
    infer = ["--checkpoint", inputs["checkpoint"], "--input", inputs["images"], "--output", folder / "found"]
    arguments = {
        "train": [*train, "--device", "cpu"],
        "evaluate": ["--checkpoint", inputs["checkpoint"], "--device", "cpu", *shown],
        "infer": [*infer, "--device", "cpu", "--batch-size", 2],
        "doctor": ["--annotations", inputs["all"], "--images", inputs["images"]],
        "stress": ["infer", "--images", 1000],
        "benchmark memory": ["loss", "--scale", 0.5],
    }
    return [name.split()[0], *map(str, arguments[name])]


def descendants(pid: int) -> set[int]:
    """The living processes that ``pid`` and its own have started."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            parents[int(stat.parent.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait(process: BaseProcess | subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code, or None if it has not ended within ``seconds``."""
    if isinstance(process, BaseProcess):
        process.join(seconds)
        return process.exitcode
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode


# What starts processes: a loader, a pool, a fork server, and a child that measures memory.
KILLED = ["evaluate", "doctor", "stress"]
# Training's own handler has tests of its own.
CASES = [(name, signal.SIGKILL) for name in KILLED]
CASES += [(name, signal.SIGTERM) for name in ("evaluate", "infer", "doctor", "benchmark memory")]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_nothing_outlives_a_command(name: str, kind: int, inputs: dict[str, Path], tmp_path: Path) -> None:
    command, log = command_of(name, inputs, tmp_path), tmp_path / "log.txt"
    process: BaseProcess | subprocess.Popen[bytes]
    if name in ("stress", "benchmark memory"):
        with log.open("wb") as file:
            process = subprocess.Popen([sys.executable, "-m", "detector", *command], stdout=file, stderr=file)
    else:
        process = start(command[0], command[1:], log)
    children: set[int] = set()
    try:
        deadline = time.monotonic() + 120
        least = 4 if name == "stress" else 1  # the fork server, its tracker, inference and its loader
        while len(children := descendants(process.pid)) < least:
            assert wait(process, 0.02) is None, log.read_text()
            assert time.monotonic() < deadline, "it starts no process"
        time.sleep(0.3)  # some more of them, and at work
        children |= descendants(process.pid)
        assert wait(process, 0) is None, log.read_text()
        os.kill(process.pid, kind)
        code = wait(process, END_SECONDS)
        deadline = time.monotonic() + END_SECONDS
        while (left := {pid for pid in children if is_alive(pid)}) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (left, code is None) == (set(), False)
        if kind == signal.SIGTERM:
            assert code == (75 if name == "infer" else 143)
            assert log.read_text().splitlines()[-1].startswith("stopped")
            assert "Traceback" not in log.read_text()
    finally:
        for pid in {process.pid, *children}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_everything_works_outside_the_main_thread(shapes: Path, tmp_path: Path) -> None:
    """Training and its loaders, loading and predicting; a signal meanwhile is the main thread's alone."""
    given = [*TINY, *data_overrides(shapes), "train.batch_size=4", "train.steps=2", "data.workers=1"]
    run, found = RunFolder(tmp_path / "run"), []

    def work() -> None:
        found.append(fit(load_config(CONFIG, given), run, torch.device("cpu")))
        found.extend(detector.load(run.best, "cpu").predict(sorted((shapes / "images").iterdir())[:2], 0.0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 3
    assert found[0] is True


STATE = """
import json, os, signal, sys, threading, warnings
import cv2, numpy, PIL.Image, torch, torchvision, torchvision.io, detector.inference.folder, detector.training.fitting
torch.empty(1), torch.nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 8, 8))

def state():
    return {
        "environment": dict(os.environ), "warnings": [str(row) for row in warnings.filters],
        "random": torch.get_rng_state().tolist(), "numpy": str(numpy.random.get_state()), "python": sys.path,
        "denormals": torch.full((1,), 1e-39).mul(1.0).item(), "type": str(torch.get_default_dtype()),
        "threads": [torch.get_num_threads(), cv2.getNumThreads(), threading.active_count()],
        "log": cv2.utils.logging.getLogLevel(), "pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "gradients": torch.is_grad_enabled(),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "sharing": torch.multiprocessing.get_sharing_strategy(), "folder": os.getcwd(),
    }

before = state()
predictor = detector.load(sys.argv[1], "cpu")
predictor.predict([sys.argv[2]])
after = state()
print([name for name in before if before[name] != after[name]], before["denormals"] > 0, before["log"])
"""


def test_loading_changes_nothing_of_the_process(inputs: dict[str, Path]) -> None:
    image = next((inputs["shapes"] / "images").iterdir())
    command = [sys.executable, "-c", STATE, inputs["checkpoint"], image]
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"}  # commands set it
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[] True 3\n", done.stdout  # 3: OpenCV's warnings, its own choice


def test_a_command_sets_what_opencv_reads_and_imports_nothing_heavy() -> None:
    # In a process of its own: only there is nothing loaded yet that would read it too early.
    code = "import sys; from detector.system.processes import prepare_command; prepare_command(); "
    code += "print('torch' in sys.modules, 'cv2' in sys.modules); "
    code += "import cv2; print(cv2.utils.logging.getLogLevel())"
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "False False\n0\n"


needs_run_delay = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="this system does not count how long threads wait for a core"
)


@needs_run_delay
@pytest.mark.parametrize(
    "given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "passive"}, {"KMP_BLOCKTIME": "1"}], ids=str
)
def test_commands_watch_for_busy_processes_unless_a_person_chose_how_to_wait(given: dict[str, str]) -> None:
    code = "import threading; from detector.system.processes import prepare_command; "
    code += "prepare_command(); prepare_command(); print(threading.active_count())"
    environment = {name: value for name, value in os.environ.items() if name not in WAIT_POLICIES} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == ("1\n" if given else "2\n")


# Works until a second team of OpenMP's threads is kept, then ends in the middle of it.
CONTENTION = """
import threading, time
from detector.system.processes import prepare_command
prepare_command()
import torch
torch.set_num_threads(2)
ones, end = torch.ones(1 << 20), time.monotonic() + 30
while threading.active_count() < 3 and time.monotonic() < end:
    ones.mul_(1)
print(threading.active_count())
"""


@needs_run_delay
def test_threads_that_wait_give_way_to_busy_processes() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in WAIT_POLICIES}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        command = [sys.executable, "-c", CONTENTION]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert done.stdout == "3\n"
