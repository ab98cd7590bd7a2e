"""A list of images in parts that processes predict apart, on any number of machines, and all parts joined.

Part k of n, a *shard*, has the images whose name has the hash k: every process finds the same parts in the same list
without a word from the others. Each part is a run of its own in a folder of its own, with the images' numbers in the
whole list; so all joined are what one process writes, byte for byte. Imports no torch.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detector.errors import ConfigError, DataError, counted
from detector.inference.exports import Exports
from detector.inference.folder import PART, ImageRows, Images, Part, Summary, list_digest, write_all
from detector.structures import Category
from detector.system.atomic import only_one, storing
from detector.tasks import get_results

FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")
AUTO = "auto"


class Shard(NamedTuple):
    """Shard ``index`` of ``count``, from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"shard {self.index}/{self.count}"

    @property
    def folder(self) -> str:
        return f"shard-{self.index}-of-{self.count}"

    def of(self, images: Images) -> Images:
        """Its images."""
        hashes = (hashlib.blake2b(name, digest_size=8).digest() for name in images.names)
        shards = np.fromiter((int.from_bytes(each, "big") % self.count for each in hashes), np.int64, len(images))
        return images.select(np.flatnonzero(shards == self.index - 1), str(self), list_digest(images.names))


def which_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """The shard of ``2/8``, ``auto`` (Slurm's variables) or ``auto/8`` (Slurm's or Kubernetes' index, from 0)."""
    option = f"command line: --shard {text}"
    first, _, last = text.partition("/")
    if first != AUTO:
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise ConfigError(f"{option}: is not a shard such as 1/8 or 8/8, nor auto or auto/8")
        return Shard(int(first), int(last))
    if last and not (last.isdecimal() and int(last)):
        raise ConfigError(f"{option}: {last!r} is not a number of shards, as in auto/8")
    index, count = _from_environment(environment, option, known=int(last or 0))
    if not 0 <= index < count:
        raise ConfigError(f"{option}: this process has the index {index}, but indices of {count} are 0 to {count - 1}")
    return Shard(index + 1, count)


def _from_environment(environment: Mapping[str, str], option: str, known: int) -> tuple[int, int]:
    """Index from 0 and number of processes; ``known``: the number, if it was given."""

    def number(name: str) -> int:
        try:
            return int(environment[name])
        except (KeyError, ValueError):
            raise ConfigError(f"{option}: the environment's {name} is not a number; give a shard, as in 1/8") from None

    if "SLURM_ARRAY_TASK_ID" in environment:
        index = number("SLURM_ARRAY_TASK_ID")
        if known:
            return index, known
        first, last, count = (number(f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT"))
        if first != 0 or last != count - 1:
            raise ConfigError(
                f"{option}: the job array is not 0 to N-1, so it does not say how many shards there are; give their"
                " number, as in auto/8"
            )
        return index, count
    if int(environment.get("SLURM_NTASKS", "1")) > 1:
        return number("SLURM_PROCID"), known or number("SLURM_NTASKS")
    if "JOB_COMPLETION_INDEX" in environment:
        if not known:
            raise ConfigError(f"{option}: Kubernetes does not tell a job its completions; give them, as in auto/8")
        return number("JOB_COMPLETION_INDEX"), known
    raise ConfigError(
        f"{option}: neither Slurm (SLURM_ARRAY_TASK_ID, SLURM_PROCID) nor Kubernetes (JOB_COMPLETION_INDEX) has set an"
        " index for this process; give a shard, as in 1/8"
    )


class Finished:
    """A part's folder, of which all images are done."""

    def __init__(self, folder: Path, remedy: str) -> None:
        self.folder, self.path = folder, folder / PART
        try:
            with self.path.open("rb") as file:
                header = json.loads(file.readline())
        except FileNotFoundError:
            raise DataError(f"{folder}: is not finished; {remedy}") from None
        except ValueError:
            raise DataError(f"{self.path}: is damaged; remove {folder}, and {remedy}") from None
        self.part, self.asked, self.remedy = Part(**header["part"]), header["asked"], remedy
        self.names = np.array([os.fsencode(name) for name in header["names"]], dtype=bytes)

    def named(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        with self.path.open("rb") as file:
            file.readline()
            for name, line in zip(self.names.tolist(), file, strict=True):
                yield name, json.loads(line)

    def check_lines(self) -> None:
        with self.path.open("rb") as file:
            number = sum(line.endswith(b"}\n") for line in file) - 1
        if number != len(self.names):
            raise DataError(
                f"{self.path}: has {counted(number, 'line')} for {counted(len(self.names), 'image')}; remove"
                f" {self.folder}, and {self.remedy}"
            )


class Joined(ImageRows):
    """The rows of all parts, in the order of the whole list. Raises DataError where they are not exactly that list."""

    def __init__(self, parts: list[Finished]) -> None:
        self.parts, first = parts, parts[0]
        for part in parts[1:]:
            for key in first.asked | part.asked:
                own, others = part.asked.get(key), first.asked.get(key)
                if own != others:
                    raise DataError(
                        f"{part.folder}: its {key} is {_shown(own)}, that of {first.folder} {_shown(others)}; predict"
                        " all parts with the same checkpoint and settings"
                    )
            if part.part[1:] != first.part[1:]:
                raise DataError(
                    f"{part.folder}: is of another list of images ({part.part.total:,}) than {first.folder}"
                    f" ({first.part.total:,}); predict all parts of the same images"
                )
        for part in parts:
            part.check_lines()
        names = np.sort(np.concatenate([part.names for part in parts]))
        if (len(names), list_digest(names)) != first.part[1:]:
            distinct = len(np.unique(names))
            raise DataError(
                f"{first.folder.parent}: the parts together have {counted(distinct, 'image')} of"
                f" {first.part.total:,}, and {len(names) - distinct:,} of them twice; predict the parts again"
            )

    def __len__(self) -> int:
        return self.parts[0].part.total

    def named(self) -> Iterator[tuple[str, dict[str, Any]]]:
        parts = sorted((part for part in self.parts if len(part.names)), key=lambda part: part.names[0])
        # Parts that follow each other are read one after another, as thousands of files cannot be open at once.
        is_apart = all(one.names[-1] < two.names[0] for one, two in pairwise(parts))
        streams = [part.named() for part in parts]
        merged = chain(*streams) if is_apart else heapq.merge(*streams, key=lambda pair: pair[0])
        return ((os.fsdecode(name), row) for name, row in merged)


def _shown(value: object) -> str:
    return str(value)[:40]


def find_shards(output: Path) -> list[Finished]:
    """All shards of a list, in their folders in ``output``. Raises DataError where some are missing or overlap."""
    found = sorted(
        Shard(*map(int, match.groups())) for path in output.glob("*") if (match := FOLDER.fullmatch(path.name))
    )
    if not found:
        raise DataError(f"{output}: has no shards (folders such as shard-1-of-8, which infer --shard writes)")
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        raise DataError(
            f"{output}: has shards of {' and of '.join(map(str, counts))}, which overlap; remove those of one number"
        )
    if missing := sorted(set(range(1, counts[0] + 1)) - {shard.index for shard in found}):
        shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise DataError(
            f"{output}: {counted(len(missing), 'shard')} of {counts[0]} missing: {shown}; predict them, as with"
            f" --shard {missing[0]}/{counts[0]}"
        )
    parts = []
    for shard in found:
        part = Finished(output / shard.folder, f"continue it with --shard {shard.index}/{shard.count} --resume")
        if part.part.label != str(shard):
            raise DataError(f"{part.folder}: holds {part.part.label}; give the folder its own name back")
        parts.append(part)
    return parts


def join(parts: list[Finished], output: Path) -> Summary:
    """Write ``output`` as one process would have. Drawings, masks and crops are linked to those of the parts."""
    with only_one(output):
        rows, asked = Joined(parts), parts[0].asked
        results = get_results(asked["task"])
        exports = Exports(tuple(asked.get("formats", ())), asked.get("crops"), asked.get("counts"))
        link_images(parts, exports, output)
        classes = [Category(*each) for each in asked["classes"]]
        return write_all(rows, results, classes, asked["model"], exports, output)


def link_images(parts: list[Finished], exports: Exports, output: Path) -> None:
    """Give ``output`` the parts' folders of an image's own files: all but those of label files, which are one's own."""
    written = {path.name for name, path in exports.targets(output).items() if name != "crops"}
    for part in parts:
        for folder in part.folder.iterdir():
            if folder.is_dir() and folder.name not in written:
                _link(folder, output / folder.name)


def _link(folder: Path, target: Path) -> None:
    """Give ``target`` the files of ``folder``, as hard links where the file system has them."""
    for path in folder.rglob("*"):
        link = target / path.relative_to(folder)
        if path.is_file() and not link.exists():
            with storing(link):
                link.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, link)
                except OSError:  # another file system, or one without links
                    shutil.copy2(path, link)
