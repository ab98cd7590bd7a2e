"""Files that outlast a crash: written whole or not at all, and folders that one process works in at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from detector.errors import ConfigError, DetectorError, StorageError

PARTIAL = ".partial"
LOCK = "lock"


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write ("w": UTF-8, "wb": bytes) that takes the name ``path`` once all of it is on the disk.

    A crash, a kill or a full disk leaves what stood there before. Raises :class:`~detector.errors.StorageError`.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    # A file name that is not UTF-8 becomes an escape, which JSON reads back.
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with storing(path):
        try:
            with partial.open(mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` into a :class:`~detector.errors.StorageError`."""
    try:
        yield
    except DetectorError:
        raise
    except Exception as error:
        # torch.save reports a full disk as an error of its own, with the system's one behind it.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise StorageError(
            f"{path}: cannot be written: {cause.strerror or cause}; what was saved before stands. Mend it (free space,"
            " permissions, quota) and continue: train and infer with --resume"
        ) from None


def make_folder(folder: Path, may_exist: bool = True) -> None:
    """Make ``folder`` and those above it. Raises :class:`~detector.errors.ConfigError`: most often, it is misspelt."""
    try:
        folder.mkdir(parents=True, exist_ok=may_exist)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str) -> None:
    """One line at the end of a file; :func:`sync` makes it outlast a power cut too."""
    with storing(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def sync(path: Path) -> None:
    """Wait until what was written to ``path``, if it exists, is on the disk."""
    with storing(path), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; not every system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Work in ``folder``, which exists, alone: ``folder/lock`` is held, and names this process.

    The system lets go of the lock of a process that dies, however it dies, so the file that it leaves keeps nobody
    out. What is half written by a dead process is removed. Raises :class:`~detector.errors.ConfigError` with the
    process that holds the lock.
    """
    path = folder / LOCK
    with storing(path):
        descriptor = _lock(path)
    try:
        with storing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            for partial in folder.glob(f"*{PARTIAL}"):
                partial.unlink(missing_ok=True)
        yield
    finally:
        # Removed while it is still held: who opened it meanwhile finds that it is not the folder's lock any more.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(path, descriptor)
            with contextlib.suppress(FileNotFoundError):  # who held it has removed it meanwhile: restart
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(path: Path, descriptor: int) -> None:
    try:
        # A POSIX lock, not flock: forked loader processes, which outlive a killed run by seconds, do not inherit it,
        # and it reaches over network file systems.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _refusal(path, _holder(descriptor)) from None
    except OSError:  # a file system without locks: what the file says must do
        holder = _holder(descriptor)
        if holder and _may_live(holder):
            raise _refusal(path, holder, f"; if that process has ended, remove {path}") from None


def _holder(descriptor: int) -> dict[str, Any]:
    """The process that wrote the lock; empty if it has not yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _may_live(holder: dict[str, Any]) -> bool:
    """Whether the process of a lock may still run; of another machine, nobody here can tell."""
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, KeyError, TypeError, ValueError, OverflowError):
        return False
    return holder["pid"] != os.getpid()  # a container that was started again counts from 1 again


def _refusal(path: Path, holder: dict[str, Any], remedy: str = "") -> ConfigError:
    who = f"process {holder.get('pid', '(unknown)')} on {holder.get('host', '(unknown)')}"
    return ConfigError(f"{path.parent}: {who} works in this folder; wait for its end, or choose another one{remedy}")
