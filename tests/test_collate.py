"""Batches: padding by hand, and errors that reach the reader of a loader as themselves."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from detector.config.schema import ResizeConfig
from detector.data.classification import ClassSample
from detector.data.detection import CocoDataset, Sample
from detector.data.formats.reading import read_annotations
from detector.data.loading.collate import collate, load_batches, pad_images
from detector.data.loading.sampler import EvalBatches, Key
from detector.data.transforms.boxes import Transform
from detector.errors import ConfigError, DataError, DetectorError
from detector.structures import IGNORE_REGION, Batch, ClassTargets


def make_sample(height: int, width: int, boxes: list[list[float]], labels: list[int], image_id: int = 0) -> Sample:
    image = torch.full((3, height, width), image_id + 1, dtype=torch.uint8)
    return Sample(image, torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), (7, 9), image_id)


@pytest.mark.parametrize(
    ("sizes", "padded"),
    [
        # The largest side of each direction, up to a multiple of 32.
        ([(50, 70), (64, 33)], (64, 96)),
        ([(64, 96)], (64, 96)),
        ([(65, 97)], (96, 128)),
        ([(1, 1)], (32, 32)),
        ([(10, 200), (200, 10)], (224, 224)),
    ],
)
def test_images_are_padded_right_and_below(sizes: list[tuple[int, int]], padded: tuple[int, int]) -> None:
    images = [torch.full((3, *size), 200 + row, dtype=torch.uint8) for row, size in enumerate(sizes)]
    found = pad_images(images)
    assert found.shape == (len(sizes), 3, *padded)
    assert found.dtype == torch.uint8
    for row, (height, width) in enumerate(sizes):
        assert torch.equal(found[row, :, :height, :width], images[row])
        assert found[row].long().sum() == images[row].long().sum()  # all else is 0


def test_batches_are_channels_last_and_sent_without_a_copy(shapes: Path) -> None:
    notes = read_annotations(shapes / "annotations" / "val.json")
    data = CocoDataset(notes, shapes / "images", Transform(ResizeConfig(short=[40], long=64)), "error")
    assert sample_image(data).stride()[0] == 1  # as it was decoded
    for workers in (0, 2):
        for batch in load_batches(data, EvalBatches(len(data), 2), workers):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.images.dtype == torch.uint8
            # Made in shared memory: the storage is the batch and not more.
            assert batch.images.is_shared() == (workers > 0)
            assert batch.images.untyped_storage().nbytes() == batch.images.numel()
            for row, (height, width) in enumerate(batch.sizes.tolist()):
                assert batch.images[row, :, height:].sum() == batch.images[row, :, :, width:].sum() == 0


def sample_image(data: CocoDataset) -> torch.Tensor:
    sample = data[0, 0]
    assert isinstance(sample, Sample)
    return sample.image


def test_a_batch_by_hand() -> None:
    first = make_sample(40, 20, [[1, 2, 3, 4], [5, 6, 7, 8]], [4, IGNORE_REGION], 31)
    second = make_sample(10, 30, [[9, 9, 10, 10]], [0], 2)
    batch = collate([first, second, make_sample(8, 8, [], [], 5)])
    assert isinstance(batch, Batch)
    assert batch.images.shape == (3, 3, 64, 32)
    assert batch.sizes.tolist() == [[40, 20], [10, 30], [8, 8]]
    assert batch.sizes_original.tolist() == [[7, 9]] * 3
    assert batch.ids.tolist() == [31, 2, 5]
    nothing = [0, 0, 0, 0]
    assert batch.targets.labels.tolist() == [[4], [0], [-1]]
    assert batch.targets.boxes.tolist() == [[[1, 2, 3, 4]], [[9, 9, 10, 10]], [nothing]]
    assert batch.targets.regions is not None
    assert batch.targets.regions.tolist() == [[[5, 6, 7, 8]], [nothing], [nothing]]
    types = (batch.images.dtype, batch.targets.boxes.dtype, batch.targets.labels.dtype, batch.ids.dtype)
    assert types == (torch.uint8, torch.float32, torch.int64, torch.int64)


def test_a_batch_without_boxes_has_one_row_of_padding() -> None:
    for number in (1, 2):
        batch = collate([make_sample(8, 8, [], [])] * number)
        assert isinstance(batch, Batch)
        assert batch.targets.labels.tolist() == [[-1]] * number
        assert batch.targets.boxes.tolist() == [[[0, 0, 0, 0]]] * number
        assert batch.targets.regions is None


# --- depth, channels and classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_any_depth_and_channels_are_padded(channels: int) -> None:
    image = torch.randint(0, 65536, (channels, 5, 7)).to(torch.uint16)
    found = pad_images([image, image[:, :3]])
    assert (found.dtype, found.shape) == (torch.uint16, (2, channels, 32, 32))
    assert torch.equal(found[0, :, :5, :7], image)
    assert found.long().sum() == image.long().sum() + image[:, :3].long().sum()  # all else is 0


def test_8_bits_beside_16_are_spread_over_all_of_them() -> None:
    low, high = torch.arange(256, dtype=torch.uint8).view(1, 16, 16), torch.zeros(1, 16, 16, dtype=torch.uint16)
    for images in ([low, high], [high, low]):
        found = pad_images(images, divisor=1)
        assert (found.dtype, found.shape) == (torch.uint16, (2, 1, 16, 16))
        own = found[0 if images[0] is low else 1]
        assert own.long().ravel().tolist() == [257 * value for value in range(256)]  # 255 is 65535


def make_class_sample(side: int, probabilities: list[float], weights: list[float], image_id: int = 0) -> ClassSample:
    image = torch.full((3, side, side), image_id + 1, dtype=torch.uint8)
    return ClassSample(image, torch.tensor(probabilities).float(), torch.tensor(weights).float(), (7, 9), image_id)


def test_a_batch_of_classes_by_hand() -> None:
    first = make_class_sample(20, [1, 0, 0], [1, 2, 3], 31)
    batch = collate([first, make_class_sample(20, [0.25, 0, 0.75], [1, 2, 3], 5)])
    assert isinstance(batch, Batch)
    assert batch.images.shape == (2, 3, 20, 20)  # nothing is added to the size that a network was trained on
    assert torch.equal(batch.images[0], first.image)
    assert batch.sizes.tolist() == [[20, 20]] * 2
    assert batch.sizes_original.tolist() == [[7, 9]] * 2
    assert batch.ids.tolist() == [31, 5]
    assert isinstance(batch.targets, ClassTargets)
    assert batch.targets.probabilities.tolist() == [[1, 0, 0], [0.25, 0, 0.75]]
    assert batch.targets.weights.tolist() == [[1, 2, 3]] * 2
    assert (batch.targets.probabilities.dtype, batch.targets.weights.dtype) == (torch.float32, torch.float32)
    assert isinstance(batch.to(torch.device("cpu")).targets, ClassTargets)


def test_the_error_of_one_sample_is_the_batchs() -> None:
    error = DataError("x.png: is not an image")
    assert collate([make_class_sample(8, [1], [1]), error]) is error
    assert collate([error, make_class_sample(8, [1], [1])]) is error


# --- errors and signals -----------------------------------------------------------------------------------------------


class Broken(Dataset[Sample | DetectorError]):
    """Sample 5 is ``error``."""

    def __init__(self, error: DetectorError) -> None:
        self.error = error

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: Key) -> Sample | DetectorError:
        _, index = key
        return self.error if index == 5 else make_sample(8, 8, [], [], index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [DataError, ConfigError])
def test_the_error_of_a_sample_reaches_the_reader_as_itself(kind: type[DetectorError], workers: int) -> None:
    message = "ordner/ö.jpg: is not an image that can be decoded, or is cut off"
    ids = []
    with pytest.raises(DetectorError) as caught:
        for batch in load_batches(Broken(kind(message)), EvalBatches(8, 2), workers):
            ids += batch.ids.tolist()
    assert type(caught.value) is kind
    assert str(caught.value) == message
    assert ids == [0, 1, 2, 3]  # the batches before it


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_off_stops_the_loader_with_its_name(workers: int, shapes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shapes, tmp_path / "data"))
    file = folder / "images" / "val_00014.jpg"
    file.write_bytes(file.read_bytes()[:2000])
    notes = read_annotations(folder / "annotations" / "val.json")
    data = CocoDataset(notes, folder / "images", Transform(ResizeConfig(short=[64], long=64)), "error")
    with pytest.raises(DataError) as caught:
        list(load_batches(data, EvalBatches(len(data), 2), workers))
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value).splitlines()) == 1


class Signals(Dataset[Sample]):
    """The id of a sample is 1 in a process that leads a group of its own and ends on SIGTERM."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, key: Key) -> Sample:
        is_alone = os.getpgrp() == os.getpid()
        return make_sample(8, 8, [], [], int(is_alone and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL))


def test_workers_leave_ctrl_c_to_the_main_process() -> None:
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for workers, expected in ((2, [1, 1]), (0, [0, 0])):
            batches = load_batches(Signals(), EvalBatches(2, 1), workers)
            assert [int(batch.ids) for batch in batches] == expected
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
