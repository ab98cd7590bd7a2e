"""What lists of millions of images take: python tests/scale.py list 1e7; python tests/scale.py join 1e6 64

``list`` makes the names, sorts them and picks one of 64 shards. ``join`` writes finished shards with one object per
image into a temporary folder, and joins them. Each prints seconds of CPU and the most memory that the process had.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from detector.inference.folder import PART, Images, list_digest
from detector.inference.parts import Shard, find_shards, join


def names(count: int) -> Iterator[str]:
    return (f"camera{i % 997:03}/2026-{i % 12 + 1:02}-{i % 28 + 1:02}/frame_{i:09}.jpg" for i in range(count))


def say(what: str, start: float) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {time.process_time() - start:.1f} s of CPU, at most {most:,.0f} MB", flush=True)


def list_names(count: int) -> None:
    start = time.process_time()
    images = Images(Path("x"), names(count))
    say(f"{count:,} names, sorted", start)
    start = time.process_time()
    shard = Shard(1, 64).of(images)
    say(f"one shard of 64, {len(shard):,} images", start)


def write_shards(count: int, number: int, folder: Path) -> None:
    images = Images(Path("x"), names(count))
    digest = list_digest(images.names)
    hashes = (hashlib.blake2b(name, digest_size=8).digest() for name in images.names)
    shards = np.fromiter((int.from_bytes(each, "big") % number for each in hashes), np.int64, count)
    asked = {"model": "x" * 64, "batch_size": 8, "task": "detection", "classes": [[1, "circle"]]}
    for index in range(number):
        shard = Shard(index + 1, number)
        own = images.select(np.flatnonzero(shards == index), str(shard), digest)
        (folder / shard.folder).mkdir()
        listed = [own.name(row) for row in range(len(own))]
        header = {"asked": asked, "names": listed, "numbers": own.numbers.tolist(), "part": own.part._asdict()}
        with (folder / shard.folder / PART).open("w") as file:
            file.write(json.dumps(header) + "\n")
            for name, image_id in zip(listed, own.numbers.tolist(), strict=True):
                found = {"image_id": image_id, "file_name": name, "category_id": 1, "category_name": "circle"}
                found |= {"bbox": [1.25, 2.5, 30.75, 40.5], "score": 0.98765}
                row = {"file": f"x/{name}", "id": image_id, "size": [480, 640], "results": [found]}
                file.write(json.dumps(row) + "\n")


def join_shards(count: int, number: int) -> None:
    with TemporaryDirectory() as made:
        folder = Path(made)
        process = multiprocessing.Process(target=write_shards, args=(count, number, folder))  # its memory is its own
        process.start()
        process.join()
        size = sum(path.stat().st_size for path in folder.rglob(PART))
        start = time.process_time()
        summary = join(find_shards(folder), folder)
        say(f"{summary.images:,} images of {number} shards ({size / 1e6:,.0f} MB) joined", start)


if __name__ == "__main__":
    what, count, *more = sys.argv[1:]
    list_names(int(float(count))) if what == "list" else join_shards(int(float(count)), *map(int, more))
