"""Data sets by URL: a copy of what a URL names, on this machine, brought up to date once per process.

Training reads every file in every epoch, and formats look for files beside each other, so the whole set is copied
first. ``cache/PROTOCOL/PATH`` mirrors the remote paths; a file that is there in the remote one's size and version is
not read again, and several processes of a machine share the copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from detector.config.schema import DataConfig, SplitConfig
from detector.data.names import is_url, leads_out
from detector.data.remote import open_system, reading
from detector.errors import DataError, counted
from detector.system.atomic import PARTIAL, append_line, make_folder, storing

THREADS = 16  # files that are read at once: a store answers many requests better than fast ones
VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


class _File(NamedTuple):
    size: int
    version: str  # as the store names it


def local_split(data: DataConfig, split: SplitConfig) -> SplitConfig:
    """The same files on this machine."""
    sets = [local_split(data, own) for own in split.sets]
    urls = {key: getattr(split, key) for key in ("annotations", "images")}
    local = {key: str(local_copy(url, _folder(data))) for key, url in urls.items() if url and is_url(url)}
    return split.model_copy(update=local | ({"sets": sets} if sets else {}))


def _folder(data: DataConfig) -> Path:
    if data.cache is not None:
        return Path(data.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detector"


@cache
def local_copy(url: str, folder: Path) -> Path:
    """The file or folder of a URL, below ``folder``. Raises DataError where it cannot be read."""
    system, path = open_system(url)
    protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    target = folder / protocol / path.strip("/")
    with reading(url):
        remote = {name: _version(info) for name, info in system.find(path, detail=True).items()}
    if not remote:
        raise DataError(f"{url}: has no files, or does not exist")
    places = {name: target.parent / _below(name, path, url) for name in remote}
    index = folder / ".index" / hashlib.sha256(url.encode()).hexdigest()[:16]
    make_folder(index.parent)
    with _alone(index.with_suffix(".lock")):
        known = _read_index(index)
        for name in known.keys() - remote.keys():
            (target.parent / _below(name, path, url)).unlink(missing_ok=True)
        wanted = [name for name in remote if known.get(name) != remote[name] or not places[name].is_file()]
        if wanted:
            size = sum(remote[name].size for name in wanted)
            print(f"{url}: copying {counted(len(wanted), 'file')} ({size / 1e6:,.1f} MB) to {target}", file=sys.stderr)

        def fetch(name: str) -> str:
            place = places[name]
            partial = place.with_name(f"{place.name}.{os.getpid()}{PARTIAL}")
            with storing(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with reading(system.unstrip_protocol(name)):
                        system.get_file(name, str(partial))
                    partial.replace(place)
                finally:
                    partial.unlink(missing_ok=True)
            return name

        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for name in tqdm(
                    pool.map(fetch, wanted), total=len(wanted), unit="file", disable=not sys.stderr.isatty()
                ):
                    append_line(index, json.dumps([name, *remote[name]]))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return target


def _below(name: str, path: str, url: str) -> str:
    """A file's path below the folder that holds what the URL names."""
    parent = path.rstrip("/").rpartition("/")[0]
    below = name.removeprefix(parent).lstrip("/")
    if leads_out(below):
        raise DataError(f"{url}: holds a file {name!r}, which leads out of the folder; rename it")
    return below


def _version(info: dict[str, Any]) -> _File:
    version = next((info[key] for key in VERSIONS if info.get(key) is not None), "")
    return _File(int(info.get("size") or 0), str(version))


def _read_index(index: Path) -> dict[str, _File]:
    """What was copied, by remote name; the last line of a file counts."""
    known = {}
    with contextlib.suppress(FileNotFoundError), index.open(encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError):  # cut short by a kill
                name, size, version = json.loads(line)
                known[name] = _File(size, version)
    return known


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process has this lock: the ranks of a machine share one copy."""
    with storing(path), path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
