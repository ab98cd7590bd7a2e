"""Files that are whole or not there, and one process per folder."""

from __future__ import annotations

import errno
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from disk import Disk

from detector.errors import ConfigError, StorageError
from detector.system import atomic
from detector.system.atomic import append_line, atomic_write, only_one, write_json

forked = multiprocessing.get_context("fork")


def test_a_file_is_whole_or_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("half")
        assert len(list(tmp_path.iterdir())) == 2
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with atomic_write(path) as file:
        file.write(json.dumps({"file": "ö\udcff"}, ensure_ascii=False))
    assert path.read_bytes() == '{"file": "ö\\udcff"}'.encode()
    assert json.loads(path.read_text()) == {"file": "ö\udcff"}


# --- every write in turn fails ----------------------------------------------------------------------------------------


def break_call(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """The call of that number fails; the list of those made."""
    calls: list[str] = []

    def breaks(call: str) -> bool:
        calls.append(call)
        return len(calls) == number

    Disk(monkeypatch, breaks)
    return calls


def test_a_checkpoint_that_any_call_cuts_short_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    content = {f"layer{number}": torch.ones(4) for number in range(4)}

    def save(step: int) -> None:
        with atomic_write(path, "wb") as file:
            torch.save({"step": step, **content}, file)

    save(0)
    broken = 0
    while True:
        broken += 1
        with monkeypatch.context() as patch:
            calls = break_call(patch, broken)
            try:
                save(broken)
            except StorageError as error:
                assert str(error).startswith(f"{path}: cannot be written: No space left on device; ")
                assert "\n" not in str(error)
            else:
                break
        # Whole: the one before, or, where only the folder could not be synced after the rename, the new one.
        assert torch.load(path, weights_only=True)["step"] in (0, broken)
        assert list(tmp_path.iterdir()) == [path]
    assert len(calls) == broken - 1 > 20  # each has failed once
    assert {*calls} == {"open x.pt", "write x.pt", "sync x.pt", "rename x.pt", "sync folder"}
    assert torch.load(path, weights_only=True)["step"] == broken


def test_a_line_that_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, "{}")
    for broken in (1, 2):
        with monkeypatch.context() as patch:
            break_call(patch, broken)
            with pytest.raises(StorageError, match=r"metrics.jsonl: cannot be written: No space left"):
                append_line(path, "{}")
    assert path.read_text() == "{}\n"


# --- one process a folder ---------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Any]:
    """A process that holds the lock of ``tmp_path``, and has a child that outlives it, as loaders do for seconds."""
    ready, child_ready = forked.Pipe()

    def hold() -> None:
        with only_one(tmp_path):
            child = forked.Process(target=lambda: child_ready.send(os.getppid()) or signal_wait())
            child.start()
            child.join()

    process = forked.Process(target=hold)
    process.start()
    assert ready.recv() == process.pid
    yield process
    process.kill()
    process.join()


def signal_wait() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        multiprocessing.connection.wait([], 0.05)
    multiprocessing.connection.wait([], 2)  # longer than the test


def test_a_second_process_is_refused_with_the_first_ones_id(tmp_path: Path, holder: Any) -> None:
    said = f"{tmp_path}: process {holder.pid} on {socket.gethostname()} is using this folder"
    with pytest.raises(ConfigError, match=said), only_one(tmp_path):
        pass
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid  # and the first one's is untouched

    # However it ends, and whatever child it leaves, the lock is free, and what it left half written goes.
    holder.kill()
    holder.join()
    half = tmp_path / f"last.pt.{holder.pid}.partial"
    half.touch()
    with only_one(tmp_path):
        assert json.loads((tmp_path / "lock").read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
        assert not half.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("holder", "is_refused"),
    [
        (b'{"pid": 1, "host": "HERE"}', True),  # lives
        (b'{"pid": 4194305, "host": "HERE"}', False),  # more than a system has
        (b'{"pid": SELF, "host": "HERE"}', False),  # a container that was started again counts from 1 again
        (b'{"pid": 4194305, "host": "another"}', True),  # nobody here can tell
        (b"", False),
        (b'{"pid"', False),
        (b"[]", False),
    ],
)
def test_without_locks_the_file_must_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: bytes, is_refused: bool
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "lockf", unsupported)
    here, own = socket.gethostname().encode(), str(os.getpid()).encode()
    (tmp_path / "lock").write_bytes(holder.replace(b"HERE", here).replace(b"SELF", own))
    if is_refused:
        with pytest.raises(ConfigError, match=r"if that process has ended, remove .*lock"), only_one(tmp_path):
            pass
    else:
        with only_one(tmp_path):
            pass


# --- a real disk that is full, or read-only ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting needs privileges; tests above inject the errors instead")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_and_a_read_only_disk(small_disk: Path) -> None:
    path = small_disk / "x.pt"

    def save(step: int) -> None:
        with atomic_write(path, "wb") as file:
            torch.save({"step": step, "weights": torch.zeros(150_000)}, file)  # 600 kB: a second one has no room

    save(1)
    with pytest.raises(StorageError, match="No space left on device"):
        save(2)
    assert torch.load(path, weights_only=True)["step"] == 1
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    save(3)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for write in (lambda: save(4), lambda: only_one(small_disk).__enter__(), lambda: append_line(path, "")):
        with pytest.raises(StorageError, match="Read-only file system"):
            write()
    assert torch.load(path, weights_only=True)["step"] == 3
