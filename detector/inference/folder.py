"""Predict a folder of images: predictions, drawings, and a list of the images that could not be read.

``progress.jsonl`` has a line with the request, then one line per image, appended batch by batch. The predictions are
written from it at the end, so memory does not grow with the folder. A run that was killed continues after its last
whole batch; batches are the same, so the results are too, bit for bit.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import cache
from itertools import count, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from detector.data.formats.building import Source
from detector.data.formats.reading import has_part, read_rows
from detector.data.images import IMAGE_SUFFIXES
from detector.data.inputs import Reading
from detector.data.large import SHOWN, LargeFile
from detector.data.listing import list_images, sort_out
from detector.data.loading.sampler import EvalBatches, Key
from detector.errors import ConfigError, DataError, counted, near_path
from detector.inference.exports import NOTHING, Exports, class_folders, save_crops, write_exports
from detector.inference.images import ImagePredictor, Item
from detector.inference.world import FILE as GEOJSON
from detector.inference.world import write_geojson
from detector.reports.drawing import save_jpeg
from detector.structures import Category, Id
from detector.system.atomic import atomic_write, make_folder, only_one, storing
from detector.tasks import Results, get_results

PROGRESS = "progress.jsonl"
ERRORS = "errors.jsonl"
PART = "part.jsonl"  # the progress of a part that is finished


class Images(Sequence[Path]):
    """Files under ``root``, their names one array of bytes: 100,000 take a few MB, which loader processes share."""

    part: Part | None = None  # where these are not all

    def __init__(self, root: Path, names: Iterable[str], note: str = "") -> None:
        self.root = root
        self.note = note  # about other files there
        self.names = np.array(sorted(os.fsencode(name) for name in names), dtype=bytes)
        self.numbers = np.arange(1, len(self.names) + 1)  # of each image in the whole list, from 1

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]
        return self.root / self.name(index)

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def read(self, index: int, open_file: Callable[[Path], Any], _: Reading) -> Any:
        """The image, by what opens a file; what has no file is decoded as :class:`Reading` says."""
        return open_file(self[index])

    def has_changed(self, index: int, since: float) -> bool:
        try:
            return self[index].stat().st_mtime > since
        except OSError as error:
            raise DataError(f"{self[index]}: vanished while being read: {error.strerror}") from None

    def select(self, indices: np.ndarray | slice, label: str, digest: str) -> Images:
        """The images at ``indices``, ascending, as a part; ``label`` is its name, ``digest`` the whole list's."""
        part = copy(self)
        part.names, part.numbers = self.names[indices], self.numbers[indices]
        part.part = Part(label, len(self), digest)
        return part


class Part(NamedTuple):
    """One of several parts of a list of images, which processes predict apart."""

    label: str  # such as "shard 2/4"
    total: int  # images of the whole list
    digest: str  # of the whole list


def list_digest(names: np.ndarray) -> str:
    """Identifies a sorted list of names."""
    digest = hashlib.sha256()
    for start in range(0, len(names), 100_000):
        digest.update(b"\0".join(names[start : start + 100_000].tolist()) + b"\0")
    return digest.hexdigest()


def known_ids(images: Images, path: str) -> tuple[Images, dict[str, Id], list[str]]:
    """The images that annotations list, their ids by name, and the names of images that they do not list.

    In a format without ids, images are numbered as ``evaluate`` numbers them; of several parts, val is read, or else
    test.
    """
    source = Source(Path(path))
    part = next((part for part in ("val", "test") if has_part(source, part)), source.part)
    rows = read_rows(replace(source, part=part), is_strict=True)
    real = cache(os.path.realpath)

    def name_of(index: int) -> str:
        name = rows.names[index]
        if rows.root is None:
            return PurePosixPath(name).as_posix()
        folder, file = os.path.split(rows.root / name)
        return os.path.relpath(os.path.join(real(folder), file), real(images.root))  # noqa: PTH118

    listed = {name_of(index): rows.image_ids[index] for index in range(len(rows.names))}
    names = [images.name(index) for index in range(len(images))]
    found = [name for name in names if PurePosixPath(name).as_posix() in listed]
    if not found:
        raise DataError(
            f"{path}: lists no image of {images.root} ({len(names):,}, such as {names[0]}); its file names"
            f" must be those below --input, such as {next(iter(listed), 'none')}"
        )
    unknown = sorted(set(names) - set(found))
    return type(images)(images.root, found), listed, unknown  # type: ignore[return-value]


class Summary(NamedTuple):
    found: str  # such as "12 objects"
    path: Path  # of the predictions
    images: int
    read: int
    num_errors: int  # images that could not be read, or changed during the run
    errors: list[str]  # the first ten, one line each
    exports: list[str]  # a line on each file or folder that was written besides


class _Samples:
    """The images of a run, in the form that the predictor takes."""

    def __init__(self, progress: _Progress, predictor: ImagePredictor, are_kept: bool) -> None:
        self.images, self.began = progress.images, progress.began
        self.open, self.reading = predictor.opener(), predictor.reading
        self.make_sample, self.are_kept = predictor.sampler(), are_kept

    def file(self, index: int) -> Path:
        return self.images[index]

    def __getitem__(self, key: Key) -> Item:
        _, index = key
        file = self.file(index)
        image = self.images.read(index, self.open, self.reading)
        has_changed = self.images.has_changed(index, self.began)
        note = f"{file}: was changed after the run began; its results are of the new content" if has_changed else ""
        return Item(image if self.are_kept else None, self.make_sample(image, index + 1), note)


def find_images(pattern: str) -> Images:
    """The images of a folder (searched recursively), a file or a glob pattern, sorted by name.

    Links are followed; a broken one is listed, and reported as unreadable later.
    """
    path = Path(pattern)
    if os.path.isfile(path):  # noqa: PTH113 (Path's functions raise for a name that is too long)
        return Images(path.parent, [path.name])
    if os.path.isdir(path):  # noqa: PTH112
        root, listing = path, list_images(path)
    elif glob.has_magic(pattern):
        fixed = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)]
        root = Path(os.path.dirname(fixed))  # noqa: PTH120 (Path drops the last slash)
        matches = (Path(match) for match in glob.iglob(pattern, recursive=True))  # noqa: PTH207 (may be absolute)
        found = ((match.relative_to(root).as_posix(), match.is_file()) for match in matches if not match.is_dir())
        listing = sort_out(root, found)
    else:
        raise DataError(f"{pattern}: no such file or folder{near_path(pattern)}")
    if not listing.files:
        skipped = f"; {listing.note()}" if listing.skipped else ""
        raise DataError(f"{pattern}: has no images ({', '.join(sorted(IMAGE_SUFFIXES))}){skipped}")
    return Images(root, listing.files, listing.note())


def infer_folder(
    predictor: ImagePredictor,
    images: Images,
    output: Path,
    score: float | None,
    draw_score: float | None,
    batch_size: int,
    workers: int,
    resume: bool = False,
    ids: Mapping[str, Id] | None = None,
    exports: Exports = NOTHING,
    engine: Callable[[Images], ImageRows] | None = None,
) -> Summary:
    """Predict ``images`` and write ``output``; those that cannot be read are listed and do not stop the others.

    ``ids`` are a data set's image ids by file name; without them, images are numbered from 1. ``draw_score`` None
    draws nothing. File names in the output are relative to the images' root. ``exports``, for detection only, are
    written besides. With ``resume`` a run that was stopped or killed continues with the images that it began with; its
    model and settings must be the same. ``engine`` predicts the images instead of this process.
    """
    make_folder(output)
    results = get_results(predictor.config.task)
    with only_one(output):
        digest = predictor.digest()
        asked = {"model": digest, "score": score, "draw_score": draw_score, "batch_size": batch_size}
        asked |= exports.asked()
        if ids is not None:
            asked["annotations"] = hashlib.sha256(json.dumps(sorted(ids.items())).encode()).hexdigest()
        if images.part is not None:  # for those who join the parts
            asked |= {"task": predictor.config.task, "classes": [list(each) for each in predictor.categories]}
        with contextlib.closing(_Progress(output / PROGRESS, images, asked, resume)) as progress:
            if engine is None:
                _infer(predictor, progress, output, score, draw_score, batch_size, workers, ids, exports)
            rows = progress if engine is None else engine(progress.images)
        summary = write_all(rows, results, predictor.categories, digest, exports, output)
        progress.remove()
    return summary


def write_all(
    rows: ImageRows, results: Results, categories: Sequence[Category], digest: str, exports: Exports, output: Path
) -> Summary:
    """Write everything that is made of the rows; the predictions come last: if they exist, the run is complete."""
    read, num_errors, errors = _write_errors(rows, output / ERRORS)
    written = write_exports(exports, rows.read, categories, f"detector {digest[:8]}", output)
    if results.HAS_BOXES:
        written += write_geojson(rows.read, output / GEOJSON)
    path = output / results.FILE
    results.write_results(rows.results(), path)
    found = results.describe_results(rows.results())
    return Summary(found, path, len(rows), read, num_errors, errors, written)


def _infer(
    predictor: ImagePredictor,
    progress: _Progress,
    output: Path,
    score: float | None,
    draw_score: float | None,
    batch_size: int,
    workers: int,
    ids: Mapping[str, Id] | None,
    exports: Exports,
) -> None:
    """Predict the remaining batches; a batch is done when its drawings and crops are."""
    results, images = get_results(predictor.config.task), progress.images
    batches = islice(EvalBatches(len(images), batch_size), progress.done // batch_size, None)
    waiting: deque[tuple[list[dict[str, Any]], list[Future[None]]]] = deque()

    samples = _Samples(progress, predictor, are_kept=draw_score is not None or exports.crops is not None)
    folders = class_folders(predictor.categories)

    def finish_first() -> None:
        rows, drawn = waiting.popleft()
        for drawing in drawn:
            drawing.result()
        progress.append(rows)

    with (
        ThreadPoolExecutor(max_workers=2) as pool,
        contextlib.closing(predictor.read(samples, batches, workers)) as loader,
        tqdm(initial=progress.done, total=len(images), unit="img", disable=not sys.stderr.isatty()) as bar,
    ):
        for first, items in zip(count(progress.done, batch_size), loader, strict=False):
            samples_read = [item.sample for item in items if item.sample is not None]
            found_in = iter(predictor.predict_or_error(samples_read, score))
            rows, drawn = [], []
            for index, item in enumerate(items, start=first):
                row: dict[str, Any] = {"error": item.error} if item.error else {}
                found = next(found_in) if item.sample is not None else None
                if isinstance(found, DataError):
                    row = {"error": str(found)}
                elif found is not None:
                    name = images.name(index)
                    image_id = ids[PurePosixPath(name).as_posix()] if ids else int(images.numbers[index])
                    row |= {"id": image_id, "size": item.sample.size_original}
                    row["results"] = results.to_results(found, image_id, _as_text(name))
                    drawn.append(pool.submit(results.save, found, name, output))
                    if draw_score is not None:
                        path = output / "images" / name
                        drawn.append(pool.submit(_draw, results, item.image, found, draw_score, path))
                    if exports.crops is not None:
                        given = item.image, found, exports.crops, folders, name, output
                        drawn.append(pool.submit(save_crops, *given))
                rows.append({"file": str(images[index])} | row)
            waiting.append((rows, drawn))
            # Drawings hold their images until they are done; this also waits when drawing is slower.
            while waiting and (len(waiting) > 4 or all(drawing.done() for drawing in waiting[0][1])):
                finish_first()
            bar.update(len(items))
        while waiting:
            finish_first()


class ImageRows(ABC):
    """A row per image: ``file``; ``id``, ``size`` (height, width), ``results`` if it was read; ``error`` if any."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def named(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The row of each image, with the image's name below the root."""

    def rows(self) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.named())

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows of the images that were read, with their ``name`` below the root."""
        return (row | {"name": name} for name, row in self.named() if "results" in row)

    def results(self) -> Iterator[dict[str, Any]]:
        for row in self.rows():
            yield from row.get("results", [])


class _Progress(ImageRows):
    """``progress.jsonl``: a line with the request and all names, then one line per image, in order.

    That of a part stays, as ``part.jsonl``: all parts are joined from these.
    """

    def __init__(self, path: Path, images: Images, asked: dict[str, Any], resume: bool) -> None:
        self.path, self.images = path, images
        self.began, self.done = time.time(), 0
        if not (resume and self._restore(asked)):
            header: dict[str, Any] = {"began": self.began, "asked": asked}
            header["names"] = [images.name(index) for index in range(len(images))]
            if images.part is not None:
                header |= {"numbers": images.numbers.tolist(), "part": images.part._asdict()}
            with atomic_write(path) as file:
                file.write(json.dumps(header) + "\n")
        with storing(path):
            self._file = path.open("a", encoding="utf-8")

    def _restore(self, asked: dict[str, Any]) -> bool:
        """Continue after the last whole batch of an earlier process; False if there was none."""
        if not self.path.exists():
            return False
        with self.path.open("rb") as file:
            header = file.readline()  # whole: it was written atomically
            known = json.loads(header)
            check_asked(self.path, known["asked"], asked)
            before = type(self.images)(self.images.root, known["names"])
            if "part" in known:
                before.numbers, before.part = np.array(known["numbers"], dtype=int), Part(**known["part"])
            if num_new := len(np.setdiff1d(self.images.names, before.names)):
                print(f"skipped {counted(num_new, 'image')} that came after the run began", file=sys.stderr)
            self.images, self.began = before, known["began"]
            kept = end = len(header)
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"}\n"):  # cut short, or blank after a power cut
                    break
                end += len(line)
                if number % asked["batch_size"] == 0 or number == len(before):
                    kept, self.done = end, number
        with storing(self.path):
            os.truncate(self.path, kept)
        return True

    def append(self, rows: list[dict[str, Any]]) -> None:
        with storing(self.path):
            self._file.write("".join(json.dumps(row) + "\n" for row in rows))
            self._file.flush()

    def __len__(self) -> int:
        return len(self.images)

    def named(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with self.path.open(encoding="utf-8") as file:
            for index, line in enumerate(islice(file, 1, None)):
                yield self.images.name(index), json.loads(line)

    def close(self) -> None:
        with storing(self.path):
            self._file.close()

    def remove(self) -> None:
        with storing(self.path):
            self.path.unlink() if self.images.part is None else self.path.rename(self.path.with_name(PART))


def check_asked(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume the run whose request is in ``path`` with another one."""
    for key in before | now:
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{path}: {key} was {before.get(key)}, is {now.get(key)}; keep it to resume, or choose another --output"
            )


def _write_errors(rows: ImageRows, path: Path) -> tuple[int, int, list[str]]:
    """Write ``errors.jsonl``, if there are any; returns the numbers of images read and of errors, and the first ten."""
    first: list[str] = []
    read = number = 0
    with contextlib.ExitStack() as stack:
        file = None
        for row in rows.rows():
            read += "results" in row
            if "error" in row:
                file = file or stack.enter_context(atomic_write(path))
                file.write(json.dumps({"file": row["file"], "error": row["error"]}, ensure_ascii=False) + "\n")
                number += 1
                if number <= 10:
                    first.append(row["error"])
    return read, number, first


def _as_text(name: str) -> Path:
    """A name with � for bytes that are not UTF-8."""
    return Path(os.fsencode(name).decode(errors="replace"))


def _draw(results: Results, image: np.ndarray | LargeFile, found: Any, draw_score: float, path: Path) -> None:
    """Draw the detections on an image and save it under its own name."""
    if isinstance(image, LargeFile):
        full, image = image.shape[:2], image.shrunk(SHOWN)
        found = results.shrunk(found, full, image.shape[:2])
    drawing = results.draw(image, found, draw_score)
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        path = path.with_name(path.name + ".jpg")  # there may be both x.png and x.jpg
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_jpeg(drawing, path, quality=90)
