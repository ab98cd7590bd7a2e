"""Predict a video: a line per frame, written as it goes, and the frames with what was found drawn on them.

``predictions.jsonl`` has one line per frame. ``progress.json`` says what was asked, until the video has ended: a run
that was stopped or killed continues after its last whole batch (of a live source, after its last line).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from detector.errors import ConfigError, DataError
from detector.inference.folder import check_asked
from detector.inference.images import ImagePredictor
from detector.inference.streaming import read_ahead
from detector.inference.video import Frame, Video
from detector.system.atomic import make_folder, only_one, storing, write_json
from detector.tasks import get_results

PREDICTIONS, PROGRESS, DRAWN = "predictions.jsonl", "progress.json", "video"
CODECS = {"webm": "VP80", "mp4": "mp4v"}  # what OpenCV's wheels can write: VP8, which browsers play, and MPEG-4 part 2
OF_IMAGES = ("image_id", "file_name", "path")  # what results say of their image; here, a line says which frame it is
LONGEST_HOLD = 10.0  # seconds for which a drawn frame is shown at most, until the next one


class Summary(NamedTuple):
    found: str  # such as "12 objects"
    path: Path  # of the predictions
    drawn: Path | None
    frames: int
    skipped: int  # of a live source: frames that came faster than they were predicted
    lost: int  # frames that could not be decoded
    note: str  # why the source ended, where there is something to say


def infer_video(
    predictor: ImagePredictor,
    video: Video,
    output: Path,
    score: float | None = None,
    draw_score: float | None = 0.4,
    batch_size: int = 8,
    drawn_as: str = "webm",
    resume: bool = False,
) -> Summary:
    """Predict ``video`` and write ``output``; ``draw_score`` None draws nothing, ``drawn_as`` is one of ``CODECS``.

    A file is predicted in full batches. Of a live source, a batch is what has come, and what comes while ``batch_size``
    frames wait takes the place of the oldest: a line is written at most two batches' time after its frame came. With
    ``resume`` a run that was stopped continues, its drawing in a file of its own, as no video can be appended to.
    """
    make_folder(output)
    results = get_results(predictor.config.task)
    with only_one(output):
        asked = {"model": predictor.digest(), "video": video.name, "every": video.every}
        asked |= {"from": video.start, "to": None if video.end == float("inf") else video.end}
        asked |= {"score": score, "draw_score": draw_score, "batch_size": batch_size}
        asked["bytes"] = Path(video.source).stat().st_size if video.is_file else None
        if draw_score is not None:
            check_codec(output, drawn_as)
        lines = _Lines(output, asked, 1 if video.is_live else batch_size, resume)
        drawing = None
        if draw_score is not None:
            name = f"{DRAWN}_{lines.last + 1:08}" if lines.done else DRAWN
            drawing = Drawing(output / f"{name}.{drawn_as}", video.rate if video.is_live else video.rate / video.every)
        with contextlib.closing(lines), contextlib.closing(drawing) if drawing else contextlib.nullcontext():
            try:
                _infer(predictor, video, lines, drawing, score, draw_score or 0.0, batch_size)
            except DataError:
                if not lines.done:  # there is no frame: nothing was begun
                    lines.remove()
                raise
        found = results.describe_results(lines.results())
        lines.finish()
    path = drawing.path if drawing and drawing.path.exists() else None
    return Summary(found, lines.path, path, lines.done, video.read - lines.added, video.lost, video.note)


def _infer(
    predictor: ImagePredictor,
    video: Video,
    lines: _Lines,
    drawing: Drawing | None,
    score: float | None,
    draw_score: float,
    batch_size: int,
) -> None:
    """Predict what remains. A line is written when its frame is predicted, not only when it is drawn."""
    results, sample = get_results(predictor.config.task), predictor.sampler()
    wait, drop = (0.0, True) if video.is_live else (None, False)
    drawn: Future[None] | None = None

    def draw(frames: list[Frame], found: list[Any]) -> None:
        for frame, prediction in zip(frames, found, strict=True):
            drawing.add(results.draw(frame.image, prediction, draw_score), frame.time)  # type: ignore[union-attr]

    with (
        ThreadPoolExecutor(max_workers=1) as pool,
        contextlib.closing(video.frames(lines.last)) as frames,
        contextlib.closing(
            read_ahead(((frame, sample(frame.image, frame.number)) for frame in frames), batch_size, wait, drop)
        ) as batches,
        contextlib.closing(video),  # first of all, so that no other waits for a stream that is silent
        tqdm(initial=lines.done, total=_total(video), unit="frame", disable=not sys.stderr.isatty()) as bar,
    ):
        for batch in batches:
            own = [frame for frame, _ in batch]
            found = predictor.predict_samples([sample for _, sample in batch], score)
            for frame, prediction in zip(own, found, strict=True):
                results.save(prediction, f"{frame.number:08}", lines.path.parent)
            lines.add(own, [results.to_results(each, 0, Path()) for each in found])
            if drawing is not None:
                if drawn is not None:
                    drawn.result()  # so that no more than one batch waits to be drawn
                drawn = pool.submit(draw, own, found)
            bar.update(len(batch))
        if drawn is not None:
            drawn.result()


def _total(video: Video) -> int | None:
    """How many frames will be predicted, where that is known."""
    is_whole = video.count and not video.is_live and not video.start and video.end == float("inf")
    return -(-video.count // video.every) if is_whole else None


class _Lines:
    """``predictions.jsonl``: whole lines only, whatever ends the process."""

    def __init__(self, output: Path, asked: dict[str, Any], whole: int, resume: bool) -> None:
        """``whole``: a resumed run keeps a multiple of this number of lines."""
        self.path, self._progress = output / PREDICTIONS, output / PROGRESS
        self.done, self.added, self.last = 0, 0, -1  # lines, those of this process, the last one's frame
        if resume and self._progress.exists():
            before = json.loads(self._progress.read_text(encoding="utf-8"))
            check_asked(self._progress, before, asked)
            self._restore(whole)
        else:
            write_json(self._progress, asked)
        with storing(self.path):
            self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")

    def _restore(self, whole: int) -> None:
        if not self.path.exists():
            return
        kept = end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"}\n"):  # cut short, or blank after a power cut
                    break
                end += len(line)
                if number % whole == 0:
                    kept, self.done, last = end, number, line
        if self.done:
            self.last = json.loads(last)["frame"]
        with storing(self.path):
            os.truncate(self.path, kept)

    def add(self, frames: list[Frame], results: list[list[dict[str, Any]]]) -> None:
        rows = [
            {
                "frame": frame.number,
                "time": round(frame.time, 6),
                "size": frame.image.shape[:2],
                "results": [{key: value for key, value in row.items() if key not in OF_IMAGES} for row in own],
            }
            for frame, own in zip(frames, results, strict=True)
        ]
        with storing(self.path):
            self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            self._file.flush()
        self.done, self.added, self.last = self.done + len(rows), self.added + len(rows), frames[-1].number

    def results(self) -> Iterator[dict[str, Any]]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield from json.loads(line)["results"]

    def close(self) -> None:
        with storing(self.path):
            self._file.close()

    def finish(self) -> None:
        """The video has ended: nothing is left to resume."""
        with storing(self._progress):
            self._progress.unlink()

    def remove(self) -> None:
        with storing(self.path):
            self.path.unlink()
        self.finish()


def check_codec(folder: Path, kind: str) -> None:
    """Raises :class:`detector.errors.ConfigError` where OpenCV cannot write such a video."""
    path = folder / f"{DRAWN}_check.{kind}"
    _open_writer(path, 25.0, (64, 64)).release()
    with storing(path):
        path.unlink(missing_ok=True)


def _open_writer(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    kind = path.suffix[1:]
    with _silent():  # FFmpeg says that WebM has no tags for codecs
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*CODECS[kind]), rate, size)
    if not writer.isOpened():
        others = " or ".join(f"--video {other}" for other in CODECS if other != kind)
        raise ConfigError(
            f"{path}: cannot be written: OpenCV lacks its codec {CODECS[kind]}, or the folder is read-only; take"
            f" {others}, or --no-images"
        )
    return writer


class Drawing:
    """A video of drawings at ``rate`` frames per second, in which each is shown from its time until the next one's."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._size, self._last = (0, 0), np.zeros(0, dtype=np.uint8)
        self._start, self._written = 0.0, 0

    def add(self, drawing: Image.Image, time: float) -> None:
        if self._writer is None:
            self._size, self._start = drawing.size, time
            self._writer = _open_writer(self.path, self.rate, self._size)
        # A stream may come back in another size, and a legend makes a drawing higher.
        image = drawing if drawing.size == self._size else ImageOps.pad(drawing, self._size)
        slot = round((time - self._start) * self.rate)
        if slot - self._written > LONGEST_HOLD * self.rate:
            self._start, slot = time - self._written / self.rate, self._written
        for _ in range(slot - self._written):
            self._write(self._last)
        self._last = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
        self._write(self._last)

    def _write(self, image: np.ndarray) -> None:
        self._writer.write(image)  # type: ignore[union-attr]
        self._written += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discard what a library of C writes to stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
