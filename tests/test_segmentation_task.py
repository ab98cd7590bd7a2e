"""The segmentation task: its head against an independent forward, losses against torch's, scores against numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import undrawn
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from detector.config.loader import load_config
from detector.config.schema import Config, HeadConfig, LossConfig, ModelConfig
from detector.errors import ConfigError
from detector.evaluation.segmentation import by_size, near_borders, pixel_metrics, pixel_tally
from detector.evaluation.tally import KEPT, Kept, Tally, merge
from detector.models import build_model
from detector.models.heads import SemanticHead
from detector.ops.grids import interpolated, label_bands, points
from detector.structures import IGNORED_PIXEL, Batch, Category, MaskTargets, PixelScores
from detector.tasks import segmentation, segmentation_results, segmentation_views
from detector.tasks.segmentation_results import SegmentPrediction

K = 4
CATEGORIES = [Category(7 * label, name) for label, name in enumerate(["sky", "road", "car", "tree"])]
CONFIG = Config.model_validate({"task": "segmentation", "model": {"head": {"name": "semantic"}}})


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- head -------------------------------------------------------------------------------------------------------------


def test_the_branch_is_that_of_panoptic_fpn() -> None:
    """P2 to P5: 1, 1, 2, 3 blocks with 0, 1, 2, 3 upsamplings; their sum, and a 1×1 convolution."""
    config = ModelConfig(head=HeadConfig(name="semantic", channels=64))
    head = SemanticHead(config, (2, 3, 4, 5), 16, K)
    with torch.no_grad():
        for index, parameter in enumerate(head.parameters()):
            parameter.add_(0.1 * noise(*parameter.shape, seed=index))
    pyramid = [noise(2, 16, 32 // 2**level, 48 // 2**level, seed=level) for level in range(4)]
    state, total = head.state_dict(), torch.zeros(2, 64, 32, 48)
    for level, feature in enumerate(pyramid):
        for block in range(max(1, level)):
            own = [state[f"towers.{level}.{block}.{name}"] for name in ("0.weight", "1.weight", "1.bias")]
            feature = F.conv2d(feature, own[0], padding=1)
            groups = feature.view(2, 32, 2, *feature.shape[-2:])  # 32 groups of two channels
            deviation = groups.var(dim=(2, 3, 4), correction=0, keepdim=True).add(1e-5).sqrt()
            feature = ((groups - groups.mean(dim=(2, 3, 4), keepdim=True)) / deviation).view_as(feature)
            feature = (feature * own[1][:, None, None] + own[2][:, None, None]).relu()
            if block < level:
                feature = F.interpolate(feature, scale_factor=2, mode="bilinear", align_corners=False)
        total += feature
    expected = torch.einsum("kc,bchw->bkhw", state["classifier.weight"][..., 0, 0], total)
    expected += state["classifier.bias"][:, None, None]
    assert_close(head.eval()(pyramid), expected, rtol=1e-4, atol=1e-4)
    # 3×3 convolutions without bias of 7 blocks, 4 of them from 16 channels, their norms, and the classifier.
    assert sum(tensor.numel() for tensor in head.parameters()) == 9 * 64 * (4 * 16 + 3 * 64) + 7 * 128 + 65 * K


def test_more_blocks_and_sizes_that_networks_round() -> None:
    head = SemanticHead(ModelConfig(head=HeadConfig(name="semantic", blocks=2)), (3, 4, 5, 6), 8, K)
    assert [len(tower) for tower in head.towers] == [2, 2, 2, 3]
    assert head.classifier.in_channels == 128
    odd = [noise(1, 8, *size) for size in ((13, 9), (7, 5), (3, 2), (2, 1))]
    assert head.eval()(odd).shape == (1, K, 13, 9)


@pytest.mark.parametrize(
    ("name", "parameters", "channels"),
    [
        ("segment_quickstart.yaml", 5_374_981, 64),
        ("camvid_r18_scratch.yaml", 12_926_667, 128),
        ("segment_r50_fpn.yaml", 28_478_675, 256),
        ("segment_vgg16_r50_fused.yaml", 46_538_771, 256),
    ],
)
def test_exact_shapes_and_parameters(name: str, parameters: int, channels: int) -> None:
    config = load_config(name)
    classes, pyramid = len(config.data.classes or ()), []
    with undrawn():
        model = build_model(config.model, classes).eval()
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters
    model.pyramid.register_forward_hook(lambda module, inputs, output: pyramid.extend(output))
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96]]))
    assert [tuple(level.shape) for level in pyramid] == [(1, channels, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert logits.shape == (1, classes, 16, 24)


# --- losses -----------------------------------------------------------------------------------------------------------


def targets_of(size: tuple[int, int] = (16, 24), images: int = 3, weights: list[float] | None = None) -> MaskTargets:
    rng = np.random.default_rng(1)
    masks = rng.integers(0, K, (images, *size)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.2] = IGNORED_PIXEL
    masks[0, :8], masks[-1] = IGNORED_PIXEL, 2
    return MaskTargets(torch.from_numpy(masks), torch.tensor(weights or [1.0] * K).expand(images, -1))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 3.0]], ids=["equal", "weighted"])
def test_cross_entropy_is_torchs(weights: list[float] | None, smoothing: float) -> None:
    logits, targets = noise(3, K, 4, 6).requires_grad_(), targets_of(weights=weights)
    losses = segmentation.loss(logits, targets, ModelConfig(loss=LossConfig(label_smoothing=smoothing)))
    full = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    weight = torch.tensor(weights) if weights else None
    given = {"weight": weight, "ignore_index": IGNORED_PIXEL, "label_smoothing": smoothing}
    expected = F.cross_entropy(full, targets.masks.long(), **given)
    assert list(losses.parts) == ["cls"]
    own = losses.parts["cls"] / losses.normaliser
    assert_close(own, expected)
    assert_close(*(torch.autograd.grad(one, logits)[0] for one in (own, expected)))


def test_dice_by_hand() -> None:
    """Two images of 2×2 pixels on a grid as fine, whose probabilities are nearly 0 and 1."""
    masks = torch.tensor([[[0, 0], [1, IGNORED_PIXEL]], [[1, 1], [1, 1]]], dtype=torch.uint8)
    guessed = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [1, 1]]])
    logits = 40.0 * F.one_hot(guessed, 3).permute(0, 3, 1, 2)
    losses = segmentation.loss(
        logits, MaskTargets(masks, torch.ones(2, 3)), ModelConfig(loss=LossConfig(cls_weight=0, dice_weight=2))
    )
    # With 1 added to both sides. Image 1: class 0 (2·1 + 1) / (1 + 2 + 1) = 3/4, class 1 (2·1 + 1) / (2 + 1 + 1) = 3/4;
    # class 2 is absent, so the loss is 1/4 over 3 pixels that count. Image 2: 9/9, so 0 over 4.
    assert losses.parts["dice"].item() == pytest.approx(2 * (0.25 * 3 + 0 * 4), abs=1e-4)
    assert losses.normaliser.item() == 7
    assert losses.parts["cls"].item() == 0


@pytest.mark.parametrize("dice", [0.0, 0.7])
def test_parts_of_a_batch_add_up_and_nothing_to_learn_is_refused(dice: float) -> None:
    config = ModelConfig(loss=LossConfig(dice_weight=dice, label_smoothing=0.1))
    logits, targets = noise(3, K, 4, 6), targets_of(weights=[0.5, 2.0, 1.0, 3.0])
    whole = segmentation.loss(logits, targets, config)
    parts = [
        segmentation.loss(logits[rows], MaskTargets(targets.masks[rows], targets.weights[rows]), config)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    for name, total in whole.parts.items():
        assert_close(total, sum(part.parts[name] for part in parts))
    assert_close(whole.normaliser, sum(part.normaliser for part in parts))
    nothing = targets._replace(masks=torch.full_like(targets.masks, IGNORED_PIXEL))
    empty = segmentation.loss(logits.requires_grad_(), nothing, config)
    assert empty.normaliser == 0 and all(part == 0 for part in empty.parts.values())
    sum(empty.parts.values()).backward()
    assert logits.grad is not None and not logits.grad.any()
    with pytest.raises(ConfigError, match="cls_weight and dice_weight are both 0"):
        segmentation.loss(logits, targets, ModelConfig(loss=LossConfig(cls_weight=0)))


# --- from the grid to pixels ------------------------------------------------------------------------------------------


def scores_of(logits: Tensor, sizes: list[list[int]], originals: list[list[int]], side: tuple[int, int]) -> PixelScores:
    images = torch.zeros(len(sizes), 3, *side, dtype=torch.uint8)
    batch = Batch(images, torch.tensor(sizes), torch.tensor(originals), None, torch.arange(len(sizes)))
    return segmentation.predict(logits, batch, CONFIG.model)


def test_classes_are_those_of_logits_interpolated_by_torch() -> None:
    logits = noise(1, K, 16, 24)
    (own,) = segmentation.pixel_labels(scores_of(logits, [[64, 96]], [[64, 96]], (64, 96)))
    full = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False)
    assert own.dtype == torch.uint8 and own.shape == (64, 96)
    assert torch.equal(own.long(), full.argmax(dim=1)[0])


def test_padding_has_no_part_and_numpy_agrees() -> None:
    """An image of 50×70 in a batch of 64×96, drawn in its own 75×140 pixels: cells beyond 12.5 × 17.5 are not seen."""
    logits = noise(1, K, 16, 24)
    other = logits.clone()
    other[:, :, 13:], other[..., 18:] = 99, -99
    scores = [scores_of(one, [[50, 70]], [[75, 140]], (64, 96)) for one in (logits, other)]
    # Scores are normalised by cell, so only cells of the image need to agree.
    labels = [segmentation.pixel_labels(one)[0] for one in scores]
    assert torch.equal(*labels)
    at = [(np.arange(count) + 0.5) * side / count / 4 - 0.5 for count, side in ((75, 50), (140, 70))]
    expected = np.empty((K, 75, 140))
    grid = scores[0].scores[0].double().numpy()
    for row, y in enumerate(at[0].clip(0, 12)):
        for column, x in enumerate(at[1].clip(0, 17)):
            top, left = int(y), int(x)
            own = 0.0
            for i, wi in ((top, 1 - y + top), (min(top + 1, 12), y - top)):
                for j, wj in ((left, 1 - x + left), (min(left + 1, 17), x - left)):
                    own = own + wi * wj * grid[:, i, j]
            expected[:, row, column] = own
    assert (labels[0].numpy() != expected.argmax(axis=0)).mean() < 1e-3
    (prediction,) = segmentation_results.as_predictions(
        [part.numpy() for part in scores[0]], CATEGORIES, CONFIG.model.predict
    )
    assert np.array_equal(prediction.mask, labels[0].numpy())


def test_bands_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, axes = (
        noise(K, 7, 9).numpy(),
        (points(np.arange(50.0), 50, np.float32(6.5)), points(np.arange(40.0), 40, np.float32(9))),
    )
    whole = interpolated(scores, *axes).argmax(0)
    monkeypatch.setattr("detector.ops.grids.LARGEST_BLOCK", 3 * K * 40)  # three rows
    bands = list(label_bands(scores, *axes))
    assert len(bands) == 17
    assert np.array_equal(np.concatenate(bands), whole)


def test_mirror_images_and_other_sizes_are_averaged_on_one_grid() -> None:
    smooth = torch.linspace(0, 3, 24)[None, None, None].expand(1, 1, 16, -1)
    logits = torch.cat([smooth, 1.5 - smooth.flip(-2) / 2], dim=1)
    first = scores_of(logits, [[64, 96]], [[64, 96]], (64, 96))
    mirrored = segmentation.mirror(scores_of(logits.flip(-1), [[64, 96]], [[64, 96]], (64, 96)), None)  # type: ignore
    assert_close(mirrored.scores, first.scores)
    double = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    merged = segmentation.merge(
        [first, mirrored, scores_of(double, [[128, 192]], [[64, 96]], (128, 192))], CONFIG.model
    )
    assert_close(merged.scores[..., 1:-1], first.scores[..., 1:-1], atol=1e-2, rtol=0)
    assert_close(merged.scores.exp().sum(dim=1), torch.ones(1, 16, 24), atol=1e-3, rtol=0)


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    """Truth [0, 0, 1, 255], prediction [0, 1, 1, 2]: IoU 1/2, 1/2, absent; 2 of 3 pixels are right."""
    truth, predicted = (np.array([row], dtype=np.uint8) for row in ([0, 0, 1, 255], [0, 1, 1, 2]))
    metrics = pixel_metrics(pixel_tally(5, truth, predicted, 3, False).sums, CATEGORIES[:3])
    assert [row["iou"] for row in metrics["per_class"]] == [0.5, 0.5, -1]
    assert [row["accuracy"] for row in metrics["per_class"]] == [0.5, 1, -1]
    assert [row["pixels"] for row in metrics["per_class"]] == [2, 1, 0]
    assert (metrics["mIoU"], metrics["pixel_accuracy"], metrics["mean_accuracy"]) == (0.5, 2 / 3, 0.75)
    assert metrics["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    # A class that is only predicted has IoU 0 and no accuracy.
    only = pixel_metrics(pixel_tally(5, truth, np.full_like(truth, 2), 3, False).sums, CATEGORIES[:3])
    assert [row["iou"] for row in only["per_class"]] == [0, 0, 0]
    assert [row["accuracy"] for row in only["per_class"]] == [0, 0, -1]
    ignored = pixel_tally(5, np.full_like(truth, 255), predicted, 3, False)
    assert pixel_metrics(ignored.sums, CATEGORIES[:3])["mIoU"] == -1 and ignored.worst == ()


def test_metrics_are_those_of_sets_of_pixels() -> None:
    rng = np.random.default_rng(3)
    truths = rng.integers(0, K - 1, (5, 9, 11)).astype(np.uint8)  # the last class is only predicted
    truths[rng.random(truths.shape) < 0.2] = IGNORED_PIXEL
    guesses = rng.integers(0, K, truths.shape).astype(np.uint8)
    tallies = [pixel_tally(index, *pair, K, False) for index, pair in enumerate(zip(truths, guesses, strict=True))]
    merged = merge([merge(tallies[:2]), merge([]), merge(tallies[2:])])  # three ranks
    metrics = pixel_metrics(merged.sums, CATEGORIES)
    counted = truths != IGNORED_PIXEL
    for label, row in enumerate(metrics["per_class"]):
        true, found = set(np.flatnonzero(truths == label)), set(np.flatnonzero((guesses == label) & counted))
        assert row["iou"] == pytest.approx(len(true & found) / len(true | found))
        assert row["accuracy"] == pytest.approx(len(true & found) / len(true) if true else -1)
    assert metrics["pixel_accuracy"] == pytest.approx((truths == guesses)[counted].mean())
    # Of each image, what its row says.
    for index, row in enumerate(merged.rows):
        right = [((truths[index] == label) & (guesses[index] == label)).sum() for label in range(K)]
        assert row[:5].tolist() == [index, *right]
    assert [kept.image for kept in merged.worst] == sorted(range(5), key=lambda index: merged_score(tallies[index]))


def merged_score(tally: Tally) -> float:
    return tally.worst[0].score


def test_the_worst_are_few() -> None:
    kept = [Kept(score, index, np.zeros(1)) for index, score in enumerate(np.random.default_rng(0).random(40))]
    whole = merge(Tally(np.zeros((1, 1)), None, (one,)) for one in kept)
    assert [one.score for one in whole.worst] == sorted(one.score for one in kept)[:KEPT]


def test_boundary_iou_by_hand() -> None:
    """On 30×40 pixels, a diagonal of 50, borders are one pixel wide: a square of 10 moved by one pixel."""
    truth, predicted = np.zeros((2, 30, 40), dtype=np.uint8)
    truth[5:15, 5:15], predicted[5:15, 6:16] = 1, 1
    # The rings have 36 pixels each; in common are the 9 columns of the top and of the bottom row: 18.
    assert near_borders(truth, predicted, 2)[1].tolist() == [18, 54]
    same = near_borders(truth, truth, 2)
    assert same[:, 0].tolist() == same[:, 1].tolist()
    sums = pixel_tally(0, truth, predicted, 2, True).sums
    assert sums is not None and sums.shape == (2, 2 + 9 + 2)
    metrics = pixel_metrics(sums, CATEGORIES[:2])
    assert metrics["per_class"][1]["boundary_iou"] == pytest.approx(18 / 54)
    assert metrics["mIoU"] == pytest.approx((1090 / 1110 + 90 / 110) / 2)
    assert metrics["confusion"] == [[1090, 10], [10, 90]]


def test_iou_by_the_size_of_regions_by_hand() -> None:
    """In 120×120 pixels of class 0, class 1 has a square of 20 and one of 40, which touch at a corner: two regions."""
    truth = np.zeros((120, 120), dtype=np.uint8)
    truth[:20, :20] = truth[20:60, 20:60] = 1  # 400 pixels: small; 1600: medium
    truth[110:, :] = IGNORED_PIXEL
    predicted = np.zeros_like(truth)
    predicted[:10, :20] = 1  # half of the small one
    predicted[20:60, 20:70] = 1  # the medium one, and 400 pixels beside it, in a region of 2000
    predicted[70:75, 100:110] = 1  # 50 pixels where nothing is: a small region
    predicted[100:, :] = 1  # 10 rows of 120 before what is ignored: a medium region of 1200
    counts = by_size(truth, np.where(truth == IGNORED_PIXEL, truth, predicted), 2)
    # Right, true and wrong, of each small, medium and large.
    assert counts[1].tolist() == [200, 1600, 0, 400, 1600, 0, 50, 400 + 1200, 0]
    # The background is one region: 110·120 - 2000, of which 1650 are not found. 200 pixels of class 1 are taken for it.
    assert counts[0].tolist() == [0, 0, 11200 - 1650, 0, 0, 11200, 0, 0, 200]
    metrics = pixel_metrics(pixel_tally(0, truth, predicted, 2, False).sums, CATEGORIES[:2])
    sky, road = metrics["per_class"]
    assert [road[f"iou_{size}"] for size in "sml"] == [pytest.approx(200 / 450), pytest.approx(1600 / 3200), -1]
    assert [sky[f"iou_{size}"] for size in "sml"] == [-1, -1, pytest.approx(9550 / 11400)]
    assert metrics["mIoU_l"] == sky["iou_l"] and metrics["mIoU_m"] == 0.5
    assert road["iou"] == pytest.approx(1800 / 3650)  # the sums over the sizes


# --- results ----------------------------------------------------------------------------------------------------------


MASK = np.array([[0, 0, 2], [2, 2, 2]], dtype=np.uint8)


def test_results_and_masks_by_hand(tmp_path: Path) -> None:
    prediction = SegmentPrediction(MASK, CATEGORIES)
    results = segmentation_results.to_results(prediction, 9, Path("a/b.jpg"))
    file = {"image_id": 9, "file_name": "a/b.jpg"}
    assert results == [
        file | {"category_id": 14, "category_name": "car", "area": 4, "fraction": 0.66667},
        file | {"category_id": 0, "category_name": "sky", "area": 2, "fraction": 0.33333},
    ]
    assert segmentation_results.describe_results(results) == "car 66.7%, sky 33.3%"
    segmentation_results.write_results(results, tmp_path / "predictions.json")
    assert json.loads((tmp_path / "predictions.json").read_text()) == results
    for name, file_name in (("a/b.jpg", "a/b.jpg.png"), ("a/b.png", "a/b.png")):
        segmentation_results.save(prediction, name, tmp_path)
        with Image.open(tmp_path / "masks" / file_name) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), 7 * MASK)  # the data set's own ids
            colors = np.asarray(image.convert("RGB"))
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 2
    assert repr(prediction) == "SegmentPrediction(3×2: car 67%, sky 33%)"
    assert prediction.draw(np.zeros((2, 3, 3), dtype=np.uint8)).size[0] >= 480
    # Ids that do not fit 8 bits: labels.
    other = SegmentPrediction(MASK, [Category(1000 * label, own.name) for label, own in enumerate(CATEGORIES)])
    assert np.array_equal(np.asarray(other.to_image()), MASK)


def test_exported_masks_may_differ_in_few_pixels() -> None:
    own = SegmentPrediction(np.zeros((100, 100), dtype=np.uint8), CATEGORIES)
    near, far = own.mask.copy(), own.mask.copy()
    near[0, :10], far[0, :11] = 1, 1

    def compared(mask: np.ndarray) -> bool:
        given: Any = ([own], [own._replace(mask=mask)], 0, 0, None, None)
        return segmentation_results.compare(*given).is_same

    assert compared(near) and not compared(far)


def test_scores_in_words() -> None:
    metrics = pixel_metrics(np.hstack([np.diag([3, 1, 0, 0]), np.zeros((4, 9), dtype=np.int64)]), CATEGORIES)
    lines = segmentation_views.describe(metrics, per_class=True).splitlines()
    assert lines[0] == "mIoU 1.000  pixel_accuracy 1.000  mean_accuracy 1.000  mIoU_s –  mIoU_m –  mIoU_l –"
    assert [line.split() for line in lines[1:]] == [
        ["class", "pixels", "iou", "accuracy"],
        ["sky", "3", "1.000", "1.000"],
        ["road", "1", "1.000", "1.000"],
        ["car", "0", "–", "–"],
        ["tree", "0", "–", "–"],
    ]


def test_a_score_threshold_is_refused() -> None:
    with pytest.raises(ConfigError, match="score: a lowest score is for detection"):
        segmentation.with_threshold(CONFIG.model, 0.5)
