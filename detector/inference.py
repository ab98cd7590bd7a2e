"""A folder of pictures through a predictor: predictions, drawings, and what could not be read."""

from __future__ import annotations

import glob
import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from detector.data.collate import init_worker
from detector.data.images import IMAGE_SUFFIXES, read_image
from detector.errors import DataError
from detector.predictor import Predictor
from detector.tasks import Task


class Summary(NamedTuple):
    found: str  # in all pictures, such as "12 objects"
    path: Path  # of the predictions
    errors: list[str]  # one line for each picture that could not be read


class _Item(NamedTuple):
    index: int
    image: np.ndarray | None  # [H, W, C], None if it could not be read
    sample: Any
    error: str


class _Pictures(Dataset[_Item]):
    def __init__(self, files: list[Path], predictor: Predictor) -> None:
        self.files = files
        self.task, self.config = predictor.task, predictor.config

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Item:
        try:
            image = read_image(self.files[index], self.config.model.in_channels)
        except DataError as error:
            return _Item(index, None, None, str(error))
        return _Item(index, image, self.task.make_sample(image, index + 1, self.config), "")


def find_images(pattern: str) -> tuple[Path, list[Path]]:
    """The pictures of a folder (searched whole), a file or a glob pattern, sorted, and the folder that they are in."""
    path = Path(pattern)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        root, candidates = path, path.rglob("*")
    elif glob.has_magic(pattern):
        matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207 (may be absolute)
        fixed = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)]
        root, candidates = Path(os.path.dirname(fixed)), iter(matches)  # noqa: PTH120 (Path drops the last slash)
    else:
        raise DataError(f"{pattern}: no such file or folder")
    files = sorted(file for file in candidates if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{pattern}: has no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return root, files


def infer_folder(
    predictor: Predictor,
    root: Path,
    files: list[Path],
    output: Path,
    score: float | None,
    draw_score: float | None,
    batch_size: int,
    workers: int,
) -> Summary:
    """Predict ``files`` and write ``output``; pictures that cannot be read are listed and do not stop the others.

    ``draw_score`` None draws nothing. File names in the output are relative to ``root``.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be made: {error.strerror}") from None
    loader = DataLoader(
        _Pictures(files, predictor), batch_size, num_workers=workers, collate_fn=list, worker_init_fn=init_worker
    )
    task, path = predictor.task, output / predictor.task.RESULTS
    results: list[dict] = []
    errors: list[dict] = []
    drawings: list[Future[None]] = []
    try:
        with (
            ThreadPoolExecutor(max_workers=2) as pool,
            tqdm(total=len(files), unit="img", disable=not sys.stderr.isatty()) as bar,
        ):
            for items in loader:
                good = [item for item in items if item.image is not None]
                errors += [{"file": str(files[item.index]), "error": item.error} for item in items if not item.sample]
                found_in = predictor.predict_samples([item.sample for item in good], score)
                for item, found in zip(good, found_in, strict=True):
                    name = files[item.index].relative_to(root)
                    results += task.to_results(found, item.index + 1, _as_text(name))
                    if draw_score is not None:
                        drawings.append(
                            pool.submit(_draw, task, item.image, found, draw_score, output / "images" / name)
                        )
                # Drawings hold their pictures until they are done; this also waits when drawing is slower.
                while len(drawings) > 4 * batch_size:
                    drawings.pop(0).result()
                bar.update(len(items))
            for drawing in drawings:
                drawing.result()
    except BaseException:
        # What was found so far is kept, under a name that says that it is not all.
        _write(task, results, path.with_suffix(f".partial{path.suffix}"))
        raise
    if errors:
        text = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
        (output / "errors.jsonl").write_text(text, encoding="utf-8", errors="backslashreplace")
    _write(task, results, path)
    return Summary(task.describe_results(results), path, [error["error"] for error in errors])


def _as_text(name: Path) -> Path:
    """A name that is not UTF-8 with � for what cannot be written."""
    return Path(os.fsencode(name).decode(errors="replace"))


def _write(task: Task, results: list[dict], path: Path) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    task.write_results(results, unfinished)
    unfinished.replace(path)


def _draw(task: Task, image: np.ndarray, found: Any, draw_score: float, path: Path) -> None:
    """One picture with what was found in it, under its own name."""
    drawing = task.draw(image, found, draw_score)
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        path = path.with_name(path.name + ".jpg")  # x.png and x.jpg may stand side by side
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.save(path, quality=90)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
