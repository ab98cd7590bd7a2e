"""The classification task: its loss against torch's, scores, rows, reports, and the results that inference writes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from detector.config.schema import Config, HeadConfig, LossConfig, ModelConfig, PredictConfig
from detector.data.classification import ClassSample
from detector.data.formats.class_folders import Labelled
from detector.errors import ConfigError
from detector.evaluation.tally import merge
from detector.structures import Batch, Category, ClassTargets, Losses
from detector.tasks import classification, classification_results, classification_views, get_task

NUM_CLASSES = 4
CATEGORIES = [Category(label, name) for label, name in enumerate(["ant", "bee", "cow", "doe"])]


def make_model(multi_label: bool = False, smoothing: float = 0.0, classes: int = 5) -> ModelConfig:
    return ModelConfig(
        head=HeadConfig(name="pooled"),
        loss=LossConfig(label_smoothing=smoothing),
        predict=PredictConfig(classes=classes),
        multi_label=multi_label,
    )


def make_config(multi_label: bool = False, data: dict[str, Any] | None = None) -> Config:
    tree = {"task": "classification", "data": data or {}, "model": {"head": {"name": "pooled"}}}
    tree["model"]["multi_label"] = multi_label
    return Config.model_validate(tree)


def random_logits(num_images: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(num_images, NUM_CLASSES, generator=generator)).requires_grad_()


def targets_of(probabilities: Tensor, weights: list[float] | None = None) -> ClassTargets:
    return ClassTargets(
        probabilities.float(), torch.tensor(weights or [1.0] * NUM_CLASSES).expand(len(probabilities), -1)
    )


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
WEIGHTS = [0.5, 2.0, 1.0, 3.0]
MIXED = torch.tensor(
    [[0.7, 0.3, 0, 0], [0, 0, 0, 1], [0.25, 0, 0.75, 0], [0, 1, 0, 0], [0.5, 0, 0, 0.5], [0, 0.1, 0.9, 0]]
)


def mean(losses: Losses) -> Tensor:
    """The loss that the engine computes."""
    return losses.parts["cls"] / losses.normaliser


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_cross_entropy_is_torchs(smoothing: float, weights: list[float] | None) -> None:
    logits = random_logits()
    losses = classification.loss(
        logits, targets_of(F.one_hot(LABELS, NUM_CLASSES), weights), make_model(smoothing=smoothing)
    )
    weight = torch.tensor(weights) if weights else None
    expected = F.cross_entropy(logits, LABELS, weight=weight, label_smoothing=smoothing)
    assert list(losses.parts) == ["cls"]
    # The number of images, or the sum of their classes' weights: 0.5 + 3 + 2 + 2 + 1 + 0.5.
    assert losses.normaliser.item() == pytest.approx(9 if weights else 6)
    assert_close(mean(losses), expected)
    assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (mean(losses), expected)))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_images_is_torchs(smoothing: float, weights: list[float] | None) -> None:
    logits = random_logits()
    losses = classification.loss(logits, targets_of(MIXED, weights), make_model(smoothing=smoothing))
    # torch divides the sum over soft targets by the number of images, weighted or not.
    weight = torch.tensor(weights) if weights else None
    total = F.cross_entropy(logits, MIXED, weight=weight, label_smoothing=smoothing, reduction="sum")
    assert_close(losses.parts["cls"], total)
    if weights:  # target probabilities times weights: 0.35 + 0.6, 3, 0.125 + 0.75, 2, 0.25 + 1.5, 0.2 + 0.9
        assert losses.normaliser.item() == pytest.approx(0.95 + 3 + 0.875 + 2 + 1.75 + 1.1)
    else:
        assert losses.normaliser.item() == pytest.approx(6)


SEVERAL = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0], [0.3, 0, 0.7, 1]])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_several_labels_are_torchs_binary_cross_entropy(weights: list[float] | None, smoothing: float) -> None:
    logits, targets = random_logits(), targets_of(SEVERAL, weights)
    losses = classification.loss(logits, targets, make_model(multi_label=True, smoothing=smoothing))
    # Smoothed by 0.2, the targets 1 and 0 become 0.9 and 0.1.
    probabilities = torch.lerp(torch.full_like(SEVERAL, 0.5), SEVERAL, 1 - smoothing)
    total = F.binary_cross_entropy_with_logits(logits, probabilities, weight=targets.weights, reduction="sum")
    assert_close(losses.parts["cls"], total)
    if weights is None:
        assert_close(mean(losses), F.binary_cross_entropy_with_logits(logits, probabilities))
    assert losses.normaliser.item() == pytest.approx(6 * sum(weights or [1] * 4))
    assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (losses.parts["cls"], total)))


@pytest.mark.parametrize("multi_label", [False, True])
def test_parts_of_a_batch_add_up(multi_label: bool) -> None:
    config, targets = make_model(multi_label, smoothing=0.1), targets_of(MIXED, WEIGHTS)
    logits = random_logits()
    whole = classification.loss(logits, targets, config)
    parts = [
        classification.loss(logits[rows], ClassTargets(targets.probabilities[rows], targets.weights[rows]), config)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    assert_close(whole.parts["cls"], sum(part.parts["cls"] for part in parts))
    assert_close(whole.normaliser, sum(part.normaliser for part in parts))


@pytest.mark.parametrize("multi_label", [False, True])
def test_bf16_logits_give_float32_losses_and_scores(multi_label: bool) -> None:
    config, low = make_model(multi_label, smoothing=0.1), random_logits().bfloat16()
    losses, expected = (classification.loss(one, targets_of(MIXED), config) for one in (low, low.float()))
    assert losses.parts["cls"].dtype == torch.float32
    assert torch.equal(losses.parts["cls"], expected.parts["cls"])
    assert classification.predict(low, make_batch(6), config).dtype == torch.float32


@pytest.mark.parametrize("multi_label", [False, True])
def test_logits_of_any_size_give_a_finite_loss(multi_label: bool) -> None:
    logits = torch.tensor([[1e4, -1e4, 0, 0]]).requires_grad_()
    losses = classification.loss(logits, targets_of(torch.eye(4)[[1]]), make_model(multi_label))
    # Cross entropy: 1e4 - -1e4. Binary: 1e4 each of the first two, log 2 each of the others.
    assert losses.parts["cls"].item() == pytest.approx(2e4, rel=1e-3)
    losses.parts["cls"].backward()
    assert logits.grad.isfinite().all()


# --- predictions and rows ---------------------------------------------------------------------------------------------


def make_batch(num: int) -> Batch:
    sizes = torch.full((num, 2), 8)
    images = torch.zeros(num, 3, 8, 8, dtype=torch.uint8)
    return Batch(images, sizes, sizes, targets_of(torch.zeros(num, NUM_CLASSES)), torch.arange(num))


def test_scores_of_one_label_sum_to_one() -> None:
    logits = random_logits()
    scores = classification.predict(logits, make_batch(6), make_model())
    assert_close(scores, logits.exp() / logits.exp().sum(dim=1, keepdim=True))
    assert_close(scores.sum(dim=1), torch.ones(6))


def test_scores_of_several_labels_are_independent() -> None:
    logits = random_logits()
    assert_close(classification.predict(logits, make_batch(6), make_model(True)), 1 / (1 + (-logits).exp()))


def labelled_batch(ids: list[int], probabilities: torch.Tensor) -> Batch:
    return make_batch(len(ids))._replace(
        ids=torch.tensor(ids), targets=ClassTargets(probabilities, torch.ones_like(probabilities))
    )


def test_tallies_by_hand() -> None:
    scores = torch.tensor([[0.25, 0.75, 0.5], [0.5, 0.5, 0.0]])
    batch = labelled_batch([2**40 + 1, 7], torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    several = classification.tally(scores, batch, make_config(True))
    assert several.rows.dtype == np.float64
    assert several.rows.tolist() == [[2**40 + 1, 0.25, 0.75, 0.5], [7, 0.5, 0.5, 0]]
    assert several.sums is None
    # One label: image, predicted class, its score, classes before the true one; of equal scores the first class counts.
    one = classification.tally(scores, batch, make_config())
    assert one.rows.tolist() == [[2**40 + 1, 1, 0.75, 2], [7, 0, 0.5, 1]]
    assert one.sums is not None
    assert one.sums.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def make_truth(labels: list[list[int]]) -> Labelled:
    return Labelled(
        source=Path("truth"),
        root=Path(),
        categories=CATEGORIES,
        files=np.array([f"{index}.png".encode() for index in range(len(labels))]),
        first=np.cumsum([0, *map(len, labels)]),
        labels=np.array([label for row in labels for label in row], dtype=np.int64),
    )


ROWS = np.array(
    [
        [0, 0.7, 0.1, 0.1, 0.1],  # ant, right
        [1, 0.6, 0.2, 0.1, 0.1],  # taken for ant
        [2, 0.1, 0.2, 0.3, 0.4],  # taken for doe
        [3, 0.0, 0.9, 0.1, 0.0],  # bee, right
    ]
)


def evaluated(batches: list[list[int]], truth: Labelled, config: Config) -> dict[str, Any]:
    """Metrics of ``ROWS`` from tallies of ``batches``."""
    probabilities, tallies = torch.from_numpy(truth.is_true()).float(), []
    for ids in batches:
        batch = labelled_batch(ids, probabilities[ids])
        tallies.append(classification.tally(torch.from_numpy(ROWS[ids, 1:]), batch, config))
    return classification.evaluate(merge(tallies), truth, config)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_rows_find_their_images(order: list[int]) -> None:
    truth = make_truth([[0], [1], [2], [1]])
    metrics = evaluated([order[:1], order[1:]], truth, make_config())
    assert metrics["top1"] == 0.5
    assert metrics["confusion"] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert classification.main_metric(make_config()) == "top1"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_rows_find_their_images_of_several_labels(order: list[int]) -> None:
    truth = make_truth([[0, 2], [], [1, 3], [1]])
    config = make_config(multi_label=True)
    metrics = evaluated([order[:3], order[3:]], truth, config)
    assert [row["images"] for row in metrics["per_class"]] == [1, 2, 1, 1]
    # ant: 0.7 of image 0 is the best. bee: image 3, then 1 and 2 tied: (1 + 2/3) / 2. cow: 2, then 0, 1 and 3
    # tied: 1/4. doe: image 2 is the best.
    assert [row["AP"] for row in metrics["per_class"]] == pytest.approx([1, 5 / 6, 1 / 4, 1])
    assert metrics[classification.main_metric(config)] == pytest.approx((1 + 5 / 6 + 1 / 4 + 1) / 4)
    assert "confusion" not in metrics


def test_the_table_of_metrics() -> None:
    one = evaluated([[0, 1, 2, 3]], make_truth([[0], [1], [2], [1]]), make_config())
    lines = classification_views.describe(one, per_class=True).splitlines()
    # Recall and precision. ant: 1 of 1, 1 of 2; bee: 1 of 2, 1 of 1; F1 2/3 each; cow 0; doe has no image.
    assert lines[0] == "top1 0.500  top5 1.000  mean_class_accuracy 0.500  macro_f1 0.444"
    assert [line.split() for line in lines[1:]] == [
        ["class", "images", "precision", "recall", "f1"],
        ["ant", "1", "0.500", "1.000", "0.667"],
        ["bee", "2", "1.000", "0.500", "0.667"],
        ["cow", "1", "0.000", "0.000", "0.000"],
        ["doe", "0", "–", "–", "–"],
    ]
    assert classification_views.describe(one, per_class=False).splitlines() == lines[:1]
    several = evaluated([[0, 1, 2, 3]], make_truth([[0], [1], [2], [1]]), make_config(multi_label=True))
    lines = classification_views.describe(several, per_class=True).splitlines()
    assert lines[0].split()[::2] == ["mAP", "macro_f1"]
    assert lines[1].split() == ["class", "images", "precision", "recall", "f1", "AP"]


def test_a_report_of_the_confusion(tmp_path: Path) -> None:
    metrics = evaluated([[0, 1, 2, 3]], make_truth([[0], [1], [2], [1]]), make_config())
    for row, name in zip(metrics["per_class"], ["ant", "bee, big", "größe", "doe"], strict=True):
        row["name"] = name
    classification_views.write_report(metrics, tmp_path)
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["true \\ predicted", "ant", "bee, big", "größe", "doe"],
            ["ant", "1", "0", "0", "0"],
            ["bee, big", "1", "1", "0", "0"],
            ["größe", "0", "0", "0", "1"],
            ["doe", "0", "0", "0", "0"],
        ]
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 100


def test_several_labels_have_no_confusion(tmp_path: Path) -> None:
    metrics = evaluated([[0, 1, 2, 3]], make_truth([[0, 1], [], [2], [1]]), make_config(multi_label=True))
    classification_views.write_report(metrics, tmp_path)
    assert not list(tmp_path.iterdir())


# --- single images --------------------------------------------------------------------------------------------------


def test_a_sample_without_a_class() -> None:
    image = np.random.default_rng(0).integers(0, 65536, (20, 30, 4)).astype(np.uint16)
    sample = classification.make_sample(image, 9, make_config(data={"crop": {"size": 20, "eval_share": 1.0}}))
    assert isinstance(sample, ClassSample)
    assert (sample.id, sample.size_original) == (9, (20, 30))
    # The square in the middle: (30 - 20) / 2 = 5 columns are cut off on either side.
    assert np.array_equal(sample.image.numpy(), image[:, 5:25].transpose(2, 0, 1))


SCORES = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.02, 0.0]])


@pytest.mark.parametrize("classes", [1, 3, 4, 50])
def test_the_best_classes_of_an_image(classes: int) -> None:
    predictions = classification.to_predictions(SCORES, CATEGORIES, make_model(classes=classes))
    assert [prediction.labels.tolist() for prediction in predictions] == [
        [1, 3, 2, 0][:classes],
        [0, 2, 1, 3][:classes],
    ]
    assert [prediction.names for prediction in predictions] == [
        ["bee", "doe", "cow", "ant"][:classes],
        ["ant", "cow", "bee", "doe"][:classes],
    ]
    assert predictions[0].scores.tolist() == pytest.approx([0.5, 0.25, 0.15, 0.1][:classes])


def test_results_by_hand(tmp_path: Path) -> None:
    predictions = classification.to_predictions(SCORES, CATEGORIES, make_model(classes=2))
    names = ["deep/größe, 1.png", "b.png"]
    results = [
        row
        for index, (prediction, name) in enumerate(zip(predictions, names, strict=True))
        for row in classification_results.to_results(prediction, index, Path(name))
    ]
    path = tmp_path / "predictions.csv"
    classification_results.write_results(results, path)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "label", "score", "label_2", "score_2"],
            ["deep/größe, 1.png", "bee", "0.5", "doe", "0.25"],
            ["b.png", "ant", "0.97", "cow", "0.02"],
        ]
    assert classification_results.describe_results(results) == "bee 1, ant 1"
    classification_results.write_results([], path)
    assert path.read_text().splitlines() == ["path,label,score"]


def test_the_summary_of_many_classes_is_cut() -> None:
    results = [{"label": f"class {number % 12}"} for number in range(30)]
    text = classification_results.describe_results(results)
    assert text.startswith("class 0 3, class 1 3, ")
    assert text.endswith("class 9 2, …")


def test_a_lowest_score_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"score: .*detection.*model\.predict\.classes"):
        classification.with_threshold(make_model(), 0.5)


def test_drawn_are_the_best_and_what_scores_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[int], list[str]]] = []
    monkeypatch.setattr(
        classification_results, "draw_lines", lambda image, labels, texts: drawn.append((labels, texts))
    )
    prediction = classification.to_predictions(SCORES, CATEGORIES, make_model())[0]
    for draw_score in (0.0, 0.2, 0.9):
        classification_results.draw(np.zeros((9, 9, 3), np.uint8), prediction, draw_score)
    texts = ["bee 0.50", "doe 0.25", "cow 0.15", "ant 0.10"]
    assert drawn == [([1, 3, 2, 0], texts), ([1, 3], texts[:2]), ([1], texts[:1])]


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_head_of_detection_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.head\.name: 'retina' is not known.*use pooled or classic"):
        get_task(Config(task="classification"))
