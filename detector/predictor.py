"""Prediction on single pictures from Python: a checkpoint in, boxes or classes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from detector.checkpoint import checkpoint_categories, load_model, override_config
from detector.config import Config
from detector.data.coco import Category
from detector.data.collate import collate
from detector.data.images import read_image
from detector.distributed import choose_device
from detector.errors import DataError
from detector.interchange import open_checkpoint
from detector.models import Model
from detector.tasks import get_task

Picture = str | Path | Image.Image | np.ndarray | Tensor


class Predictor:
    """A model with all that stands around it: reading, resizing, batching and the classes' names."""

    def __init__(self, model: Model, config: Config, categories: list[Category], device: torch.device) -> None:
        self.device = device
        self.model = model.to(device).eval()
        self.config = config
        self.categories = categories
        self.task = get_task(config)

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | None = None, overrides: Sequence[str] = ()) -> Predictor:
        """Of a checkpoint of this package, torchvision, Detectron2 or MMDetection: a path, a URL or torchvision's name.

        ``key=value`` overrides change its config, such as ``model.predict.max_detections=300``. Raises
        :class:`~detector.errors.WeightsError` for a file that is missing or is no checkpoint.
        """
        content = open_checkpoint(path)
        config = override_config(content, path, overrides)
        model = load_model(content, path).fold_norms().to(memory_format=torch.channels_last)
        return cls(model, config, checkpoint_categories(content), choose_device(device))

    def predict(
        self, images: Sequence[Picture], score_threshold: float | None = None, batch_size: int = 8
    ) -> list[Any]:
        """What is in each picture: a path, a PIL image, an array [H, W, C] or a tensor [C, H, W], uint8 or uint16.

        Paths and PIL images are read upright (EXIF). The result is a list of
        :class:`~detector.tasks.detection.Prediction`, where ``score_threshold`` stands in for the config's own, or of
        :class:`~detector.tasks.classification.ClassPrediction`. Raises :class:`~detector.errors.DataError` for a file
        that cannot be read, ValueError for an array of another kind.
        """
        if isinstance(images, str | Path | Image.Image):
            raise TypeError("predict takes a list of pictures; wrap a single one: predict([picture])")
        channels = self.config.model.in_channels
        predictions: list[Any] = []
        for start in range(0, len(images), batch_size):
            arrays = [as_array(image, channels) for image in images[start : start + batch_size]]
            predictions += self.predict_samples([self.sample(array) for array in arrays], score_threshold)
        return predictions

    def sample(self, image: np.ndarray, image_id: int = 0) -> Any:
        """A picture [H, W, C] as the model wants it, without targets."""
        return self.task.make_sample(image, image_id, self.config)

    @torch.inference_mode()
    def predict_samples(self, samples: list[Any], score_threshold: float | None = None) -> list[Any]:
        """What is in each sample, computed as one batch."""
        if not samples:
            return []
        config = self.config.model
        if score_threshold is not None:
            config = self.task.with_threshold(config, score_threshold)
        batch = collate(samples).to(self.device)
        output = self.model(batch.images, batch.sizes)
        return self.task.to_predictions(self.task.predict(output, batch, config), self.categories, config)


def as_array(image: Picture, channels: int = 3) -> np.ndarray:
    """Any kind of picture as [H, W, C] uint8 or uint16; RGB if ``channels`` is 3."""
    if isinstance(image, str | Path):
        return read_image(Path(image), channels)
    if isinstance(image, Image.Image):
        try:
            upright = ImageOps.exif_transpose(image)  # reads the file, if PIL has only opened it yet
        except Exception as error:  # damaged files raise almost anything
            name = getattr(image, "filename", "") or "a PIL image"
            raise DataError(f"{name}: cannot be decoded: {' '.join(str(error).split())}") from None
        is_deep = upright.mode.startswith("I")  # 16 bits a pixel, which PIL would clip to 255; in 16 or in 32 bits
        if channels in (1, 3) and not is_deep:
            upright = upright.convert({1: "L", 3: "RGB"}[channels])
        array = np.asarray(upright)
        if is_deep and array.min() >= 0 and array.max() < 2**16:
            array = array.astype(np.uint16)
        array = array.reshape(*array.shape[:2], -1)
        if is_deep and channels == 3:
            array = array.repeat(3, axis=2)
    elif isinstance(image, Tensor) and image.ndim == 3:
        array = image.permute(1, 2, 0).cpu().numpy()
    else:
        array = np.asarray(image)
    if array.dtype not in (np.uint8, np.uint16) or array.ndim != 3 or array.shape[2] != channels or array.size == 0:
        kind = f"tensor [{channels}, H, W]" if isinstance(image, Tensor) else f"array [H, W, {channels}]"
        raise ValueError(f"a picture must be a uint8 or uint16 {kind}; this one is {array.dtype} {list(array.shape)}")
    return array
