"""Tiles: where they lie, which boxes of each stay, merging; prediction, training and huge files by tiles."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from torchvision.ops import batched_nms

import detector
from detector.__main__ import main
from detector.analysis.small_objects import what_pays
from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import load_config
from detector.config.schema import TilesConfig
from detector.data import headers, large
from detector.data.detection import CocoDataset
from detector.data.formats.annotations import from_rows
from detector.data.formats.building import Source
from detector.data.formats.reading import read_rows
from detector.data.images import read_image
from detector.data.tiles import TiledDataset, list_tiles
from detector.data.transforms.boxes import Stored
from detector.errors import ConfigError, DataError
from detector.inference.images import ImagePredictor
from detector.inference.world import write_geojson
from detector.models import build_model
from detector.ops.tiles import Grid, merge_boxes
from detector.structures import IGNORE_REGION, Category
from detector.tasks import get_task


def test_the_last_tiles_end_where_the_image_does():
    # Steps of 400 · (1 - 0.25) = 300.
    assert Grid(1000, 900, 400, 0.25).tops.tolist() == [0, 300, 600]
    assert Grid(1000, 900, 400, 0.25).lefts.tolist() == [0, 300, 500]
    assert list(Grid(300, 900, 400, 0.25)) == [(0, left, 300, 400) for left in (0, 300, 500)]
    assert list(Grid(400, 20, 400, 0.25)) == [(0, 0, 400, 20)]  # smaller than a tile: one


@pytest.mark.parametrize(
    ("tile", "box", "is_cut"),
    [
        # Tiles at 0, 300, 600 of 1,000 pixels; touching is up to 1.6 pixels from a border.
        ((0, 0), [330, 10, 400, 40], True),  # on the border of the first tile; the second begins before it
        ((0, 1), [330, 10, 420, 40], False),  # and sees it whole
        ((0, 0), [290, 10, 400, 40], False),  # longer than the overlap: whole nowhere, so it stays in both
        ((0, 1), [300, 10, 420, 40], False),
        ((0, 0), [0, 10, 30, 40], False),  # on the border of the image
        ((1, 1), [300, 310, 380, 340], True),  # on the left border; the tile before ends behind it
        ((0, 0), [340, 340, 400, 400], True),  # in the corner of four tiles: only the last one has it whole
        ((0, 1), [340, 340, 420, 400], True),
        ((1, 0), [340, 340, 400, 420], True),
        ((1, 1), [340, 340, 420, 420], False),
    ],
)
def test_a_box_stays_where_no_other_tile_shows_more_of_it(tile, box, is_cut):
    grid = Grid(1000, 1000, 400, 0.25)
    assert grid.is_cut(tile[0] * 3 + tile[1], np.array([box], dtype=float)).tolist() == [is_cut]


@pytest.mark.parametrize("size", [(8, 40), (1, 900)])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_merging_by_iou_is_class_wise_nms(size, threshold):
    rng = np.random.default_rng(0)
    low = rng.uniform(-50, 2000, (3000, 2))
    boxes = np.concatenate([low, low + rng.uniform(*size, (3000, 2))], axis=1)
    scores, labels = rng.random(3000).round(2), rng.integers(0, 3, 3000)  # many equal scores
    order = np.argsort(-scores, kind="stable")  # torch's own order of equal scores is not defined
    ranks = torch.linspace(1, 0, 3000, dtype=torch.float64)
    given = torch.from_numpy(boxes[order]), ranks, torch.from_numpy(labels[order])
    expected = order[batched_nms(*given, threshold).numpy()]
    assert merge_boxes(boxes, scores, labels, threshold).tolist() == expected.tolist()


def test_merging_by_ios_removes_what_lies_in_a_better_box():
    boxes = np.array([[0, 0, 100, 100], [10, 10, 20, 20], [10, 10, 20, 20], [90, 0, 130, 100]], dtype=float)
    scores, labels = np.array([0.9, 0.8, 0.8, 0.7]), np.array([0, 0, 1, 0])
    # The second lies in the first; the third is of another class; of the fourth, 10 of 40 columns are in the first.
    assert merge_boxes(boxes, scores, labels, 0.5, "ios").tolist() == [0, 2, 3]
    assert merge_boxes(boxes, scores, labels, 0.5, "iou").tolist() == [0, 1, 2, 3]  # a nested box stays
    assert merge_boxes(boxes, scores, labels, 0.2, "ios").tolist() == [0, 2]


def test_equal_boxes_leave_the_first():
    boxes = np.tile([[5.0, 5, 15, 15]], (2000, 1))  # more than are compared at a time
    assert merge_boxes(boxes, np.full(2000, 0.5), np.zeros(2000, dtype=int), 0.5).tolist() == [0]
    assert merge_boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int), 0.5).tolist() == []


# --- prediction -------------------------------------------------------------------------------------------------------


CATEGORIES = [Category(number, name) for number, name in enumerate("rgb", start=1)]


class Oracle(ImagePredictor):
    """Finds each patch of one colour: its label is the index of the channel. As a segmenter, the channel of a pixel."""

    categories = CATEGORIES
    sampler = read = check_score = digest = predict_samples = None  # type: ignore[assignment]

    device = "cpu"

    def __init__(self, task: str = "detection") -> None:
        self.config = load_config({"detection": "quickstart", "segmentation": "segment_quickstart"}[task] + ".yaml")
        self.seen: list[tuple[int, ...]] = []

    def sample(self, image: np.ndarray, image_id: int = 0) -> np.ndarray:
        return image

    def outputs(self, samples: list[np.ndarray], score_threshold: float | None = None) -> list[Any]:
        self.seen.append((len(samples), *samples[0].shape))
        return [getattr(self, f"_{self.config.task}")(sample) for sample in samples]

    def _detection(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        found = [(0.0, 0, 0, 0, 0, -1)]  # padding
        for label in range(3):
            stats = cv2.connectedComponentsWithStats((image[:, :, label] == 255).astype(np.uint8))[2][1:]
            found += [(0.9, x, y, x + w, y + h, label) for x, y, w, h, _ in stats.tolist()]
        columns = np.array(found, dtype=np.float32)
        return columns[:, 1:5], columns[:, 0], columns[:, 5].astype(np.int64)

    def _segmentation(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        size = np.array(image.shape[:2])
        return (image.transpose(2, 0, 1) > 200).astype(np.float32), size.astype(np.float32), size


Oracle.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def draw(height: int, width: int, patches: dict[tuple[int, int, int, int], int]) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for (left, top, right, bottom), channel in patches.items():
        image[top:bottom, left:right, channel] = 255
    return image


PATCHES = {
    (330, 10, 410, 40): 0,  # on a border
    (340, 340, 420, 420): 1,  # over four tiles
    (345, 345, 365, 365): 0,  # nested, of another class
    (20, 20, 40, 40): 2,
    (590, 650, 640, 700): 2,
    (0, 960, 1000, 1000): 1,  # longer than a tile
}


def boxes_of(prediction: Any) -> set[tuple[int, ...]]:
    return {
        (*map(round, box), int(label))
        for box, label in zip(prediction.boxes.tolist(), prediction.labels.tolist(), strict=True)
    }


def test_each_object_is_found_once_and_the_whole_image_has_those_that_no_tile_has():
    oracle = Oracle()
    tiles = {"size": 400, "overlap": 0.25}
    found, empty, small = oracle.predict(
        [draw(1000, 1000, PATCHES), draw(500, 900, {}), draw(90, 80, {(10, 20, 80, 90): 2})], batch_size=4, tiles=tiles
    )
    whole = {(*box, label) for box, label in PATCHES.items()}
    long = {box for box in whole if box[1] == 960}
    parts = {(left, 960, left + 400, 1000, 1) for left in (0, 300, 600)}
    assert boxes_of(found) == whole - long | parts and len(found.boxes) == len(whole) + 2
    assert len(empty.boxes) == 0 and boxes_of(small) == {(10, 20, 80, 90, 2)}
    assert oracle.seen[:3] == [(4, 400, 400, 3), (4, 400, 400, 3), (1, 400, 400, 3)] and oracle.seen[-1][0] == 1
    found = oracle.predict([draw(1000, 1000, PATCHES)], tiles=tiles | {"full_image": True, "merge": "ios"})[0]
    assert boxes_of(found) == whole and len(found.boxes) == len(whole)


def test_a_mask_of_tiles_is_that_of_the_image():
    rng = np.random.default_rng(0)
    for height, width in ((250, 330), (60, 40), (100, 240)):
        truth = cv2.resize(rng.integers(0, 3, (6, 6)).astype(np.uint8), (width, height), interpolation=0)
        image = (np.eye(3, dtype=np.uint8)[truth]) * 255
        found = Oracle("segmentation").predict([image], tiles={"size": 100, "overlap": 0.3})[0]
        assert (found.mask == truth).all()


def test_wrong_tiles_are_one_clear_line():
    oracle, image = Oracle(), draw(10, 10, {})
    for tiles, said in (
        ({"sides": 3}, "'sides' is not a key; use"),
        (0, "size: 0 is not a whole number of pixels"),
        (10**6, "size: 1000000 is not a whole number of pixels from 1 to 16,384"),
        ({"size": 64, "overlap": 1}, "overlap: 1 is not a number from 0 to 0.9"),
        ({"size": 64, "merge": "nms"}, "merge: 'nms' is not"),
    ):
        with pytest.raises(ConfigError, match=said):
            oracle.predict([image], tiles=tiles)
    oracle.config = SimpleNamespace(**vars(oracle.config) | {"task": "classification"})
    with pytest.raises(ConfigError, match="is of classification, which sees images whole"):
        oracle.predict([image], tiles=64)


SMALL = ["model.backbone.name=resnet10", "model.fpn={levels: [3, 4, 5], channels: 16}", "data.workers=0"]


SHAPES = [Category(number, name) for number, name in enumerate(("circle", "square", "triangle", "cross"), start=1)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    given = [*SMALL, "data.resize={short: [64], long: 64}", "model.predict={score_threshold: 0.01, max_detections: 20}"]
    config = load_config("quickstart.yaml", given)
    path = tmp_path_factory.mktemp("tiles") / "detector.pt"
    save_checkpoint(path, config, SHAPES, {"model": build_model(config.model, 4).state_dict()})
    return path


def test_infer_and_evaluate_predict_as_python_does(checkpoint: Path, shapes: Path, tmp_path: Path):
    images = sorted((shapes / "images").glob("val_*.jpg"))[:3]
    predictor = detector.load(checkpoint, device="cpu")
    expected = predictor.predict(images, tiles={"size": 48, "overlap": 0.2}, batch_size=4)
    folder = tmp_path / "some"
    folder.mkdir()
    for image in images:
        (folder / image.name).symlink_to(image)
    given = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    tiles = ["data.tiles.size=48", "data.tiles.overlap=0.2"]
    out = tmp_path / "found"
    assert main(["infer", *given, "--input", str(folder), "--output", str(out), "--batch-size", "4", *tiles]) == 0
    rows = json.loads((out / "predictions.json").read_text())
    assert rows == [
        row
        for number, (image, found) in enumerate(zip(images, expected, strict=True), start=1)
        for row in found.to_coco(number, image.name)
    ]

    content = json.loads((shapes / "annotations" / "val.json").read_text())
    content["images"] = [row for row in content["images"] if row["file_name"] in {image.name for image in images}]
    known = {row["id"] for row in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in known]
    (tmp_path / "val.json").write_text(json.dumps(content))
    metrics = detector.evaluate(checkpoint, tiles, tmp_path / "val.json", shapes / "images", "cpu")
    assert metrics["max_detections"] == max(len(found.boxes) for found in expected) > 20  # 20 of each tile


# --- training ---------------------------------------------------------------------------------------------------------


def write_coco(folder: Path) -> None:
    """Two images: 300×100 with three objects and a crowd, 80×60 with none."""
    objects = [([10, 10, 20, 20], 0), ([75, 40, 20, 20], 0), ([98, 70, 20, 20], 0), ([250, 0, 50, 50], 1)]
    cv2.imwrite(str(folder / "a.png"), np.arange(300, dtype=np.uint8)[None, :, None].repeat(100, 0).repeat(3, 2))
    cv2.imwrite(str(folder / "b.png"), np.full((60, 80, 3), 7, np.uint8))
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 300, "height": 100},
            {"id": 2, "file_name": "b.png", "width": 80, "height": 60},
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            for number, (box, crowd) in enumerate(objects, start=1)
        ],
    }
    (folder / "coco.json").write_text(json.dumps(content))


def test_tiles_to_train_on_are_listed_without_being_written(tmp_path: Path):
    write_coco(tmp_path)
    annotations = from_rows(read_rows(Source(tmp_path / "coco.json"), is_strict=True))
    whole = CocoDataset(annotations, tmp_path, Stored(load_config("quickstart.yaml").data.resize), "error")
    tiles = TilesConfig(size=100, overlap=0.2, min_visible=[0.3, 0.9], negatives=0.5)
    data = TiledDataset.of(whole, tiles, seed=0)
    # Image a has tiles at 0, 80, 160 and 200; b one. The second object (75 to 95) is whole in the first tile, three
    # quarters in the second: ignored. The third (98 to 118) shows a tenth in the first: background.
    assert data.listed.image.tolist() == [0, 0, 0, 0, 1] and data.listed.tile.tolist() == [0, 1, 2, 3, 0]
    assert data.has_targets.tolist()[:2] == [True, True] and len(data) == 2 + 2  # half of three, rounded up
    first, second = data[(0, 0)], data[(0, 1)]
    assert first.boxes.tolist() == [[10, 10, 30, 30], [75, 40, 95, 60]] and first.labels.tolist() == [0, 0]
    assert second.boxes.tolist() == [[0, 40, 15, 60], [18, 70, 38, 90]]
    assert second.labels.tolist() == [IGNORE_REGION, 0]
    assert second.image[0, 5].tolist() == [pixel % 256 for pixel in range(80, 180)]
    # The empty ones take turns: in three epochs, each of the three comes twice.
    shown = [data.shown(epoch)[2:].tolist() for epoch in range(3)]
    assert sorted(index for turn in shown for index in turn) == [2, 2, 3, 3, 4, 4]
    place = next((epoch, 2 + turn.index(4)) for epoch, turn in enumerate(shown) if 4 in turn)
    small = data[place]  # of 80×60 pixels, gray beyond
    assert small.image.shape == (3, 100, 100) and small.image[0, 59, 79] == 7 and small.image[0, 60, 80] == 114
    crowd = next((epoch, 2 + turn.index(3)) for epoch, turn in enumerate(shown) if 3 in turn)
    assert data[crowd].labels.tolist() == [IGNORE_REGION] and data[crowd].boxes.tolist() == [[50, 0, 100, 50]]
    assert data.select([1, 0])[(0, 0)].boxes.tolist() == second.boxes.tolist()
    everything = list_tiles(whole.annotations, whole.checked, TilesConfig(size=100, min_visible=[0, 0], negatives=0), 0)
    assert everything.annotations.first.diff().tolist()[:2] == [3, 2] and everything.count == 2
    assert not list(tmp_path.glob("*/")) and sorted(path.name for path in tmp_path.iterdir()) == [
        "a.png",
        "b.png",
        "coco.json",
    ]


def test_a_segmenters_tiles_are_windows_of_image_and_mask(tmp_path: Path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.arange(6000, dtype=np.uint8).reshape(60, 100) % 3
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), mask)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), mask[:, :, None].repeat(3, axis=2) * 100)
    keys = {"train.images": "images", "train.annotations": "masks"}
    given = [f"data.{key}={tmp_path / folder}" for key, folder in keys.items()]
    more = ["data.val=null", "data.tiles={size: 64, overlap: 0.25}", "data.resize={fixed: [64, 64]}"]
    still = "data.augment={horizontal_flip: 0, photometric: 0, scale_jitter: null}"
    config = load_config("segment_quickstart.yaml", [*given, *more, still, "data.classes=[x, y, z]"])
    data = get_task(config).open_split(config, "train")
    assert len(data) == 2 and data.is_wide is None and "2 tiles of 64×64" in data.summary()
    for sample in (data[(0, 1)], data.select([1])[(0, 0)]):  # columns 36 to 99, and gray rows from 60 on
        assert sample.mask[:60].tolist() == mask[:, 36:].tolist() and (sample.mask[60:] == 255).all()
        assert sample.image[0, :60].tolist() == (mask[:, 36:] * 100).tolist() and (sample.image[:, 60:] == 114).all()


def test_tiles_pay_where_images_are_shrunk_and_p2_where_objects_are_small_in_the_file():
    twelve, forty = np.full(9, 12.0), np.full(9, 40.0)
    assert what_pays(twelve / 12, twelve).endswith(
        "tiles (data.tiles.size=512, and a data.resize that does not shrink"
        " them) and level P2 (model.fpn.levels from 2) would pay"
    )
    assert "P2" not in what_pays(forty / 4, forty) and "tiles" in what_pays(forty / 4, forty)
    assert "tiles" not in what_pays(twelve, twelve) and "P2" in what_pays(twelve, twelve)
    assert "would pay" not in what_pays(twelve, twelve, has_p2=True)
    assert what_pays(forty, forty) == ""


# --- large files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".jp2"])
def test_windows_of_a_large_file_are_those_of_the_image(suffix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pyvips = pytest.importorskip("pyvips", reason="the extra large is not installed")
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8), (700, 500))
    options = {"tile": True, "compression": "deflate", "bigtiff": True} if suffix == ".tif" else {}
    path = tmp_path / f"large{suffix}"
    if suffix == ".jp2":
        pytest.importorskip("rasterio", reason="the extra jpeg2000 is not installed")
        Image.fromarray(image).save(path, irreversible=False)
    else:
        pyvips.Image.new_from_memory(image.tobytes(), 700, 500, 3, "uchar").write_to_file(str(path), **options)
    expected = read_image(path)
    assert isinstance(large.open_image(path), np.ndarray)
    monkeypatch.setattr(large, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(headers, "MAX_PIXELS", 150_000)
    with pytest.raises(DataError, match="more than the"):
        read_image(path)
    file = large.open_image(path)
    assert file.shape == (500, 700, 3)
    windows = [*Grid(500, 700, 200, 0.3), (0, 0, 200, 200)]  # then back to the top
    for window in windows:
        top, left, height, width = window
        part = expected[top : top + height, left : left + width]
        for pixels in (file.read(window), file.read_anywhere(window)):
            assert np.abs(pixels.astype(int) - part).max() <= (3 if suffix == ".jpg" else 0)  # decoders of JPEG round
    small = cv2.resize(expected, (140, 100), interpolation=cv2.INTER_AREA)
    assert np.abs(file.shrunk(140).astype(int) - small).mean() < 2
    gray = large.open_image(path, channels=1)
    expected_gray = cv2.cvtColor(expected, cv2.COLOR_RGB2GRAY)[:200, :200, None]
    assert np.abs(gray.read((0, 0, 200, 200)).astype(int) - expected_gray).max() <= (3 if suffix == ".jpg" else 0)
    found = Oracle().predict([path], tiles=200)[0]
    assert len(found.boxes) == len(Oracle().predict([expected], tiles=200)[0].boxes)
    path.write_bytes(path.read_bytes()[:-3000])
    if suffix in (".png", ".jp2"):
        with pytest.raises(DataError, match=f"large{suffix}: cannot be decoded"):
            Oracle().predict([path], tiles=200)


def test_large_files_of_16_bits_keep_them_and_cmyk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pyvips", reason="the extra large is not installed")
    image = np.arange(200 * 300 * 3, dtype=np.uint16).reshape(200, 300, 3)
    cv2.imwrite(str(tmp_path / "deep.png"), image[:, :, ::-1])
    Image.new("CMYK", (300, 200)).save(tmp_path / "print.tif")
    monkeypatch.setattr(large, "MAX_PIXELS", 10_000)
    deep = large.open_image(tmp_path / "deep.png")
    assert np.array_equal(deep.read((0, 0, 200, 300)), image)
    shrunk = deep.shrunk(30)
    assert (shrunk.shape, shrunk.dtype) == ((20, 30, 3), np.uint16)
    with pytest.raises(DataError, match=r"print\.tif: has CMYK colours"):
        _ = large.open_image(tmp_path / "print.tif").shape


def test_a_damaged_large_file_is_an_error_among_others(
    checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("pyvips", reason="the extra large is not installed")
    (tmp_path / "in").mkdir()
    content = next((shapes / "images").glob("train*")).read_bytes()
    (tmp_path / "in" / "a.jpg").write_bytes(content)
    cv2.imwrite(str(tmp_path / "in" / "b.png"), cv2.imread(str(tmp_path / "in" / "a.jpg")))
    damaged = tmp_path / "in" / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:-5000])
    monkeypatch.setattr(large, "MAX_PIXELS", 10_000)
    given = ["--checkpoint", str(checkpoint), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(["infer", *given, "data.tiles.size=96"]) == 1
    [line] = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert "b.png: cannot be decoded" in json.loads(line)["error"]
    assert (tmp_path / "out" / "images" / "a.jpg").exists()


def test_what_is_found_in_a_geotiff_has_world_coordinates(tmp_path: Path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[33550], info[33922] = (0.5, 0.25, 0.0), (0.0, 0.0, 0.0, 1000.0, 2000.0, 0.0)  # pixels of 0.5 × 0.25 metres
    info[34735] = (1, 1, 0, 2, 1025, 0, 1, 1, 3072, 0, 1, 32612)
    Image.new("RGB", (80, 60)).save(tmp_path / "a.tif", tiffinfo=info)
    Image.new("RGB", (80, 60)).save(tmp_path / "b.tif")
    rows = [
        {"file": str(tmp_path / name), "results": [{"bbox": [10, 20, 30, 8], "score": 0.5, "category_name": "tree"}]}
        for name in ("a.tif", "b.tif")
    ]
    assert len(write_geojson(lambda: iter(rows), tmp_path / "found.geojson")) == 1
    found = json.loads((tmp_path / "found.geojson").read_text())
    assert found["crs"]["properties"]["name"].endswith("EPSG::32612") and len(found["features"]) == 1
    # Column 10 is 5 metres right of the corner, row 20 is 5 metres below it.
    corners = [[1005, 1995], [1005, 1993], [1020, 1993], [1020, 1995], [1005, 1995]]
    assert found["features"][0]["geometry"] == {"type": "Polygon", "coordinates": [corners]}
    assert found["features"][0]["properties"] == {"score": 0.5, "category_name": "tree", "epsg": 32612}
    assert write_geojson(lambda: iter(rows[1:]), tmp_path / "none.geojson") == []
