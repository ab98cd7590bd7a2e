"""The predictor as Python uses it: any kind of image, clear refusals, copies, and what a prediction can do."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detector
from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import load_config
from detector.data.images import read_image
from detector.errors import DataError
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.structures import Category
from detector.tasks import detection_results
from detector.tasks.classification import ClassPrediction
from detector.tasks.detection import Prediction

SMALL = ["model.backbone.name=resnet10", "model.fpn={levels: [3, 4, 5], channels: 16}"]
NAMES = ["circle", "square", "triangle", "cross"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights: its results are nonsense, but reproducible."""
    torch.manual_seed(0)
    given = [*SMALL, "data.resize={short: [64], long: 64}", "model.predict.score_threshold=0.0"]
    config = load_config("quickstart.yaml", given)
    path = tmp_path_factory.mktemp("predictor") / "detector.pt"
    categories = [Category(number, name) for number, name in enumerate(NAMES, start=1)]
    save_checkpoint(path, config, categories, {"model": build_model(config.model, len(NAMES)).state_dict()})
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return detector.load(checkpoint, device="cpu")


@pytest.fixture
def file(shapes: Path) -> Path:
    return sorted((shapes / "images").glob("val_*.jpg"))[0]


@pytest.fixture
def image(file: Path) -> np.ndarray:
    return read_image(file)


def assert_same(found: Prediction, other: Prediction) -> None:
    assert len(found.scores) > 0
    for own, its in zip(found, other, strict=True):
        np.testing.assert_array_equal(own, its)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, copy.copy, lambda own: pickle.loads(pickle.dumps(own))])
def test_a_copy_predicts_the_same(
    make_copy: Callable[[Predictor], Predictor], predictor: Predictor, image: np.ndarray
) -> None:
    assert_same(make_copy(predictor).predict([image])[0], predictor.predict([image])[0])


@pytest.mark.parametrize("name", ["densenet121", "swin_t"])
def test_deep_and_branched_networks_can_be_copied(name: str, image: np.ndarray) -> None:
    given = [
        f"model.backbone.name={name}",
        "model.fpn={levels: [3, 4], channels: 8}",
        "data.resize={short: [32], long: 32}",
    ]
    config = load_config("quickstart.yaml", [*given, "model.predict.score_threshold=0.0"])
    own = Predictor(build_model(config.model, 1).fold_norms(), config, [Category(1, "a")], torch.device("cpu"))
    for other in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        assert_same(other.predict([image])[0], own.predict([image])[0])


def _predict_elsewhere(predictor: Predictor, image: np.ndarray, sender: Any) -> None:
    torch.set_num_threads(1)
    sender.send(predictor.predict([image]))


def test_a_spawned_process_predicts_the_same(predictor: Predictor, image: np.ndarray) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_predict_elsewhere, args=(predictor, image, sender))
    process.start()
    (found,) = receiver.recv()
    process.join()
    assert_same(found, predictor.predict([image])[0])


def test_an_image_gives_the_same_whatever_it_comes_as(file: Path, predictor: Predictor, image: np.ndarray) -> None:
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # as cv2.imread gives it
    found = predictor.predict([file, str(file), Image.fromarray(image), image, tensor, bgr[:, :, ::-1]])
    found += predictor.predict(iter([image])) + predictor.predict(image[None]) + predictor.predict(tensor[None])
    for other in found[1:]:
        np.testing.assert_allclose(other.boxes, found[0].boxes, atol=1e-4)
        assert other.names == found[0].names


# What is given as an image of 8 × 6 pixels, and what the refusal must say.
ARRAY = np.zeros((6, 8, 3), dtype=np.uint8)
TENSOR = torch.zeros(3, 6, 8, dtype=torch.uint8)
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "float of 0 to 1": (ARRAY / 255 + 0.5, ValueError, "(image * 255).round().astype(numpy.uint8)"),
    "float of 0 to 255": (
        ARRAY + np.float32(200),
        ValueError,
        "convert them by image.round().astype(numpy.uint8)",
    ),
    "float with swapped bytes": ((ARRAY + 0.5).astype(">f4"), ValueError, "(image * 255).round().astype(numpy.uint8)"),
    "normalised": (ARRAY - 2.0, ValueError, "look normalised"),
    "not finite": (ARRAY * np.nan, ValueError, "look normalised"),
    "float tensor": (TENSOR + 0.5, ValueError, "(image * 255).round().to(torch.uint8)"),
    "integers": (ARRAY.astype(np.int64), ValueError, "int64 [6, 8, 3]: with values of 0 to 255, image.astype"),
    "array CHW": (ARRAY.transpose(2, 0, 1), ValueError, "looks like [C, H, W]: image.transpose(1, 2, 0)"),
    "tensor HWC": (TENSOR.permute(1, 2, 0), ValueError, "looks like [H, W, C]: image.permute(2, 0, 1)"),
    "gray array": (ARRAY[:, :, 0], ValueError, "numpy.stack([image] * 3, axis=2)"),
    "gray array HW1": (ARRAY[:, :, :1], ValueError, "image.repeat(3, axis=2)"),
    "gray tensor": (TENSOR[0], ValueError, "image.expand(3, -1, -1)"),
    "RGBA": (np.zeros((6, 8, 4), dtype=np.uint8), ValueError, "drop the alpha: image[:, :, :3]"),
    "RGBA tensor": (torch.zeros(4, 6, 8, dtype=torch.uint8), ValueError, "drop the alpha: image[:3]"),
    "batch": (TENSOR[None], ValueError, "a batch of 1 images: give them one by one, predict(list(batch))"),
    "five channels": (np.zeros((6, 8, 5), dtype=np.uint8), ValueError, "3 channels (model.in_channels)"),
    "empty": (ARRAY[:0], ValueError, "it is empty"),
    "None": (None, TypeError, "is None; it must be a path, a PIL image, an array [H, W, 3] or a tensor [3, H, W]"),
    "list of lists": (ARRAY.tolist(), TypeError, "numpy.asarray(image, dtype=numpy.uint8)"),
    "nested paths": (["a.jpg"], TypeError, "one flat list"),
    "bytes": (b"\xff\xd8", TypeError, "of type bytes"),
    "no such file": ("nowhere.jpg", DataError, "nowhere.jpg: does not exist; relative paths start at"),
    "name too long": ("x" * 5000, DataError, "does not exist"),
    "folder": (".", DataError, "is a folder; give its files: predict(sorted(Path('.').glob('*.jpg')))"),
    "URL": ("https://example.org/a.jpg", DataError, "is a URL; download it"),
}


def test_views_that_need_no_resizing_are_taken(predictor: Predictor) -> None:
    bgr = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert_same(predictor.predict([bgr[:, :, ::-1]])[0], predictor.predict([bgr[:, :, ::-1].copy()])[0])


def test_bytes_in_any_order_are_taken(predictor: Predictor) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (48, 64, 3), dtype=np.uint16)
    for swapped in (deep.astype(">u2"), deep.astype("<u2")):
        assert_same(predictor.predict([swapped])[0], predictor.predict([deep])[0])


def test_depth_and_frame_are_those_of_the_model(checkpoint: Path, tmp_path: Path) -> None:
    """Of a path, of what PIL makes of it, and of what a prediction is drawn on."""
    deep = np.random.default_rng(0).integers(0, 4096, (48, 64, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    stored = Image.fromarray((deep[..., ::-1] >> 4).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    given = ["data.exif=stored", "data.max_value=4095"]
    predictor = Predictor.from_checkpoint(checkpoint, "cpu", given)
    turned = [tmp_path / "turned.png", Image.open(tmp_path / "turned.png")]
    (by_path, by_pil, of_deep) = predictor.predict([*turned, tmp_path / "deep.png"])
    assert_same(by_path, by_pil)
    for image in turned:  # as stored: upright, it would be higher than wide
        drawing = by_path.draw(image, 1.0)
        assert drawing.width > drawing.height
    drawn = np.asarray(of_deep.draw(tmp_path / "deep.png", 1.0).resize((64, 48)), dtype=int)
    assert abs(drawn.mean() - deep.mean() / 4095 * 255) < 3  # not almost black
    with pytest.raises(ValueError, match="holds 8 of its file's 16 bits; give the path"):
        predictor.predict([Image.open(tmp_path / "deep.png")])


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_image_is_named_with_its_remedy(kind: str, predictor: Predictor) -> None:
    given, error, said = REFUSED[kind]
    with pytest.raises(error) as raised:
        predictor.predict([ARRAY, given])
    assert str(raised.value).startswith("image 1")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_remedies_are_right(predictor: Predictor, image: np.ndarray) -> None:
    """What a refusal says to write, written."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for remedy, given in {
        "(image * 255).round().astype(numpy.uint8)": image / 255,
        "image.round().astype(numpy.uint8)": image.astype(np.float64),
        "(image * 255).round().to(torch.uint8)": tensor / 255,
        "image.transpose(1, 2, 0)": tensor.numpy(),
        "image.permute(2, 0, 1)": torch.from_numpy(image),
        "image[:, :, :3]": np.dstack([image, image[:, :, 0]]),
    }.items():
        with pytest.raises(ValueError, match=r"(?s).*") as raised:
            predictor.predict([given])
        assert remedy in str(raised.value)
        fixed = eval(remedy, {"image": given, "numpy": np, "torch": torch})
        assert_same(predictor.predict([fixed])[0], predictor.predict([image])[0])
    gray = image[:, :, 0]
    stacked = [
        np.stack([gray] * 3, axis=2),
        gray[:, :, None].repeat(3, axis=2),
        torch.from_numpy(gray).expand(3, -1, -1),
    ]
    assert_same(predictor.predict(stacked[:1])[0], predictor.predict(stacked[1:2])[0])
    assert_same(predictor.predict(stacked[:1])[0], predictor.predict(stacked[2:])[0])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (([ARRAY], 30), ValueError, "score_threshold: 30 is not between 0 and 1; 30 looks like a percentage: 0.3"),
        (([ARRAY], -0.1), ValueError, "score_threshold: -0.1 is not between 0 and 1"),
        (([ARRAY], float("nan")), ValueError, "score_threshold: nan is not between 0 and 1"),
        (([ARRAY], "0.5"), TypeError, "score_threshold: '0.5' is not a number between 0 and 1"),
        (([ARRAY], True), TypeError, "score_threshold: True is not a number between 0 and 1"),
        (([ARRAY], 0.5, 0), ValueError, "batch_size: 0 is not a whole number of at least 1"),
        (([ARRAY], 0.5, 2.5), ValueError, "batch_size: 2.5 is not a whole number of at least 1"),
        (([ARRAY], 0.5, None), ValueError, "batch_size: None is not a whole number of at least 1"),
        (("a.jpg",), TypeError, "predict takes a list of images; wrap a single one: predict([image])"),
        ((Path("a.jpg"),), TypeError, "wrap a single one"),
        ((Image.new("RGB", (8, 6)),), TypeError, "wrap a single one"),
        ((ARRAY,), TypeError, "wrap a single one"),
        ((TENSOR,), TypeError, "wrap a single one"),
        ((None,), TypeError, "predict takes a list of images; this is None"),
        ((7,), TypeError, "predict takes a list of images; this is of type int"),
    ],
)
def test_arguments_are_checked(
    arguments: tuple[Any, ...], error: type[Exception], said: str, predictor: Predictor
) -> None:
    with pytest.raises(error) as raised:
        predictor.predict(*arguments)
    assert str(raised.value).endswith(said) or said in str(raised.value)


def test_limits_of_the_threshold_are_allowed(predictor: Predictor, image: np.ndarray) -> None:
    assert len(predictor.predict([image], 0)[0].boxes) > len(predictor.predict([image], np.float32(1))[0].boxes) == 0
    assert predictor.predict([]) == []


# --- what a prediction can do -----------------------------------------------------------------------------------------


def made(count: int) -> Prediction:
    """Objects of size 10 × 20 at 5, 6; scores 0.9, 0.8, ..."""
    boxes = np.tile(np.array([5.126, 6.0, 15.126, 26.0], dtype=np.float32), (count, 1))
    scores = np.linspace(0.9, 0.9 - 0.1 * (count - 1), count, dtype=np.float32)
    labels = np.arange(count) % 4
    return Prediction(boxes, scores, labels, labels + 1, [NAMES[label] for label in labels])


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (made(0), "Prediction(0 objects)"),
        (made(1), "Prediction(1 object: circle 0.90)"),
        (made(3), "Prediction(3 objects: circle 0.90, square 0.80, triangle 0.70)"),
        (made(6), "Prediction(6 objects: circle 0.90, square 0.80, triangle 0.70, cross 0.60, circle 0.50, …)"),
        (ClassPrediction(np.array([0.75, 0.25]), np.array([1, 0]), ["b", "a"]), "ClassPrediction(b 0.75, a 0.25)"),
    ],
)
def test_a_prediction_shows_what_was_found(found: Prediction | ClassPrediction, shown: str) -> None:
    assert repr(found) == shown


def test_a_prediction_becomes_coco_results(predictor: Predictor, image: np.ndarray) -> None:
    row = {"category_id": 1, "category_name": "circle", "bbox": [5.13, 6.0, 10.0, 20.0], "score": 0.9}
    assert made(1).to_coco(7) == [{"image_id": 7, **row}]
    assert made(1).to_coco("x7", "a/b.jpg") == [{"image_id": "x7", "file_name": "a/b.jpg", **row}]
    (found,) = predictor.predict([image])
    assert detection_results.to_results(found, 3, Path("a/b.jpg")) == found.to_coco(3, "a/b.jpg")


def test_a_prediction_draws_itself(file: Path, image: np.ndarray) -> None:
    plain = np.asarray(made(0).draw(image))
    for given in (file, Image.fromarray(image), image, torch.from_numpy(image).permute(2, 0, 1)):
        drawn = np.asarray(made(2).draw(given))
        assert drawn.shape == plain.shape
        assert (drawn != plain).any(axis=2).sum() > 50
        assert (np.asarray(made(2).draw(given, score_threshold=0.95)) == plain).all()
    deep = np.zeros((30, 40, 5), dtype=np.uint16)  # what a model of five channels reads
    assert made(1).draw(deep).size == made(1).draw(deep[:, :, :1]).size == (480, 360)
    with pytest.raises(ValueError, match="percentage"):
        made(1).draw(image, 30)
    classes = ClassPrediction(np.array([0.75, 0.25]), np.array([1, 0]), ["b", "a"])
    assert (np.asarray(classes.draw(image)) != np.asarray(classes.draw(image, 0.5))).any()


def test_the_images_of_a_generator_are_taken_batch_by_batch(predictor: Predictor, image: np.ndarray) -> None:
    def shifted() -> Iterator[np.ndarray]:
        for number in range(12):
            yield np.roll(image, 5 * number, axis=1)

    alive: list[int] = []
    given: list[weakref.ref[np.ndarray]] = []

    def watched() -> Iterator[np.ndarray]:
        for one in shifted():
            given.append(weakref.ref(one))
            alive.append(sum(ref() is not None for ref in given))
            yield one

    streamed, listed = predictor.predict(watched(), batch_size=2), predictor.predict(list(shifted()), batch_size=2)
    assert len(streamed) == 12
    assert max(alive) <= 6  # two batches, and those that the generators themselves hold
    assert [found.scores.tolist() for found in streamed] == [found.scores.tolist() for found in listed]
    with pytest.raises(TypeError, match="image 2 is None"):
        predictor.predict(iter([image, image, None]), batch_size=2)
