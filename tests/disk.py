"""A disk that refuses: the system's calls by which files are written, any of which a test lets fail."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Disk:
    """Names each call that writes, such as ``write last.pt``, and fails those for which ``breaks`` is true."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[str], bool]) -> None:
        self.breaks = breaks
        opened, fsync, replace, truncate, pwrite, low_open = (
            Path.open, os.fsync, Path.replace, os.ftruncate, os.pwrite, os.open
        )  # fmt: skip

        def open_checked(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode in ("r", "rb"):
                return opened(path, mode, *args, **kwargs)
            self.check("open", path)
            file = opened(path, mode, *args, **kwargs)
            write = file.write

            def write_checked(data: Any) -> Any:
                self.check("write", path)
                return write(data)

            file.write = write_checked
            return file

        def low_open_checked(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT:
                self.check("open", Path(path))
            return low_open(path, flags, *args, **kwargs)

        def replace_checked(path: Path, target: Path) -> Path:
            self.check("rename", path)
            return replace(path, target)

        def of_descriptor(verb: str, call: Any) -> Any:
            def checked(descriptor: int, *args: Any) -> Any:
                self.check(verb, Path(f"/proc/self/fd/{descriptor}").readlink())
                return call(descriptor, *args)

            return checked

        monkeypatch.setattr(Path, "open", open_checked)
        monkeypatch.setattr(Path, "replace", replace_checked)
        monkeypatch.setattr(os, "open", low_open_checked)
        monkeypatch.setattr(os, "fsync", of_descriptor("sync", fsync))
        monkeypatch.setattr(os, "ftruncate", of_descriptor("truncate", truncate))
        monkeypatch.setattr(os, "pwrite", of_descriptor("write", pwrite))

    def check(self, verb: str, path: Path) -> None:
        name = "folder" if path.is_dir() else re.sub(r"\.\d+\.partial$", "", path.name)
        if self.breaks(f"{verb} {name}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
