"""Pages with a gallery of many images: the training data, or what inference drew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from detector.data.spot_check import spread
from detector.errors import DetectorError
from detector.reports.drawing import contact_sheet
from detector.reports.pages import Gallery, PageImage, Section, Text, page_image, within_budget, write_page
from detector.tasks import Data, Views


def browse(path: Path, title: str, data: Data, views: Views, number: int, variants: int) -> int:
    """Write a page of samples of ``data``, each as stored and as the loader yields it in the first ``variants`` epochs.

    Returns the number shown. Raises :class:`detector.errors.DataError` for an image that cannot be read.
    """
    indices = spread(len(data), number)
    shown = within_budget(_samples(data, views, indices, variants))
    text = f"Left: as stored; then as the loader yields it in {variants} epochs. Click to enlarge."
    section = Section(f"{len(shown)} of {len(data):,} images", [Text(text), Gallery(shown, column=420)])
    write_page(path, title, f"{data.source}: {data.summary()}", [section])
    return len(shown)


def _samples(data: Data, views: Views, indices: Sequence[int], variants: int) -> Iterator[PageImage]:
    stored = views.untransformed(data)
    for index in indices:
        samples = [stored[0, index], *(data[epoch, index] for epoch in range(1, variants + 1))]
        for sample in samples:
            if isinstance(sample, DetectorError):
                raise sample
        drawings = [views.draw_sample(sample, data.categories) for sample in samples]
        sizes = [f"{sample.image.shape[2]}×{sample.image.shape[1]}" for sample in samples]
        caption = f"{data.file(index).name}, {sizes[0]} as stored; {', '.join(sizes[1:])}"
        yield page_image(contact_sheet(drawings, len(drawings), gap=8), caption, long_side=1200, quality=78)


def show_drawings(path: Path, title: str, folder: Path, number: int) -> int:
    """Write a page of at most ``number`` of the JPEG files in ``folder``, evenly spread; returns the number shown."""
    files = sorted(folder.rglob("*.jpg"))
    shown = within_budget(_drawings(files[index] for index in spread(len(files), number))) if files else []
    lead = f"{len(shown):,} of {len(files):,} images in {folder}."
    write_page(path, title, lead, [Section("Images", [Gallery(shown)])])
    return len(shown)


def _drawings(files: Iterator[Path]) -> Iterator[PageImage]:
    for file in files:
        with Image.open(file) as image:
            yield page_image(image, file.name, long_side=640, quality=75)
