"""Processes that end together: signals in the main one, and children that never outlive their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

# Rounds that a thread of OpenMP's (GNU's, which torch's wheels for Linux hold) waits actively for its next work, before
# it sleeps. docs/BENCHMARKS.md has what other numbers cost; a person's own choice stands in one of WAIT_POLICIES.
SPIN_COUNT = 2_000
WAIT_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_SECONDS = 0.5


def prepare_command() -> None:
    """Set up a command's process and those that it starts, before torch and OpenCV are loaded and read it."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    if not any(name in os.environ for name in WAIT_POLICIES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    be_quiet()


def be_quiet() -> None:
    """What Pillow finds odd in a TIFF file is no business of who reads a million of them."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


@contextlib.contextmanager
def ends_with_its_pipe() -> Iterator[None]:
    """Exit quietly, with the code that a shell has for it, when nobody reads the output any more (``| head``)."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, for at Python's end it can only be complained about
    except BrokenPipeError:
        nowhere, asked = os.open(os.devnull, os.O_WRONLY), select.poll()
        for stream in (sys.stdout, sys.stderr):
            asked.register(stream.fileno(), 0)  # what is told unasked: that the other end is closed
        broken = asked.poll(0)
        if not broken:
            raise  # another pipe's
        for descriptor, _ in broken:
            os.dup2(nowhere, descriptor)  # what a stream still holds goes there at Python's end
        raise SystemExit(128 + signal.SIGPIPE) from None


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call ``handler`` for the first Ctrl-C or SIGTERM; the second one ends the process at once, whatever it waits for.

    Outside the main thread, where Python takes no handlers, signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        for known in STOP_SIGNALS:
            signal.signal(known, signal.SIG_DFL)  # the system's own way: a handler would wait for a hanging read
        handler(number, frame)

    previous = {number: signal.signal(number, first) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before or signal.SIG_DFL)


def interrupt(number: int, _frame: FrameType | None) -> None:
    """A handler: SIGTERM raises KeyboardInterrupt as Ctrl-C does, with the signal's number."""
    raise KeyboardInterrupt(number)


def begin_child() -> None:
    """What a forked process does first: it leaves Ctrl-C to its parent, whose death it does not outlive."""
    # Ctrl-C, and torchrun when it stops, signal the whole process group. The main process decides when its children end
    # (it finishes a step and saves first), so they leave the group; it ends them by SIGTERM.
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    be_quiet()
    end_with_parent()


def end_with_parent(pid: int | None = None) -> None:
    """End this process when its parent is gone, whatever that died of: at once if forked, else in half a second.

    ``pid`` is the parent's where it was not ``multiprocessing`` that started this process. A thread waits, so that it
    ends also where the main one hangs in a pipe that nobody reads any more.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if pid is None and parent is not None:
            parent.join()
        while pid is not None and os.getppid() == pid:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def child_command(module: str, *arguments: str) -> list[str]:
    """``python -m MODULE ARGUMENTS`` for ``subprocess``, as a process that ends with this one."""
    code = f"from detector.processes import end_with_parent; end_with_parent({os.getpid()}); import runpy;"
    code += f" runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code, *arguments]


def child_environment() -> dict[str, str]:
    """This process's, in which another one finds the package that is running, also where it is not installed."""
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
