"""What a run reports about its data before the first step, and a drawing of the first batch."""

from __future__ import annotations

import sys

from detector.config.schema import Config
from detector.data.loading.collate import collate
from detector.errors import DetectorError, counted
from detector.reports.drawing import contact_sheet
from detector.system.atomic import atomic_write
from detector.tasks import Data, get_views
from detector.training.loop import count_steps, train_batches
from detector.training.run_folder import RunFolder

DRAWN, COLUMNS = 8, 4
LONG_SIDE = 640  # of a drawn image, at most

# A randomly initialised network needs several times the schedule of a pretrained one, which is 1.4 million images for
# COCO (He et al. 2019, section 5). With less than a tenth of the latter, expect nothing good.
SHORT_SCHEDULE = 100_000


def preview_run(config: Config, data: Data, val_data: Data | None, run: RunFolder) -> None:
    """Print the task's figures and warnings, and draw the first batch."""
    doubts = dict.fromkeys([*data.warnings(), *(val_data.warnings() if val_data is not None else [])])
    lines = [*get_views(config.task).preview(data, config), *doubts, *_warn_of_random_weights(config, len(data))]
    print("\n".join(lines), file=sys.stderr)
    draw_first_batch(config, data, run)


def draw_first_batch(config: Config, data: Data, run: RunFolder) -> None:
    """``first_batch.jpg``: the first images of the run's first step, with targets as the loss sees them."""
    batch = collate([data[key] for key in next(iter(train_batches(config, data, 0, 1)))])
    if isinstance(batch, DetectorError):
        return  # training fails on the same image, and reports it
    images = get_views(config.task).draw_batch(batch.first(DRAWN), data.categories, config.model)
    for image in images:
        image.thumbnail((LONG_SIDE, LONG_SIDE))
    with atomic_write(run.path / "first_batch.jpg", "wb") as file:
        contact_sheet(images, min(COLUMNS, len(images))).save(file, format="jpeg", quality=85)


def _warn_of_random_weights(config: Config, num_images: int) -> list[str]:
    names = [section.name for section in config.model.backbones if section.weights is None]
    steps, _ = count_steps(config.train, num_images)
    seen = steps * config.train.batch_size
    if not names or config.model.weights is not None or seen >= SHORT_SCHEDULE:
        return []
    return [
        f"warning: {counted(seen, 'image')} in {counted(steps, 'step')} (from a set of {num_images:,}) are few to train"
        f" {', '.join(names)} from random weights; pretrained ones (model.backbone.weights, --init-from) usually score"
        " far higher"
    ]
