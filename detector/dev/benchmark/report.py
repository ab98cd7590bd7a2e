"""The evaluation report of 5,000 images and 500,000 detections, with the worst images drawn; there is no other side.

The check is that the page can be mailed: it has images, and at most ``MOST_BYTES``.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from detector.config.loader import config_from_dict
from detector.config.schema import Config
from detector.data.formats.reading import read_annotations
from detector.dev.benchmark import eval as evaluation
from detector.dev.benchmark.generate import IMAGES, TRAIN, write_annotations, write_photos
from detector.dev.benchmark.measure import Case, Run, Settings
from detector.reports import Scored
from detector.reports.box_page import detection_report

PHOTOS = 12  # files that all images link to
MOST_BYTES = 8_000_000


class Inputs(NamedTuple):
    folder: Path
    config: Config
    detections: evaluation.Inputs


def cases(settings: Settings) -> list[Case]:
    images = settings.scaled(evaluation.IMAGES)
    return [
        Case(
            name=f"{images:,} images, {images * evaluation.DETECTIONS:,} detections",
            files=lambda folder: write_set(folder / "set", images),
            inputs=lambda folder: make_inputs(folder / "set"),
            ours=ours,
            equal=equal,
            runs=2,
            slow=True,
        )
    ]


def write_set(folder: Path, images: int) -> None:
    """Write annotations as ``eval`` has them, and images of that size: links to a few generated ones."""
    write_photos(folder / "photos", 2 * PHOTOS)
    landscape = sorted((folder / "photos" / IMAGES).iterdir())[::2]
    (folder / IMAGES).mkdir()
    for index, photo in zip(range(images), cycle(landscape), strict=False):
        (folder / IMAGES / f"{index:06}.jpg").hardlink_to(photo)
    write_annotations(folder / TRAIN, [evaluation.SIZE] * images, evaluation.OBJECTS)


def make_inputs(folder: Path) -> Inputs:
    truth = read_annotations(folder / TRAIN)
    detections = evaluation.Inputs(truth, {}, evaluation.make_detections(truth))
    return Inputs(folder, config_from_dict({}, "benchmark"), detections)


def ours(inputs: Inputs) -> Run:
    folder, config, detections = inputs
    score = evaluation.ours(detections)

    def run() -> Path:
        scored = Scored("generated", detections.rows, score())
        report = detection_report(scored, detections.truth, config, folder / IMAGES)
        return report.write(folder / "report", "Evaluation")

    return run


def equal(_inputs: Inputs, page: Path, _other: Any) -> bool:
    """Whether the page has images and is not too large."""
    return page.stat().st_size <= MOST_BYTES and b"data:image/jpeg" in page.read_bytes()
