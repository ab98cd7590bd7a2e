"""Post-processing: by hand, and against a pipeline that decodes everything first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from detector.config.schema import AnchorConfig, PredictConfig
from detector.ops import postprocess
from detector.ops.anchors import Anchors, level_sizes
from detector.ops.coders import DeltaCoder
from detector.ops.postprocess import select_candidates
from detector.structures import Detections, Predictions
from detector.system.device import to_cpu


def detect(predictions: Predictions, sizes: Tensor, config: PredictConfig) -> Detections:
    """Detections, cut to the largest number in an image; checks that the rest is padding."""
    detections = postprocess.detect(predictions, sizes, DeltaCoder(), config)
    assert detections.scores.shape[1] <= config.max_detections
    most = int((detections.labels >= 0).sum(dim=1).max())
    assert (detections.labels[:, most:] == -1).all()
    assert all((part[:, most:] == 0).all() for part in detections[:2])
    return Detections(*(part[:, :most] for part in detections))


def random_predictions(num_classes: int, num_images: int = 2, side: int = 64) -> Predictions:
    """Logits without ties on a pyramid P3–P5, with many overlaps and boxes across the border."""
    levels = [3, 4, 5]
    config = AnchorConfig(ratios=[0.5, 1.0], scales=[1.0])
    anchors, counts = Anchors(config, levels)(level_sizes(side, side, levels))
    generator = torch.Generator().manual_seed(num_classes)
    num_logits = num_images * len(anchors) * num_classes
    logits = torch.linspace(-6, 3, num_logits)[torch.randperm(num_logits, generator=generator)]
    deltas = 0.3 * torch.randn(num_images, len(anchors), 4, generator=generator)
    return Predictions(logits.reshape(num_images, len(anchors), num_classes), deltas, anchors, counts)


def exact_predictions(boxes: list[list[float]], scores: Sequence[list[float]], counts: list[int]) -> Predictions:
    """One image whose boxes are the anchors; ``scores`` are those of each box's classes."""
    anchors = torch.tensor(boxes, dtype=torch.float32)
    return Predictions(torch.tensor([scores]).logit(), torch.zeros(1, len(boxes), 4), anchors, counts)


def naive(predictions: Predictions, image: int, size: tuple[int, int], config: PredictConfig) -> list[Tensor]:
    """Boxes, scores and labels of one image: decode all, then threshold, top-k per level, and torchvision's NMS."""
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    all_boxes = clip_boxes_to_image(coder.decode_single(predictions.box_channels[image], predictions.anchors), size)
    all_scores = predictions.cls_logits[image].sigmoid()
    boxes, scores, labels, start = [], [], [], 0
    for count in predictions.level_counts:
        pairs = [
            (all_scores[anchor, label].item(), label, anchor)
            for anchor in range(start, start + count)
            for label in range(all_scores.shape[1])
        ]
        for score, label, anchor in sorted(pairs, reverse=True)[: config.topk]:
            left, top, right, bottom = all_boxes[anchor].tolist()
            if score > config.score_threshold and right > left and bottom > top:
                boxes.append(all_boxes[anchor])
                scores.append(score)
                labels.append(label)
        start += count
    parts = [torch.stack(boxes), torch.tensor(scores), torch.tensor(labels)]
    kept = batched_nms(*parts, config.nms_threshold)[: config.max_detections]
    return [part[kept] for part in parts]


@pytest.mark.parametrize("num_classes", [1, 2, 7])
@pytest.mark.parametrize(
    "config",
    [
        PredictConfig(),
        PredictConfig(topk=20),
        PredictConfig(topk=50, score_threshold=0.3, nms_threshold=0.3, max_detections=15),
        PredictConfig(nms_threshold=0.9, max_detections=1000),
    ],
    ids=["default", "topk", "strict", "lenient"],
)
def test_equals_decoding_everything_first(num_classes: int, config: PredictConfig) -> None:
    predictions = random_predictions(num_classes)
    sizes = [(64, 64), (40, 52)]
    detections = detect(predictions, torch.tensor(sizes), config)
    most = 0
    for image, size in enumerate(sizes):
        boxes, scores, labels = naive(predictions, image, size, config)
        num = len(scores)
        assert num > 5
        assert_close(detections.boxes[image, :num], boxes)
        assert_close(detections.scores[image, :num], scores)
        assert torch.equal(detections.labels[image, :num], labels)
        # The rest is padding.
        assert (detections.boxes[image, num:] == 0).all()
        assert (detections.scores[image, num:] == 0).all()
        assert (detections.labels[image, num:] == -1).all()
        most = max(most, num)
    assert detections.boxes.shape == (2, most, 4)


def test_candidates_by_hand() -> None:
    # Three anchors with two classes on the first level, one on the second.
    logits = torch.tensor([[[0.1, 0.9], [0.5, 0.3], [0.8, 0.2], [0.4, 0.6]]])
    predictions = Predictions(logits, torch.zeros(1, 4, 4), torch.zeros(4, 4), [3, 1])
    best, labels, anchors = select_candidates(predictions, topk=3)
    assert_close(best, torch.tensor([[0.9, 0.8, 0.5, 0.6, 0.4]]))
    assert labels.tolist() == [[1, 0, 0, 1, 0]]
    assert anchors.tolist() == [[0, 2, 1, 3, 3]]


def test_topk_is_per_level() -> None:
    boxes = [[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    predictions = exact_predictions(boxes, [[0.9], [0.8], [0.3]], [2, 1])
    detections = detect(predictions, torch.tensor([[64, 64]]), PredictConfig(topk=1))
    assert_close(detections.scores, torch.tensor([[0.9, 0.3]]))
    assert_close(detections.boxes, torch.tensor([[boxes[0], boxes[2]]]))


def test_quality_is_a_factor_of_the_score() -> None:
    """With q: 0.9 · 0.2 < 0.5 · 0.8, and the second anchor's other class comes before the first's best."""
    predictions = exact_predictions([[0, 0, 10, 10], [20, 20, 30, 30]], [[0.9, 0.1], [0.5, 0.4]], [2])
    quality = torch.tensor([[0.2, 0.8]]).logit()
    logits, labels, anchors = select_candidates(predictions._replace(quality=quality), topk=3)
    # The best two anchors, then the best three pairs: 0.5 · 0.8, 0.4 · 0.8 and 0.9 · 0.2.
    assert_close(logits.sigmoid(), torch.tensor([[0.4, 0.32, 0.18]]))
    assert labels.tolist() == [[0, 1, 0]]
    assert anchors.tolist() == [[1, 1, 0]]
    assert select_candidates(predictions._replace(quality=quality), topk=1)[2].tolist() == [[1]]
    scores = detect(predictions._replace(quality=quality), torch.tensor([[40, 40]]), PredictConfig()).scores
    assert_close(scores, torch.tensor([[0.4, 0.32, 0.18]]))  # 0.1 · 0.2 is under the threshold


def test_nms_by_hand() -> None:
    boxes = [
        [0.0, 0, 10, 10],
        [0, 0, 10, 6],  # IoU 0.6 with the first
        [0, 0, 10, 5],  # 0.5: not over the threshold
        [0, 0, 10, 10],  # of another class
    ]
    predictions = exact_predictions(boxes, [[0.6, 0.01], [0.9, 0.01], [0.3, 0.01], [0.01, 0.5]], [4])
    config = PredictConfig(nms_threshold=0.5)
    detections = detect(predictions, torch.tensor([[64, 64]]), config)
    # The second suppresses the first (0.6) and the third (5 / 6).
    assert_close(detections.scores, torch.tensor([[0.9, 0.5]]))
    assert detections.labels.tolist() == [[0, 1]]
    predictions.cls_logits[0, 1, 0] = -9
    detections = detect(predictions, torch.tensor([[64, 64]]), config)
    assert_close(detections.scores, torch.tensor([[0.6, 0.5, 0.3]]))
    assert detections.labels.tolist() == [[0, 1, 0]]


def test_classes_never_meet_left_of_the_image() -> None:
    # The boxes, not yet clipped, extend from -11 to 10. Moved by 11, the largest coordinate + 1, the second class's box
    # would overlap the first's.
    boxes = [[0.0, 0, 10, 10], [-11, -11, -1, -1]]
    predictions = exact_predictions(boxes, [[0.9, 0.01], [0.01, 0.8]], [2])
    config = PredictConfig(clip="after_nms", keep_empty=True)
    detections = detect(predictions, torch.tensor([[64, 64]]), config)
    assert_close(detections.scores, torch.tensor([[0.9, 0.8]]))
    assert detections.labels.tolist() == [[0, 1]]


def test_the_score_threshold_is_exclusive() -> None:
    boxes = [[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    predictions = exact_predictions(boxes, [[0.5], [0.51], [0.49]], [3])  # logit 0 is exactly 0.5
    detections = detect(predictions, torch.tensor([[64, 64]]), PredictConfig(score_threshold=0.5))
    assert_close(detections.scores, torch.tensor([[0.51]]))


def test_max_detections_keeps_the_best() -> None:
    boxes = [[10.0 * index, 0, 10 * index + 9, 9] for index in range(5)]
    predictions = exact_predictions(boxes, [[0.1], [0.5], [0.3], [0.9], [0.7]], [5])
    detections = detect(predictions, torch.tensor([[64, 64]]), PredictConfig(max_detections=3))
    assert_close(detections.scores, torch.tensor([[0.9, 0.7, 0.5]]))
    assert detections.boxes[0, :, 0].tolist() == [30, 40, 10]


def test_boxes_are_clipped_to_their_image_and_dropped_outside() -> None:
    boxes = [[-8.0, -8, 8, 8], [30, 10, 50, 30], [50, 50, 60, 60]]
    predictions = exact_predictions(boxes, [[0.9], [0.8], [0.7]], [3])
    detections = detect(predictions, torch.tensor([[20, 40]]), PredictConfig())
    assert detections.boxes.tolist() == [[[0, 0, 8, 8], [30, 10, 40, 20]]]  # the third lies in the padding


def test_no_detections() -> None:
    predictions = random_predictions(3)
    detections = detect(predictions, torch.tensor([[64, 64], [64, 64]]), PredictConfig(score_threshold=1.0))
    assert [tuple(part.shape) for part in detections] == [(2, 0, 4), (2, 0), (2, 0)]
    # One image with, one without.
    predictions.cls_logits[1] = -9
    detections = detect(predictions, torch.tensor([[64, 64], [64, 64]]), PredictConfig())
    assert (detections.labels[0] >= 0).all()
    assert (detections.labels[1] == -1).all()


def test_images_do_not_affect_each_other() -> None:
    predictions, sizes = random_predictions(3, num_images=3), torch.tensor([[64, 64], [40, 52], [64, 30]])
    together = detect(predictions, sizes, PredictConfig())
    for image in range(3):
        one = predictions._replace(
            cls_logits=predictions.cls_logits[image : image + 1],
            box_channels=predictions.box_channels[image : image + 1],
        )
        alone = detect(one, sizes[image : image + 1], PredictConfig())
        for part, own in zip(together, alone, strict=True):
            assert torch.equal(part[image, : own.shape[1]], own[0])


def test_half_precision_is_decoded_and_suppressed_in_float32() -> None:
    predictions, sizes = random_predictions(3), torch.tensor([[64, 64], [40, 52]])
    low = predictions._replace(
        cls_logits=predictions.cls_logits.bfloat16(), box_channels=predictions.box_channels.bfloat16()
    )
    high = low._replace(cls_logits=low.cls_logits.float(), box_channels=low.box_channels.float())
    for part, expected in zip(detect(low, sizes, PredictConfig()), detect(high, sizes, PredictConfig()), strict=True):
        assert part.dtype == expected.dtype
        assert torch.equal(part, expected)


@pytest.mark.parametrize("clip", ["before_nms", "after_nms"])
def test_the_exported_graph_gives_the_same_detections(clip: str) -> None:
    predictions, sizes = random_predictions(3), torch.tensor([[64, 64], [40, 52]])
    predictions.cls_logits[1, 8:] = -9  # this image gets few detections
    config = PredictConfig(clip=clip, max_detections=30)

    class Detect(nn.Module):
        def forward(self, logits: Tensor, channels: Tensor, anchors: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
            raw = Predictions(logits, channels, anchors, predictions.level_counts)
            return tuple(postprocess.detect(raw, sizes, DeltaCoder(), config))

    inputs = (*predictions[:3], sizes)
    expected = Detect()(*inputs)
    counts = (expected[2] >= 0).sum(dim=1).tolist()
    assert counts[0] > 20
    assert 0 < counts[1] < 20
    for part, own in zip(torch.export.export(Detect(), inputs).module()(*inputs), expected, strict=True):
        assert torch.equal(part, own)


def test_nms_is_exact_with_many_classes() -> None:
    """Moving class 1,202 apart in float32 would round its boxes to an eighth of a pixel."""
    label, num = 1202, 300
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(num, 2, generator=generator) * torch.tensor([40.0, 40.0]) + 1200
    sides = 4 + 4 * torch.rand(num, 2, generator=generator)
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    logits = torch.full((1, num, label + 1), -20.0)
    logits[0, :, label] = torch.linspace(3, -2, num)
    predictions = Predictions(logits, torch.zeros(1, num, 4), boxes, [num])

    kept: list[int] = []
    iou = box_iou(boxes, boxes)
    for candidate in range(num):  # best first
        if not (iou[candidate, kept] > 0.5).any():
            kept.append(candidate)
    assert len(kept) < num
    detections = detect(predictions, torch.tensor([[1333, 1333]]), PredictConfig(max_detections=num))
    assert_close(detections.boxes[0], boxes[kept], rtol=0, atol=1e-3)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
def test_nms_by_rounds_is_nms(threshold: float) -> None:
    """Boxes on a coarse grid, with duplicates and overlaps of exactly a threshold."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.randint(0, 12, (6, 40, 2), generator=generator)
    sides = torch.randint(0, 8, (6, 40, 2), generator=generator)
    boxes, scores = torch.cat([corners, corners + sides], dim=-1).double(), torch.linspace(1, 0.1, 40).expand(6, -1)
    expected, _ = postprocess._survives(boxes, scores, threshold, rounds=1)
    assert 6 < expected.sum() < 6 * 40
    found, is_exact = postprocess._survives_by_rounds(boxes, threshold, rounds=40)
    assert is_exact.all()
    assert torch.equal(found, expected)
    # After fewer rounds, an image is said to be exact only if it is.
    found, is_exact = postprocess._survives_by_rounds(boxes, threshold, rounds=3)
    assert torch.equal(found[is_exact], expected[is_exact])


def test_a_chain_of_boxes_takes_as_many_rounds() -> None:
    boxes = torch.tensor([[2.0 * index, 0, 2 * index + 10, 10] for index in range(9)])[None]  # IoU 8 / 12 with the next
    survives, is_exact = postprocess._survives_by_rounds(boxes, 0.5, rounds=4)
    assert not is_exact
    survives, is_exact = postprocess._survives_by_rounds(boxes, 0.5, rounds=10)
    assert is_exact
    assert survives.tolist() == [[index % 2 == 0 for index in range(9)]]


def chain(length: int) -> tuple[list[list[float]], list[int]]:
    """Boxes of which each overlaps the next, IoU 8 / 12, and which survive."""
    return [[2.0 * index, 0, 2 * index + 10, 10] for index in range(length)], list(range(0, length, 2))


@pytest.mark.parametrize(
    ("boxes", "kept", "most", "copies"),
    [
        (*chain(1), 100, 1),
        (*chain(postprocess.ROUNDS), 100, 1),
        (*chain(postprocess.ROUNDS + 1), 100, 2),
        (*chain(4 * postprocess.ROUNDS + 1), 100, 3),
        ([[0.0, 0, 10, 10]] * 4 + [[20, 0, 30, 10]], [0], 1, 1),
        ([[0.0, 0, 10, 10]] * 9 + [[20, 0, 30, 10]], [0, 9], 2, 2),  # not among the best 4 · 2
    ],
)
def test_a_gpu_is_read_again_only_where_the_first_attempt_does_not_suffice(
    boxes: list[list[float]], kept: list[int], most: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(Tensor, "is_cpu", False)
    monkeypatch.setattr(postprocess, "to_cpu", lambda *parts: copied.append(parts) or to_cpu(*parts))
    scores = torch.linspace(0.9, 0.1, len(boxes))[:, None].tolist()
    predictions = exact_predictions(boxes, scores, [len(boxes)])
    found = detect(predictions, torch.tensor([[64, 200]]), PredictConfig(max_detections=most))
    assert found.boxes.tolist() == [[boxes[index] for index in kept]]
    assert len(copied) == copies


@pytest.mark.parametrize("rounds", [1, 16])
def test_a_gpu_detects_what_a_cpu_does(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its way through NMS, taken on a CPU; a number of rounds that does not suffice grows."""
    predictions, sizes = random_predictions(3, num_images=3), torch.tensor([[64, 64], [40, 52], [64, 30]])
    config = PredictConfig(max_detections=20)
    expected = detect(predictions, sizes, config)
    monkeypatch.setattr(postprocess, "ROUNDS", rounds)
    monkeypatch.setattr(postprocess, "rows_at_once", lambda rows, width, device: 2)
    monkeypatch.setattr(Tensor, "is_cpu", False)
    for part, own in zip(detect(predictions, sizes, config), expected, strict=True):
        assert torch.equal(part, own)
