"""A command's process: its signals and its output, and children that never outlive it."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
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

from detector.errors import StorageError

# Environment variables that say how OpenMP's threads wait.
WAIT_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Seconds per second for which this process's threads are ready to run and wait for a core. Measured on two cores: up to
# 0.16 where nobody else uses them; beside a busy process 0.5 to 0.9 while they spin, 0.15 and more while they sleep.
CONTENDED, QUIET = 0.25, 0.1
QUIET_POLLS = 2  # until threads spin again

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.5
# What writing to a full or failing disk raises.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def prepare_command() -> None:
    """Set the environment that torch and OpenCV read when they are loaded, here and in child processes."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    silence_tiff_warnings()
    if not any(name in os.environ for name in WAIT_POLICIES):
        share_cores()


@functools.cache
def share_cores() -> None:
    """From now on, let OpenMP's waiting threads sleep while other processes want the cores.

    A waiting thread of GNU's OpenMP (in torch's wheels for Linux) spins for milliseconds. On free cores that is
    fastest; beside a busy process it can keep from the core the very thread it waits for. A process that has more
    OpenMP threads than cores spins 1/300 as long. So a second team, which does nothing, is kept while threads of this
    process wait for a core.
    """
    if not Path("/proc/self/schedstat").exists():
        return
    has_ended = threading.Event()

    def contention() -> float:
        waited, since = _seconds_ready(), time.monotonic()
        has_ended.wait(_POLL_SECONDS)
        return (_seconds_ready() - waited) / (time.monotonic() - since)

    def keep_team() -> None:
        import torch

        torch.ones(torch.get_num_threads() << 16).neg_()  # the team lives as long as the thread that needed it
        while not has_ended.is_set() and any(contention() > QUIET for _ in range(QUIET_POLLS)):
            pass

    def watch() -> None:
        while not has_ended.is_set():
            if contention() > CONTENDED and sys.modules.get("torch") and not has_ended.is_set():
                team = threading.Thread(target=keep_team, daemon=True)
                team.start()
                team.join()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()

    def end() -> None:  # at exit, no thread may be inside torch
        has_ended.set()
        watcher.join()

    atexit.register(end)


def _seconds_ready() -> float:
    """For how long threads of this process were ready to run but waited for a core (Linux's run delay)."""
    nanoseconds = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended
            nanoseconds += int(file.read_text().split()[1])
    return nanoseconds / 1e9


def silence_tiff_warnings() -> None:
    """Pillow warns of every oddity in a TIFF file, which is noise when reading a million of them."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


@contextlib.contextmanager
def ends_with_its_output() -> Iterator[None]:
    """Exit when stdout cannot be written: quietly if its reader is gone (``| head``), else with one line."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here: an error at interpreter exit can no longer be handled
    except BrokenPipeError:
        poll = select.poll()
        for stream in (sys.stdout, sys.stderr):
            poll.register(stream.fileno(), 0)  # POLLERR and POLLHUP are always reported
        broken = poll.poll(0)
        if not broken:
            raise  # another pipe
        _discard(*(descriptor for descriptor, _ in broken))
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.filename is not None or error.errno not in _DISK_ERRORS:
            raise
        with contextlib.suppress(OSError):  # stderr may be the same file
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        _discard(sys.stdout.fileno())
        raise SystemExit(StorageError.exit_code) from None


def _discard(*descriptors: int) -> None:
    """Send what their streams still hold, which Python flushes at exit, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any], ends_process: bool = False) -> Iterator[None]:
    """Call ``handler`` for the first Ctrl-C or SIGTERM; the second one kills the process immediately.

    With ``ends_process`` it still does after the block, where nothing but the end of a stopped process follows.
    Outside the main thread, where Python allows no handlers, signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    has_come = False

    def first(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True
        sys.unraisablehook = _report_unless_race
        for known in STOP_SIGNALS:
            signal.signal(known, signal.SIG_DFL)  # not a Python handler, which would wait for a hanging read
        handler(number, frame)

    report = sys.unraisablehook
    previous = {number: signal.signal(number, first) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if not (has_come and ends_process):
            for number, before in previous.items():
                signal.signal(number, before or signal.SIG_DFL)
            sys.unraisablehook = report


def _report_unless_race(unraisable: sys.UnraisableHookArgs) -> None:
    """Python's report, but for a signal that arrives while its handler is replaced: it and the first one are one."""
    if "race condition" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def interrupt(number: int, _frame: FrameType | None) -> None:
    """A handler that raises KeyboardInterrupt with the signal's number, for SIGTERM as for Ctrl-C."""
    raise KeyboardInterrupt(number)


def begin_child() -> None:
    """Call this first in a forked process: it then ignores Ctrl-C, and ends when its parent does."""
    # Ctrl-C, and torchrun when it stops, signal the whole process group. The main process decides when its children end
    # (it finishes a step and saves first), so they leave the group; it ends them by SIGTERM.
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    silence_tiff_warnings()
    end_with_parent()


def end_with_parent(pid: int | None = None) -> None:
    """End this process when its parent has ended for any reason, within half a second.

    ``pid`` is the parent's, needed if ``multiprocessing`` did not start this process. A thread waits for it, so the
    process ends even if the main thread hangs in a pipe that nobody reads any more.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if pid is None and parent is not None:
            parent.join()
        while pid is not None and os.getppid() == pid:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def child_command(module: str, *arguments: str) -> list[str]:
    """``python -m MODULE ARGUMENTS`` for ``subprocess``, in a process that ends with this one."""
    code = f"from detector.system.processes import end_with_parent; end_with_parent({os.getpid()}); import runpy;"
    code += f" runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code, *arguments]


def child_environment() -> dict[str, str]:
    """This process's environment, in which a child finds this package even if it is not installed."""
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
