"""Images as the doctor reads them, against two threads that only decode them.

The doctor reads a file and its header, decodes it small and in gray, and computes two perceptual hashes, in as many
processes as there are cores. The other side decodes in colour (``cv2.imdecode``), as training would.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np

from detector.analysis.doctor.files import FileFacts, look_at_files
from detector.dev.benchmark.generate import write_photos
from detector.dev.benchmark.measure import BenchmarkError, Case, Run, Settings
from detector.system.processes import begin_child

GENERATED = 96  # images of --synthetic
IMAGES = 10_000  # the same ones repeatedly: enough for the start of processes not to matter
THREADS = 2


def cases(settings: Settings) -> list[Case]:
    own = Path(settings.data) if settings.data else None
    images, generated = settings.scaled(IMAGES), settings.scaled(GENERATED)
    return [
        Case(
            name=f"{images:,} JPEG files of {own.name if own else 'generated photos'}",
            files=None if own else lambda folder: write_photos(folder / "photos", generated),
            inputs=lambda folder: list_files(own or folder / "photos", images),
            ours=ours,
            theirs=theirs,
            equal=equal,
            images=images,
            runs=3,
            has_memory=False,
        )
    ]


def list_files(folder: Path, count: int) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise BenchmarkError(f"{folder}: has no JPEG files; name the data with --data FOLDER, or use --synthetic")
    return list(islice(cycle(files), count))


def ours(files: list[Path]) -> Run:
    return lambda: look_at_files(files, is_quick=False, title="doctor")


def theirs(files: list[Path]) -> Run:
    def run() -> int:
        # In a process of its own: after threads in OpenCV this one could not be forked, as our side does next.
        process = multiprocessing.get_context("fork").Process(target=decode_all, args=(files,))
        process.start()
        process.join()
        return len(files) if process.exitcode == 0 else 0

    return run


def decode_all(files: Sequence[Path]) -> None:
    begin_child()
    with ThreadPoolExecutor(THREADS) as pool:
        sys.exit(not all(pool.map(decodes, (files[start::THREADS] for start in range(THREADS)))))


def decodes(files: Sequence[Path]) -> bool:
    return all(cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR) is not None for file in files)


def equal(_files: list[Path], facts: list[FileFacts], decoded: int) -> bool:
    """Every image was decoded by both."""
    return decoded == sum(bool(own.digest) for own in facts)
