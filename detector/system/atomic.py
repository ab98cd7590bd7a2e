"""Files written whole or not at all, and folders that only one process works in at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from detector.errors import ConfigError, DetectorError, StorageError

PARTIAL = ".partial"
LOCK = "lock"


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write ("w": UTF-8, "wb": bytes) that takes the name ``path`` once all of it is on disk.

    A crash, a kill or a full disk leaves the previous file. Raises :class:`detector.errors.StorageError`.
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
    """Turn a system error on writing ``path`` into a :class:`detector.errors.StorageError`."""
    try:
        yield
    except DetectorError:
        raise
    except Exception as error:
        # torch.save reports a full disk as its own error, caused by the system's.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise StorageError(
            f"{path}: cannot be written: {cause.strerror or cause}; what was saved before is intact. Fix the cause"
            " (free space, permissions, quota) and continue: train and infer with --resume"
        ) from None


def make_folder(folder: Path, may_exist: bool = True) -> None:
    """Make ``folder`` and its parents. Raises :class:`detector.errors.ConfigError`: most often it is misspelt."""
    try:
        folder.mkdir(parents=True, exist_ok=may_exist)
    except OSError as error:
        file = next((path for path in (folder, *folder.parents) if os.path.isfile(path)), None)  # noqa: PTH113
        fault = f"cannot be made: {error.strerror}" if file is None else "is a file; choose another name"
        raise ConfigError(f"{file or folder}: {fault}") from None


@contextlib.contextmanager
def folder_of(path: Path) -> Iterator[None]:
    """Make the folder of a file that is to be written; of what was made, what is still empty at the end goes again."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    missing = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    make_folder(path.parent)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in missing:
                folder.rmdir()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``path``, in place of an earlier one, once all of it is written."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with storing(path):
        try:
            partial.mkdir()
            yield partial
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_json_list(file: IO[str], values: Iterable[Any]) -> None:
    """A JSON list, written value by value, so that they need not fit into memory together."""
    file.write("[")
    for index, value in enumerate(values):
        file.write((", " if index else "") + json.dumps(value, ensure_ascii=False))
    file.write("]")


def check_new(*paths: Path) -> None:
    """Refuse paths to write to where something exists already."""
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: exists already; choose another name, or remove it")


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a file; after :func:`sync` it also survives a power cut."""
    with storing(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def sync(path: Path) -> None:
    """Wait until what was written to ``path``, if it exists, is on disk."""
    with storing(path), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets a folder be opened."""
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
    """Be the only process in ``folder``, which exists: hold ``folder/lock``, which names this process.

    The system releases the lock of a process that dies, however it dies, so a lock file left behind keeps nobody out.
    What a dead process has half written is removed. Raises :class:`detector.errors.ConfigError` with the process that
    holds the lock.
    """
    path = folder / LOCK
    with storing(path):
        descriptor = _lock(path)
    try:
        with storing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            for partial in folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        yield
    finally:
        # Removed while still held: a process that has opened it meanwhile finds that it is no longer the folder's lock.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(path, descriptor)
            with contextlib.suppress(FileNotFoundError):  # its holder has removed it meanwhile: try again
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(path: Path, descriptor: int) -> None:
    try:
        # A POSIX lock, not flock: forked loader processes, which outlive a killed run by seconds, do not inherit it,
        # and it works across network file systems.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _refusal(path, _holder(descriptor)) from None
    except OSError:  # a file system without locks: rely on the file's content
        holder = _holder(descriptor)
        if holder and _may_live(holder):
            raise _refusal(path, holder, f"; if that process has ended, remove {path}") from None


def _holder(descriptor: int) -> dict[str, Any]:
    """The process that the lock names; empty if it has not been written yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def user_of(folder: Path) -> str | None:
    """The process that is working in ``folder``, as ``"process 7 on host"``; None if there is none."""
    try:
        with (folder / LOCK).open("rb") as file:
            holder = _holder(file.fileno())
    except OSError:
        return None
    return _named(holder) if holder and _may_live(holder) else None


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '(unknown)')} on {holder.get('host', '(unknown)')}"


def _may_live(holder: dict[str, Any]) -> bool:
    """Whether the process of a lock may still run, which cannot be told of another machine."""
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, KeyError, TypeError, ValueError, OverflowError):
        return False
    return holder["pid"] != os.getpid()  # ours: a restarted container counts from 1 again


def _refusal(path: Path, holder: dict[str, Any], remedy: str = "") -> ConfigError:
    return ConfigError(
        f"{path.parent}: {_named(holder)} is using this folder; wait until it ends, or choose another one{remedy}"
    )
