"""The data set of boxes: what becomes of invalid ones, samples, and that all is held in flat arrays."""

from __future__ import annotations

import dataclasses
import io
import pickle
import re
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_files import make_dataset, make_tree, same_size, sample_of, tree_with, write, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_coco import SEGMENTATIONS

from detector.config.loader import load_config
from detector.config.schema import DataConfig, SplitConfig
from detector.data.detection import (
    CocoDataset,
    Sample,
    apply_box_policy,
    open_dataset,
)
from detector.data.formats.reading import read_annotations
from detector.errors import DataError
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.structures import IGNORE_REGION
from detector.tasks import get_task, get_views

# --- boxes without area or outside ------------------------------------------------------------------------------------

# In an image 100 wide and 50 high: box, what clip makes of it (xyxy; None: dropped), whether it is at fault.
BOXES: dict[str, tuple[list[float], list[float] | None, bool]] = {
    "inside": ([10, 10, 20, 20], [10, 10, 30, 30], False),
    "the whole image": ([0, 0, 100, 50], [0, 0, 100, 50], False),
    "a pixel out": ([-1, -1, 102, 52], [0, 0, 100, 50], False),  # right 101, bottom 51: tolerated, and cut
    "left": ([-5, 10, 20, 20], [0, 10, 15, 30], True),
    "above": ([10, -1.5, 20, 20], [10, 0, 30, 18.5], True),
    "right and below": ([90, 40, 20, 20], [90, 40, 100, 50], True),
    "right by 1.5": ([10, 10, 91.5, 5], [10, 10, 100, 15], True),
    "no width": ([10, 10, 0, 5], None, True),
    "no height": ([10, 10, 5, 0], None, True),
    "negative width": ([10, 10, -3, 4], None, True),
    "beside it": ([120, 10, 10, 10], None, True),
    "beside it by less than a pixel": ([100, 10, 0.5, 10], None, True),
}


@pytest.mark.parametrize("name", BOXES)
def test_a_box_by_each_policy(name: str, tmp_path: Path) -> None:
    box, clipped, is_invalid = BOXES[name]
    notes = read_annotations(write(tmp_path, tree_with([box])))

    clip = apply_box_policy(notes, "clip")
    assert clip.boxes[clip.is_kept].tolist() == ([clipped] if clipped else [])
    assert (clip.clipped, clip.dropped) == (int(is_invalid and clipped is not None), int(clipped is None))

    drop = apply_box_policy(notes, "drop")
    assert drop.boxes[drop.is_kept].tolist() == ([] if is_invalid else [clipped])
    assert (drop.clipped, drop.dropped) == (0, int(is_invalid))

    if is_invalid:
        fault = "reaches outside its image" if clipped else "has no area"
        place = f"image 7 (a.png, 100×50), annotation 100: box {[float(side) for side in box]} (xywh) {fault}"
        assert clip.first_invalid == drop.first_invalid == place
        with pytest.raises(DataError, match=re.escape(f"{notes.path}: {place}; 1 invalid box in all")):
            apply_box_policy(notes, "error")
    else:
        assert clip.first_invalid is None
        refused = apply_box_policy(notes, "error")
        assert refused.boxes[refused.is_kept].tolist() == [clipped]


def test_faults_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    notes = read_annotations(write(tmp_path, tree_with([box for box, _, _ in BOXES.values()])))
    # 12 boxes: 3 right ones, 4 that can be cut, 5 that show nothing. The fourth (id 103) is the first at fault.
    clip, drop = apply_box_policy(notes, "clip"), apply_box_policy(notes, "drop")
    assert (int(clip.is_kept.sum()), clip.clipped, clip.dropped) == (7, 4, 5)
    assert (int(drop.is_kept.sum()), drop.clipped, drop.dropped) == (3, 0, 9)
    with pytest.raises(DataError, match=r"annotation 103: .* 9 invalid boxes in all"):
        apply_box_policy(notes, "error")


def test_a_sliver_that_float32_cannot_hold_has_no_area(tmp_path: Path) -> None:
    # 99 + 1e-6 is 99 in float32, the type that boxes are kept in.
    notes = read_annotations(write(tmp_path, tree_with([[99, 10, 1e-6, 10]])))
    assert not apply_box_policy(notes, "clip").is_kept.any()


sides = st.floats(-60, 160, width=32) | st.integers(-60, 160)


@settings(max_examples=60)
@given(boxes=st.lists(st.tuples(sides, sides, sides, sides), min_size=1, max_size=8))
def test_kept_boxes_lie_inside_and_have_an_area(
    boxes: list[tuple[float, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    notes = read_annotations(write(tmp_path_factory.getbasetemp(), tree_with([list(box) for box in boxes])))
    for policy in ("clip", "drop"):
        result = apply_box_policy(notes, policy)
        kept = result.boxes[result.is_kept]
        assert (kept >= 0).all()
        assert (kept <= torch.tensor([100, 50, 100, 50])).all()
        assert (kept[:, 2:] > kept[:, :2]).all()
        assert result.dropped == len(boxes) - len(kept)


# --- the data set -----------------------------------------------------------------------------------------------------


def test_samples_by_hand(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, make_tree())
    assert len(dataset) == 3

    first = sample_of(dataset, 0)
    assert (first.image.shape, first.image.dtype, first.image.unique().tolist()) == ((3, 50, 100), torch.uint8, [40])
    assert first.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 100, 50]]
    assert first.labels.tolist() == [2, IGNORE_REGION]
    assert (first.id, first.size_original) == (0, (50, 100))

    # 60×80 is resized to a short side of 50, by 5/6: 50×67 (66.67).
    second = sample_of(dataset, 1)
    assert (second.image.shape, second.image.unique().tolist()) == ((3, 50, 67), [80])
    expected = torch.tensor([[3.5 * 67 / 80, 4.25 * 50 / 60, 8.5 * 67 / 80, 10.25 * 50 / 60]])
    assert torch.allclose(second.boxes, expected)
    assert (second.id, second.size_original, second.labels.tolist()) == (1, (60, 80), [0])

    empty = sample_of(dataset, 2)
    assert (empty.boxes.shape, empty.labels.shape, empty.id) == ((0, 4), (0,), 2)
    assert (empty.boxes.dtype, empty.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_a_crowd_is_an_ignore_region(name: str, tmp_path: Path) -> None:
    segmentation, (left, top, width, height) = SEGMENTATIONS[name]
    tree = make_tree()
    tree["annotations"] = [
        {"id": 1, "image_id": 7, "category_id": 5, "segmentation": segmentation, "iscrowd": 1},
        {"id": 2, "image_id": 7, "category_id": 5, "segmentation": segmentation, "iscrowd": 0},
    ]
    sample = sample_of(make_dataset(tmp_path, tree), 0)
    assert sample.labels.tolist() == [IGNORE_REGION, 1]
    assert sample.boxes.tolist() == [[left, top, left + width, top + height]] * 2


def test_the_policy_reaches_the_samples(tmp_path: Path) -> None:
    tree = tree_with([[-5, 10, 20, 20], [10, 10, 20, 20], [5, 5, 0, 5]])
    with pytest.raises(DataError, match="annotation 100"):
        make_dataset(tmp_path, tree)
    clip, drop = make_dataset(tmp_path, tree, "clip"), make_dataset(tmp_path, tree, "drop")
    assert sample_of(clip, 0).boxes.tolist() == [[0, 10, 15, 30], [10, 10, 30, 30]]
    assert sample_of(clip, 0).labels.tolist() == [1, IGNORE_REGION]
    assert sample_of(drop, 0).boxes.tolist() == [[10, 10, 30, 30]]
    assert sample_of(drop, 0).labels.tolist() == [IGNORE_REGION]


def test_the_summary_counts(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, make_tree())
    notice = f"{tmp_path / 'x.json'}: read 2 annotations without an area"
    assert dataset.summary() == f"3 images (1 without boxes), 2 boxes of 3 classes, 1 ignore region\n{notice}"
    boxes = [[-5, 10, 20, 20], [10, 10, 20, 20], [5, 5, 0, 5]]  # the second is a crowd
    text = make_dataset(tmp_path, tree_with(boxes), "clip").summary()
    expected = "3 images (2 without boxes), 1 box of 3 classes, 1 ignore region; 1 invalid box clipped, 1 dropped"
    assert text.startswith(f"{expected} (first: image 7 (a.png, 100×50), annotation 100: ")


def test_another_size_than_annotated_comes_back_as_an_error(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, make_tree())
    (tmp_path / "a.png").write_bytes((tmp_path / "c.png").read_bytes())
    error = dataset[0, 0]
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{tmp_path / 'a.png'}: the image is 30×20, its annotation says 100×50; ")
    assert isinstance(dataset[0, 1], Sample)


def test_opening_checks_what_it_can_without_decoding(tmp_path: Path) -> None:
    tree = make_tree()
    write_images(tmp_path, tree)
    notes = str(write(tmp_path, tree))
    split = SplitConfig(annotations=notes, images=str(tmp_path))
    assert len(open_dataset(DataConfig(val=split), "val", same_size())) == 3

    def refusal(split: SplitConfig) -> str:
        with pytest.raises(DataError) as caught:
            open_dataset(DataConfig(val=split), "val", same_size())
        return str(caught.value)

    assert refusal(SplitConfig(images=str(tmp_path))).startswith("data.val.annotations is not set; ")
    assert refusal(SplitConfig(annotations=notes)).startswith("data.val.images is not set; ")
    nowhere = SplitConfig(annotations=notes, images=str(tmp_path / "nowhere"))
    assert refusal(nowhere) == f"data.val.images: {tmp_path / 'nowhere'} is not a folder"
    too_long = SplitConfig(annotations=notes, images="x" * 300)
    assert refusal(too_long) == f"data.val.images: {'x' * 300} is not a folder"
    too_long = SplitConfig(annotations="x" * 300, images=str(tmp_path))
    assert "cannot be read: File name too long" in refusal(too_long)
    missing = tmp_path / "Ordner" / "ö 猫.png"
    missing.unlink()
    assert refusal(split).startswith(f"{missing}: does not exist, but {notes} names it (image 3)")


def test_opening_applies_the_configs_policy(tmp_path: Path) -> None:
    tree = tree_with([[-5, 10, 20, 20]])
    write_images(tmp_path, tree)
    split = SplitConfig(annotations=str(write(tmp_path, tree)), images=str(tmp_path))
    assert open_dataset(DataConfig(train=split, invalid_boxes="clip"), "train", same_size()).checked.clipped == 1
    with pytest.raises(DataError):
        open_dataset(DataConfig(train=split), "train", same_size())


# --- flat arrays ------------------------------------------------------------------------------------------------------


class _WithoutTensors(pickle.Pickler):
    """Pickles everything but tensors: what a forked worker would copy by touching it."""

    def persistent_id(self, value: object) -> str | None:
        return "tensor" if isinstance(value, torch.Tensor) else None


def large_dataset(folder: Path, num_images: int) -> CocoDataset:
    images = [{"id": row, "file_name": f"{row}.png", "height": 50, "width": 100} for row in range(num_images)]
    boxes = [
        {"id": 3 * row + place, "image_id": row, "category_id": 5, "bbox": [1, 2, 3 + place, 4], "area": 9}
        for row in range(num_images)
        for place in range(3)
    ]
    tree = make_tree() | {"images": images, "annotations": boxes}
    return CocoDataset(read_annotations(write(folder, tree)), folder, same_size(), "clip")


def test_nothing_but_tensors_grows_with_the_data(tmp_path: Path) -> None:
    lengths = []
    for num_images in (2, 2000):
        buffer = io.BytesIO()
        _WithoutTensors(buffer).dump(large_dataset(tmp_path, num_images))
        lengths.append(buffer.tell())
    assert lengths[0] == lengths[1]


def tensors_of(dataset: CocoDataset) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    parts = list(vars(dataset).values())
    while parts:
        part = parts.pop()
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif dataclasses.is_dataclass(part):
            parts += [getattr(part, field.name) for field in dataclasses.fields(part)]
    return found


def test_spawned_workers_share_the_arrays(tmp_path: Path) -> None:
    dataset = large_dataset(tmp_path, 2000)
    tensors = tensors_of(dataset)
    # 7 columns, codes, kind and texts of two sorts of ids, the names; the boxes by the policy, and two masks of them.
    assert len(tensors) >= 7 + 2 * 4 + 2 + 3
    payload = bytes(ForkingPickler.dumps(dataset))
    assert len(payload) < 20_000  # the boxes alone are 2000 · 3 · 4 · 8 bytes
    assert all(tensor.is_shared() for tensor in tensors if len(tensor))
    copy = pickle.loads(payload)
    copy.checked.boxes[5] = 77
    assert dataset.checked.boxes[5].tolist() == [77] * 4
    assert copy.annotations.file_name(1999) == "1999.png"


# --- the frame and the depth that the config says ---------------------------------------------------------------------


def test_boxes_lie_right_on_images_that_exif_turns(shared: Path) -> None:
    """Boxes drawn upright on images that EXIF turns by 180°, or by 90° where they are square: only the config knows."""
    case = shared / "cases/exif_180"
    split = SplitConfig(annotations=str(case / "a.json"), images=str(case / "img"))
    for exif, is_right in (("auto", False), ("stored", False), ("upright", True)):
        data = open_dataset(DataConfig(train=split, exif=exif), "train", same_size())  # type: ignore[arg-type]
        for index in range(len(data)):
            sample = data[0, index]
            assert isinstance(sample, Sample)
            left, top, right, bottom = sample.boxes[0].int().tolist()
            red, green, _ = (
                sample.image[:, top + 2 : bottom - 2, left + 2 : right - 2].float().mean(dim=(1, 2)).tolist()
            )
            assert (red > 200 and green < 60) == is_right
        warnings = data.warnings()
        assert len(warnings) == (exif == "auto")
        assert all("EXIF turns or mirrors 2 of 2 images" in line for line in warnings)
        assert len(data.select([1]).warnings()) == (exif == "auto")


def test_what_a_run_reads_its_predictor_reads(tmp_path: Path) -> None:
    """``data.exif`` and ``data.max_value`` are in the checkpoint's config: files, arrays, both tasks."""
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 30, 3), dtype=np.uint16)
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "deep.png"), pixels[:, :, ::-1])
    eight, exif = Image.fromarray((pixels >> 4).astype(np.uint8)), Image.Exif()
    exif[0x0112] = 3
    eight.save(folder / "turned.png", exif=exif)
    tree = {
        "images": [
            {"id": number, "file_name": name, "width": 30, "height": 20}
            for number, name in enumerate(["deep.png", "turned.png"])
        ],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    overrides = ["data.exif=stored", "data.max_value=4095", f"data.train.images={tmp_path}/data"]
    expected = [np.rint(pixels * (65535 / 4095)).astype(np.uint16), np.asarray(eight)]
    for name, more in (
        ("quickstart.yaml", [f"data.train.images={folder}", f"data.train.annotations={write(tmp_path, tree)}"]),
        ("classify_quickstart.yaml", []),
    ):
        config = load_config(name, [*overrides, *more, "model.backbone.name=resnet10"])
        task = get_task(config)
        data = get_views(config.task).untransformed(task.open_split(config, "train"))
        assert data.warnings() == []
        for index, image in enumerate(expected):
            sample = data[0, index]
            assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), image)
            predictor = Predictor(build_model(config.model, 1), config, data.categories, torch.device("cpu"))
            seen = []
            predictor.predict_samples = lambda samples, score=None, seen=seen: seen.extend(samples) or []  # type: ignore
            path = data.file(index)
            predictor.predict([path, Image.open(path) if index else pixels])
            for found in seen:
                assert torch.equal(found.image, predictor.sample(image).image)
