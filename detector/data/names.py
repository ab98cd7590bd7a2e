"""File names in annotations: which are refused, and which file is probably meant.

Annotations travel between systems. Tools write backslashes, URLs, the absolute paths of another machine, or paths from
another folder; file systems change letter case and the Unicode form; images are converted to another format.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from detector.data.images import IMAGE_SUFFIXES, why_missing
from detector.data.listing import walk
from detector.system.json_stream import show_text

FIX = "detector doctor --fix corrects such names"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
ALLOW_OUTSIDE = "set data.allow_outside=true (without a config: --allow-outside)"


class NameFault(NamedTuple):
    """A name that cannot be used."""

    index: int
    is_outside: bool  # False: there is no such file
    reason: str  # "leads out", "does not exist", …


def leads_out(name: str) -> bool:
    """Whether a name is absolute or has a ``..``, which ``data.allow_outside`` permits. Links are the user's own."""
    return os.path.isabs(name) or ".." in Path(name).parts  # noqa: PTH117


def check_names(names: Iterable[str], root: Path, allow_outside: bool) -> Iterator[NameFault]:
    """The names that lead out of ``root`` or to no file, in no particular order.

    The file system is asked once per folder, not per name: names may be many, and the disk remote.
    """
    by_folder: dict[Path, dict[str, int]] = defaultdict(dict)  # names of files, and their indices
    for index, name in enumerate(names):
        if not allow_outside and leads_out(name):
            yield NameFault(index, True, "leads out")
        else:
            file = Path(name)
            by_folder[root / file.parent][file.name] = index
    for folder, files in by_folder.items():
        plain = set()
        with (
            contextlib.suppress(OSError, ValueError),
            os.scandir(folder) as entries,
        ):
            plain = {entry.name for entry in entries if entry.name in files and entry.is_file(follow_symlinks=False)}
        # The rest are mistakes, links, and names that the file system spells differently (case, accents).
        for name in (name for name in files if name not in plain):
            path = os.path.join(folder, name)  # noqa: PTH118
            if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
                reason = "is not a file" if os.path.exists(path) else why_missing(Path(path))  # noqa: PTH110
                yield NameFault(files[name], False, reason)


def files_below(root: Path) -> Iterator[str]:
    """Names of the files below ``root``, relative to it."""
    return (name for name, is_file in walk(root) if is_file)


class Names:
    """Names of existing files, such as ``files_below`` a folder; they are read when the first lookup needs them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = names

    @cached_property
    def _ending(self) -> dict[str, list[str]]:
        """Files by the key of every end of their names, with an image's suffix and (marked by a slash) without."""
        ending = defaultdict(list)
        for name in self.names:
            for end in _ends(_key(name)):
                ending[end].append(name)
                if (stem := _stem(end)) != end:
                    ending[stem + "/"].append(name)
        return ending

    def meant(self, name: str) -> list[str]:
        """The files that ``name`` probably means: none, one, or several equally likely ones.

        They agree with it in the most folders from the end: ``/home/me/images/a%20b.JPG`` means ``images/a b.jpg``, or
        else ``a b.jpg``, or else ``a b.png``.
        """
        found = [files for written in _spellings(name) for files in self._alike(_key(written)) if files]
        certain = (files for files in found if len(files) == 1 and is_certain(name, files[0]))
        return next(certain, found[0] if found else [])

    def _alike(self, key: str) -> Iterator[list[str]]:
        """The files that share the longest end of ``key``, then those that share the longest end without the suffix."""
        ends = list(_ends(key))
        for keys in (ends, [_stem(end) + "/" for end in ends]):
            longest = next((end for end in keys if end in self._ending), "")
            files = self._ending.get(longest, [])
            # Prefer a file that lies in no further folder.
            whole = [file for file in files if _key(file).count("/") == longest.rstrip("/").count("/")]
            yield whole if len(whole) == 1 else files

    def hint(self, name: str, with_fix: bool = False) -> str:
        """``meant`` as the end of a message, empty where no file is alike; ``with_fix`` names the command for it."""
        found = self.meant(name)
        if len(found) == 1:
            fix = f" {FIX}" if with_fix and is_certain(name, found[0]) else ""
            return f"did you mean {show_text(found[0])}?{fix}"
        shown = ", ".join(map(show_text, sorted(found)[:3])) + (", …" if len(found) > 3 else "")
        return f"it may be any of {len(found)} files: {shown}" if found else ""


def is_url(text: object) -> bool:
    return _URL.match(str(text)) is not None


def is_certain(name: str, file: str) -> bool:
    """Whether the folders of ``name`` and ``file`` agree: one path's folders are the last ones of the other's.

    The folders of a URL are a server's, and ignored.
    """
    if is_url(name):
        return True
    there = _key(file).split("/")[:-1]
    for here in (_key(written).split("/")[:-1] for written in _spellings(name)):
        common = min(len(here), len(there))
        if here[len(here) - common :] == there[len(there) - common :]:
            return True
    return False


def _spellings(name: str) -> Iterable[str]:
    """``name`` as it is without backslashes, and without the escapes and the query of a URL."""
    plain = name.strip().replace("\\", "/").replace("?d=", "/")  # the latter is Label Studio's
    return dict.fromkeys((plain, unquote(plain), unquote(plain.split("?")[0])))


def _key(name: str) -> str:
    """A path, equal for names that differ only in letter case, Unicode form, or empty and ``.`` parts."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return "/".join(part for part in text.split("/") if part not in ("", "."))


def _ends(key: str) -> Iterator[str]:
    """``a/b/c``, ``b/c``, ``c``."""
    while key:
        yield key
        key = key.partition("/")[2]


def _stem(key: str) -> str:
    stem, suffix = os.path.splitext(key)  # noqa: PTH122
    return stem if suffix in IMAGE_SUFFIXES else key
