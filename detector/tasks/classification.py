"""Classification: its data, what the loss is, how logits become classes, and how classes are scored."""

from __future__ import annotations

import copy
import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from detector.config.schema import Config, ModelConfig
from detector.data.classification import ClassDataset, ClassSample, open_classes
from detector.data.formats.class_folders import Labelled
from detector.data.inputs import ImageInput, Reading, as_shown, check_threshold
from detector.data.transforms.classes import ClassTransform
from detector.errors import ConfigError
from detector.evaluation.classification import by_picture, multi_label_metrics, single_label_metrics
from detector.evaluation.coverage import rare_classes
from detector.files.atomic import atomic_write
from detector.reports import Report, Scored, figure
from detector.reports.class_page import classification_report
from detector.reports.drawing import draw_confusion, draw_lines, score_texts
from detector.structures import Batch, Category, ClassTargets, Losses

PARTS = {"head.name": ("pooled", "classic")}
RESULTS = "predictions.csv"


class ClassPrediction(NamedTuple):
    """The best classes of one image, best first."""

    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int64, 0..K-1
    names: list[str]  # [D]
    reading: Reading = (3, "auto", None)  # of its image, for draw

    def __repr__(self) -> str:
        return f"ClassPrediction({', '.join(score_texts(self.names, self.scores))})"

    def draw(self, image: ImageInput, score_threshold: float = 0.0) -> Image.Image:
        """A PIL image of ``image`` under its best class, and the others that score at least ``score_threshold``."""
        check_threshold(score_threshold)
        return draw(as_shown(image, *self.reading), self, score_threshold)


def main_metric(config: Config) -> str:
    """What decides which checkpoint is the best."""
    return "mAP" if config.model.multi_label else "top1"


def open_split(config: Config, name: str, categories: list[Category] | None = None) -> ClassDataset:
    return open_classes(config, name, categories)


def open_own(config: Config, name: str, own: Any, categories: list[Category] | None = None) -> ClassDataset:
    raise ConfigError(
        "task: data is given from Python as boxes, for detection; name a folder or CSV file in data.train"
    )


def make_sample(image: np.ndarray, image_id: int, config: Config) -> ClassSample:
    """A picture [H, W, C] as the model wants it, without a class."""
    pixels = ClassTransform(config.data.crop)(image, epoch=0, index=0)
    nothing = torch.zeros(0)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    return ClassSample(tensor, nothing, nothing, image.shape[:2], image_id)


def loss(logits: Tensor, targets: ClassTargets, config: ModelConfig) -> Losses:
    """Cross entropy, or with ``multi_label`` binary cross entropy, of smoothed shares; classes by their weights."""
    shares, weights, smoothing = targets.shares, targets.weights, config.loss.label_smoothing
    logits = logits.float()
    if config.multi_label:
        shares = shares * (1 - smoothing) + smoothing / 2
        total = F.binary_cross_entropy_with_logits(logits, shares, weights, reduction="sum")
        return Losses({"cls": total}, weights.sum())
    smoothed = shares * (1 - smoothing) + smoothing / logits.shape[1]
    return Losses({"cls": -(weights * smoothed * logits.log_softmax(dim=1)).sum()}, (weights * shares).sum())


def predict(logits: Tensor, batch: Batch, config: ModelConfig) -> Tensor:
    """Scores [B, K]: they sum to 1, or with ``multi_label`` each stands for itself."""
    return logits.float().sigmoid() if config.multi_label else logits.float().softmax(dim=1)


def to_rows(scores: Tensor, ids: Tensor) -> np.ndarray:
    """An array [B, 1 + K]: picture, scores."""
    return torch.cat([ids[:, None].double(), scores.double()], dim=1).cpu().numpy()


def evaluate(rows: Sequence[np.ndarray], truth: Labelled, config: Config) -> dict[str, Any]:
    """Metrics of batches of scores; every picture of ``truth`` must be among them."""
    scores = by_picture(np.concatenate(rows))
    if config.model.multi_label:
        return multi_label_metrics(scores, truth.is_true(), truth.categories)
    return single_label_metrics(scores, truth.labels, truth.categories)


def describe(metrics: dict[str, Any], per_class: bool) -> str:
    """The metrics as a table for a terminal."""
    numbers = [f"{name} {figure(value)}" for name, value in metrics.items() if isinstance(value, float)]
    lines = ["  ".join(numbers)]
    if per_class:
        columns = [name for name in ("precision", "recall", "f1", "AP") if name in metrics["per_class"][0]]
        width = max(5, *(len(row["name"]) for row in metrics["per_class"]))
        lines.append(f"{'class':<{width}}   images  " + "  ".join(f"{name:>9}" for name in columns))
        for row in metrics["per_class"]:
            cells = "  ".join(f"{figure(row[name]):>9}" for name in columns)
            lines.append(f"{row['name']:<{width}}  {row['images']:7d}  {cells}")
    return "\n".join(lines)


def write_report(metrics: dict[str, Any], folder: Path) -> None:
    """``confusion.csv`` (a row a true class, a column a predicted one) and ``confusion.png``."""
    if "confusion" not in metrics:
        return
    names = [row["name"] for row in metrics["per_class"]]
    with atomic_write(folder / "confusion.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, metrics["confusion"], strict=True))
    with atomic_write(folder / "confusion.png", "wb") as file:
        draw_confusion(np.array(metrics["confusion"]), names).save(file, format="png")


def report(
    scored: Scored, truth: Labelled, config: Config, images: Path | None, against: Scored | None = None
) -> Report:
    """What is taken for what, for people to read."""
    return classification_report(scored, truth, config, images or truth.root, against)


# --- looking at the data ----------------------------------------------------------------------------------------------


def untransformed(data: ClassDataset) -> ClassDataset:
    """The same pictures as they are stored, none mixed with another."""
    stored = copy.copy(data)
    stored.transform, stored.augment = lambda image, epoch, index: image, None  # type: ignore
    return stored


def draw_sample(sample: ClassSample, categories: Sequence[Category]) -> Image.Image:
    return _draw_shares(sample.image, sample.shares, categories)


def _draw_shares(image: Tensor, shares: Tensor, categories: Sequence[Category]) -> Image.Image:
    """A picture [C, H, W] under its classes, with their shares [K] where it is mixed."""
    labels = [int(label) for label in shares.argsort(descending=True) if shares[label] > 0]
    texts = [categories[label].name + (f" {shares[label]:.2f}" if shares[label] < 1 else "") for label in labels]
    return draw_lines(image.permute(1, 2, 0).numpy(), labels, texts)


# --- before the first step --------------------------------------------------------------------------------------------


def preview(data: ClassDataset, config: Config) -> list[str]:
    """Warnings where a class has few pictures."""
    return rare_classes(data.categories, data.labelled.counts().tolist(), "pictures")


def draw_batch(batch: Batch, categories: Sequence[Category], config: ModelConfig) -> list[Image.Image]:
    """Each picture under its classes."""
    return [
        _draw_shares(image, shares, categories)
        for image, shares in zip(batch.images, batch.targets.shares, strict=True)
    ]


# --- single pictures --------------------------------------------------------------------------------------------------


def with_threshold(config: ModelConfig, score: float) -> ModelConfig:
    raise ConfigError(
        "score: a lowest score is for detection; of classification, the model.predict.classes best are given"
    )


def to_predictions(scores: Tensor, categories: Sequence[Category], config: ModelConfig) -> list[ClassPrediction]:
    """The ``predict.classes`` best classes of each picture."""
    best = scores.topk(min(config.predict.classes, len(categories)), dim=1)
    values, labels = best.values.cpu().numpy(), best.indices.cpu().numpy()
    return [
        ClassPrediction(value, label, [categories[place].name for place in label])
        for value, label in zip(values, labels, strict=True)
    ]


def to_results(found: ClassPrediction, image_id: int, name: Path) -> list[dict[str, Any]]:
    """The row of a picture in ``predictions.csv``."""
    row: dict[str, Any] = {"path": name.as_posix()}
    for place, (label, score) in enumerate(zip(found.names, found.scores, strict=True), start=1):
        suffix = "" if place == 1 else f"_{place}"
        row |= {f"label{suffix}": label, f"score{suffix}": round(float(score), 5)}
    return [row]


def write_results(results: Iterable[dict[str, Any]], path: Path) -> None:
    rows = iter(results)
    first = next(rows, None)
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, list(first or ["path", "label", "score"]))
        writer.writeheader()
        writer.writerows(chain([first] if first else [], rows))


def describe_results(results: Iterable[dict[str, Any]]) -> str:
    counts = Counter(row["label"] for row in results).most_common()
    return ", ".join(f"{name} {count}" for name, count in counts[:10]) + (", …" if len(counts) > 10 else "")


def draw(image: np.ndarray, found: ClassPrediction, draw_score: float) -> Image.Image:
    """The picture under the classes that score at least ``draw_score``, and the best one anyway."""
    is_drawn = [place == 0 or score >= draw_score for place, score in enumerate(found.scores)]
    texts = score_texts(found.names, found.scores)
    shown = [(label, text) for label, text, is_kept in zip(found.labels, texts, is_drawn, strict=True) if is_kept]
    return draw_lines(image, [int(label) for label, _ in shown], [text for _, text in shown])
