"""Detection on single pictures from Python: a checkpoint in, boxes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from detector.checkpoint import checkpoint_categories, checkpoint_config, load_model, read_checkpoint
from detector.config import Config, apply_overrides
from detector.data.coco import Category, Sample
from detector.data.collate import collate
from detector.data.images import read_image
from detector.data.transforms import Transform
from detector.distributed import choose_device
from detector.models import Model
from detector.tasks import get_task

Picture = str | Path | Image.Image | np.ndarray | Tensor


class Prediction(NamedTuple):
    """What was found in one picture, best first; boxes in its own pixels."""

    boxes: np.ndarray  # [D, 4] float32 xyxy
    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int64, 0..K-1
    category_ids: np.ndarray  # [D] int64, the training set's own ids
    names: list[str]  # [D]


class Predictor:
    """A model with all that stands around it: reading, resizing, batching and the classes' names."""

    def __init__(self, model: Model, config: Config, categories: list[Category], device: torch.device) -> None:
        self.device = device
        self.model = model.to(device).eval()
        self.config = config
        self.categories = categories
        self.task = get_task(config)
        self.transform = Transform(config.data.resize)

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | None = None, overrides: Sequence[str] = ()) -> Predictor:
        """With ``key=value`` overrides of the checkpoint's config, such as ``model.predict.max_detections=300``.

        Raises :class:`~detector.errors.WeightsError` for a file that is missing or is no checkpoint.
        """
        torch.set_flush_denormal(True)
        content = read_checkpoint(path)
        config = apply_overrides(checkpoint_config(content, path), overrides, source=str(path))
        return cls(load_model(content, path), config, checkpoint_categories(content), choose_device(device))

    def predict(
        self, images: Sequence[Picture], score_threshold: float | None = None, batch_size: int = 8
    ) -> list[Prediction]:
        """What is in each picture: a path, a PIL image, an array [H, W, 3] or a tensor [3, H, W], both uint8 RGB.

        Paths and PIL images are read upright (EXIF). ``score_threshold`` stands in for the config's own. Raises
        :class:`~detector.errors.DataError` for a file that cannot be read, ValueError for an array of another kind.
        """
        if isinstance(images, str | Path | Image.Image):
            raise TypeError("predict takes a list of pictures; wrap a single one: predict([picture])")
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            arrays = [as_array(image) for image in images[start : start + batch_size]]
            predictions += self.predict_samples([self.sample(array) for array in arrays], score_threshold)
        return predictions

    def sample(self, image: np.ndarray, image_id: int = 0) -> Sample:
        """A picture [H, W, 3] as the model wants it, without targets."""
        no_boxes, no_labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
        resized = self.transform(image, no_boxes, no_labels, epoch=0, index=0)
        pixels = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        return Sample(
            pixels, torch.from_numpy(resized.boxes), torch.from_numpy(resized.labels), image.shape[:2], image_id
        )

    @torch.inference_mode()
    def predict_samples(self, samples: list[Sample], score_threshold: float | None = None) -> list[Prediction]:
        """What is in each sample, computed as one batch."""
        if not samples:
            return []
        config = self.config.model
        if score_threshold is not None:
            limits = config.predict.model_copy(update={"score_threshold": score_threshold})
            config = config.model_copy(update={"predict": limits})
        batch = collate(samples).to(self.device)
        predictions = self.model(batch.images, batch.sizes)
        detections = self.task.predict(predictions, batch, config)
        boxes, scores, labels = (part.cpu().numpy() for part in detections)
        found = []
        for row in range(len(samples)):
            is_kept = labels[row] >= 0
            own = labels[row][is_kept]
            found.append(
                Prediction(
                    boxes=boxes[row][is_kept],
                    scores=scores[row][is_kept],
                    labels=own,
                    category_ids=np.array([self.categories[label].id for label in own], dtype=np.int64),
                    names=[self.categories[label].name for label in own],
                )
            )
        return found


def as_array(image: Picture) -> np.ndarray:
    """Any kind of picture as [H, W, 3] uint8 RGB."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits a pixel: PIL would clip them to 255, a path is read by its high byte
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return np.asarray(upright.convert("RGB"))
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        kind = "tensor [3, H, W]" if isinstance(image, Tensor) else "array [H, W, 3]"
        raise ValueError(f"a picture must be a uint8 RGB {kind}; this one is {array.dtype} {list(image.shape)}")
    return array
