"""An exported file, and the runtime that opens it, predict what the checkpoint does."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch
from networks import MAX_IOU
from onnx import helper

import detector
from detector.__main__ import main
from detector.checkpoints.checkpoint import save_checkpoint
from detector.checkpoints.opening import open_model
from detector.config.loader import load_config
from detector.data.loading.collate import collate
from detector.errors import DataError, WeightsError, counted
from detector.export import exporting, reduced
from detector.export.graph import EXAMPLE_SIDES
from detector.export.onnx import check
from detector.inference.exported import ExportedPredictor
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.ops.anchors import level_sizes
from detector.reports import Scored
from detector.structures import Category
from detector.tasks import classification_results, detection_results, get_results
from detector.tasks.classification_results import ClassPrediction
from detector.tasks.detection_results import Prediction

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = [Category(1, "circle"), Category(2, "square"), Category(3, "triangle"), Category(4, "émeu")]
TINY = [
    "model.backbone.name=resnet10",
    "model.fpn={levels: [5], channels: 8}",  # each level takes seconds to export
    "model.anchors.base_size=1",
    "model.head={num_convs: 0}",
    "data.resize={short: [64], long: 128}",
]


def save_tiny(path: Path, name: str, overrides: list[str]) -> Path:
    """A checkpoint of random weights whose scores spread, so that there are detections."""
    config = load_config(name, overrides)
    torch.manual_seed(0)
    model = build_model(config.model, len(CLASSES)).eval()
    if config.task == "detection":
        with torch.no_grad():
            noise = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
            output = model(noise, torch.tensor([[64, 96]]))
            model.head.cls_output.weight *= 1 / output.cls_logits.std()
            model.head.box_output.weight *= 0.3 / output.box_channels.std()
            model.head.cls_output.bias.fill_(-2)
    save_checkpoint(path, config, CLASSES, {"model": model.state_dict(), "epoch": 1, "metrics": {}})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return save_tiny(folder / "best.pt", MAX_IOU, TINY)


@pytest.fixture(scope="module")
def file(folder: Path, checkpoint: Path) -> Path:
    """The command compares predictions by itself, on noise in two sizes, one by one and in batches."""
    path = folder / "model.onnx"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(path)]) == 0
    return path


def noise(*sides: tuple[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]


def assert_same(
    predictor: Predictor, exported: ExportedPredictor, images: list, batch_size: int = 8, score: float | None = None
) -> None:
    own, config = predictor.predict(images, score), predictor.config.model
    settings = (config if score is None else predictor.task.with_threshold(config, score)).predict
    every = exporting.candidates(predictor, images)
    difference = detection_results.compare(
        own, exported.predict(images, score, batch_size), 1e-4, 1e-2, settings, every
    )
    assert difference.is_same, difference.text
    assert sum(len(one.scores) for one in own) > 10


def test_the_file_describes_itself(file: Path) -> None:
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "sizes": ["batch", 2],
        "sizes_original": ["batch", 2],
        "score_threshold": [],
        "nms_threshold": [],
        "max_detections": [],
        "boxes": ["batch", "detections", 4],
        "scores": ["batch", "detections"],
        "labels": ["batch", "detections"],
    }
    written = {entry.key: entry.value for entry in model.metadata_props}
    assert written["task"] == "detection"
    assert json.loads(written["classes"])[3] == {"id": 4, "name": "émeu"}
    assert json.loads(written["size"])["short"] == [64]
    assert json.loads(written["predict"])["max_detections"] == 100
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(AssertionError, match="images: its batch was fixed to 2"):
        check(model, get_results("detection"))


def test_no_level_of_the_traced_example_has_a_side_that_is_taken_for_a_constant() -> None:
    for rows, columns in level_sizes(*EXAMPLE_SIDES, range(2, 8)):
        assert 1 < rows < columns


def test_thresholds_and_counts_are_inputs(checkpoint: Path, file: Path) -> None:
    images = noise((70, 100), (100, 70), (70, 100), (64, 64))
    for settings in (["max_detections=7"], ["nms_threshold=0.9", "score_threshold=0.2", "max_detections=5000"]):
        overrides = [f"model.predict.{setting}" for setting in settings]
        predictor = Predictor.from_checkpoint(checkpoint, "cpu", overrides)
        exported = ExportedPredictor(file, overrides)
        assert_same(predictor, exported, images, batch_size=3)
        assert_same(predictor, exported, images, score=0.15)
    assert detector.load(file).predict(images)[0].category_ids[0] in (1, 2, 3, 4)


def test_inputs_and_detections_are_those_of_the_package(checkpoint: Path, file: Path, shared: Path) -> None:
    data = shared / "data" / "coco"
    names = [image["file_name"] for image in json.loads((data / "annotations/val.json").read_bytes())["images"]]
    files = [data / "images" / name for name in names][::8]
    predictor, exported = Predictor.from_checkpoint(checkpoint, "cpu"), ExportedPredictor(file)
    for path in files:
        image = detector.data.images.read_image(path)
        images, sizes, sizes_original = exported.batch([exported.sample(image)])
        batch = collate([predictor.sample(image)])
        assert np.array_equal(images, batch.images)
        assert np.array_equal(sizes, batch.sizes)
        assert np.array_equal(sizes_original, batch.sizes_original)
    assert_same(predictor, exported, files)


def test_the_runtime_predicts_without_torch(file: Path, tmp_path: Path) -> None:
    """The wheel's package, where importing what only the package needs fails."""
    spec = importlib.util.spec_from_file_location("build_package", REPOSITORY / "runtime" / "build_package.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    build.write_package(tmp_path, "1.2")
    for text in (path.read_text(encoding="utf-8") for path in (tmp_path / build.NAME).rglob("*.py")):
        assert "import detector\n" not in text
        assert "from detector." not in text
    images = noise((70, 100), (100, 70))
    for index, image in enumerate(images):
        detector.data.inputs.Image.fromarray(image).save(tmp_path / f"{index}.png")
    code = """
import sys
for name in ("torch", "torchvision", "pydantic", "yaml", "matplotlib", "jinja2", "pycocotools", "detector"):
    sys.modules[name] = None  # so that importing it fails
import detector_runtime
from detector_runtime.__main__ import main
found = detector_runtime.load(sys.argv[1]).predict(["0.png", "1.png"])
print([one.to_coco(number) for number, one in enumerate(found)])
infer = ["infer", "--checkpoint", sys.argv[1], "--input"]
formats = ["--crops", "--counts", "--format", "coco,voc,csv,cvat,labelstudio"]
sys.exit(main([*infer, ".", "--output", "found", *formats]) or main([*infer, "clip.avi", "--output", "film"]))
"""
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (100, 70))
    for image in noise(*[(70, 100)] * 10):
        writer.write(image)
    writer.release()
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = ExportedPredictor(file).predict(images)
    assert done.stdout.splitlines()[0] == str([one.to_coco(number) for number, one in enumerate(expected)])
    written = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert [row["score"] for row in written] == [row["score"] for one in expected for row in one.to_coco(0)]
    assert len(list((tmp_path / "found" / "images").iterdir())) == 2
    assert (tmp_path / "found" / "counts.csv").is_file()
    lines = [json.loads(line) for line in (tmp_path / "film" / "predictions.jsonl").read_text().splitlines()]
    pairs = list(ExportedPredictor(file).stream(detector.Video(tmp_path / "clip.avi"), wait=None))
    assert [line["frame"] for line in lines] == [frame.number for frame, _ in pairs] == list(range(10))
    expected = [[row["score"] for row in found.to_coco(0)] for _, found in pairs]
    assert [[row["score"] for row in line["results"]] for line in lines] == expected
    assert any(expected)
    assert (tmp_path / "film" / "video.webm").is_file()


def test_infer_and_evaluate_take_the_file(
    checkpoint: Path, file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads((shapes / "annotations" / "val.json").read_bytes())
    truth["categories"] = [category._asdict() for category in CLASSES]
    (tmp_path / "val.json").write_text(json.dumps(truth), encoding="utf-8")
    given = {"annotations": tmp_path / "val.json", "images": shapes / "images", "device": "cpu"}
    changed = ["data.workers=0", "model.predict.score_threshold=0.1"]
    own, other = (detector.evaluate(name, changed, **given) for name in (checkpoint, file))
    assert own["AR100"] > 0
    assert other["AP"] == pytest.approx(own["AP"], abs=1e-4)
    scores = []
    for name in (checkpoint, file):
        output = tmp_path / name.suffix
        arguments = ["--input", str(shapes / "images" / "val_*"), "--output", str(output), "--no-images"]
        assert main(["infer", "--checkpoint", str(name), *arguments, "--workers", "1", "--score", "0.2"]) == 0
        scores.append([row["score"] for row in json.loads((output / "predictions.json").read_text())])
    assert np.allclose(*scores, atol=1e-4)
    arguments[3] = str(tmp_path / "more")
    assert main(["infer", "--checkpoint", str(file), *arguments, "model.predict.topk=9"]) == 2
    assert "model.predict.topk" in capsys.readouterr().err


def test_a_classifier(folder: Path) -> None:
    source = save_tiny(folder / "classes.pt", "classify_quickstart.yaml", [*TINY[:2], "data.crop.size=32"])
    assert main(["export", "--checkpoint", str(source), "--output", str(folder / "classes.onnx")]) == 0
    images = noise((40, 50), (64, 33))
    own, other = detector.load(source, "cpu").predict(images), detector.load(folder / "classes.onnx").predict(images)
    for one, two in zip(own, other, strict=True):
        assert one.names == two.names
        assert np.allclose(one.scores, two.scores, atol=1e-6)


def test_openvino_reads_the_file(file: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    exported, compiled = ExportedPredictor(file), openvino.Core().compile_model(str(file), "CPU")
    batch = exported.batch([exported.sample(image) for image in noise((70, 100))])
    found = compiled({name: exported.feed(*batch)[name] for name in ("images", "sizes", "sizes_original")})
    for name, own in zip(exported.results.OUTPUTS, exported.run(*batch), strict=True):
        assert np.allclose(found[name], own, rtol=0, atol=1e-2)


# --- INT8 -------------------------------------------------------------------------------------------------------------


def test_int8_keeps_the_outputs_convolutions_in_float(file: Path) -> None:
    exported = ExportedPredictor(file)
    feeds = [exported.feed(*exported.batch([exported.sample(image)])) for image in noise(*[(64, 96)] * 3)]
    model = reduced.to_int8(onnx.load(file), feeds)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    weights = [makers.get(node.input[1]) for node in model.graph.node if node.op_type == "Conv"]
    assert weights.count(None) == 2  # class and box output
    assert weights.count("DequantizeLinear") == len(weights) - 2 > 10


def test_a_check_that_compares_no_detections_warns(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "x.onnx")]
    assert main(["export", *given, "model.predict.score_threshold=0.999"]) == 0
    said = "warning: no detections were compared, as the checkpoint finds nothing on 3 images of noise; give --images"
    assert said in capsys.readouterr().err


def test_too_few_images_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector.data.inputs.Image.fromarray(noise((9, 9))[0]).save(tmp_path / "a.png")
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "x.onnx"), "--format", "int8"]
    assert main(["export", *arguments, "--images", str(tmp_path)]) == 2
    assert "at least 20 images" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_merged_predictions_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "x.onnx")]
    assert main(["export", *arguments, "model.predict.flip=true"]) == 2
    assert "add model.predict.flip=false" in capsys.readouterr().err


def test_thresholds_by_class_are_kept(checkpoint: Path, file: Path, tmp_path: Path) -> None:
    import onnx

    model, images = onnx.load(file), noise((70, 100))
    entry = next(entry for entry in model.metadata_props if entry.key == "config")
    described = json.loads(entry.value)
    described["model"]["predict"]["score_thresholds"] = {"émeu": 1.0}
    entry.value = json.dumps(described)
    onnx.save(model, tmp_path / "own.onnx")
    exported = ExportedPredictor(tmp_path / "own.onnx")
    everything = ExportedPredictor(file).predict(images)[0].names
    assert "émeu" in everything
    assert exported.predict(images)[0].names == [name for name in everything if name != "émeu"]
    assert exported.predict(images, score_threshold=0.0)[0].names.count("émeu") > 0  # takes their place


# --- what is not the same ---------------------------------------------------------------------------------------------


def test_a_larger_drop_leaves_no_file(
    checkpoint: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = {"checkpoint": 0.5, "onnx": 0.46}

    def evaluate(opened: object, name: str, config: object) -> object:
        ap = aps["onnx" if name.endswith("(onnx)") else "checkpoint"]
        return type("Evaluation", (), {"scored": Scored(name, np.zeros((0, 7)), {"AP": ap})})

    monkeypatch.setattr(exporting, "evaluate_opened", evaluate)
    monkeypatch.setattr(exporting, "export_graph", lambda *given: None)
    monkeypatch.setattr(exporting, "_onnx_bytes", lambda *given: file.read_bytes())
    output = tmp_path / "model.onnx"
    for allowed, is_written in ((0.03, False), (0.05, True)):
        request = exporting.Request("onnx", is_scored=True, max_drop=allowed)
        opened = open_model(checkpoint, device="cpu")
        if is_written:
            lines = exporting.export(opened, "x", output, request).lines
            assert lines[-1] == "AP 0.5000 of the checkpoint, 0.4600 of the exported model: -0.0400"
        else:
            with pytest.raises(exporting.ExportError, match="more than --max-ap-drop"):
                exporting.export(opened, "x", output, request)
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"] * is_written
    # Other weights than the file's: the comparison itself refuses.
    opened.model.head.cls_output.bias.data += 0.1
    with pytest.raises(exporting.ExportError, match="does not predict what the checkpoint does"):
        exporting.export(opened, "x", tmp_path / "y.onnx", exporting.Request("onnx"))


def found(*rows: tuple[float, float], label: int = 0) -> Prediction:
    """Boxes of 10 px, by their left sides and scores."""
    boxes = np.array([[left, 0, left + 10, 10] for left, _ in rows], dtype=np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in rows], dtype=np.float32)
    labels = np.full(len(rows), label)
    return Prediction(boxes, scores, labels, labels, ["a"] * len(rows))


OWN = ((0, 0.9), (50, 0.7), (90, 0.1))
SWAPPED = ((0, 0.9), (52, 0.7), (90, 0.1))  # IoU of 50 and 52: 8 / 12


@pytest.mark.parametrize(
    ("other", "more", "predict", "unmatched", "ties"),
    [
        (found(*OWN), (), {}, 0, 0),
        (found(*OWN[::-1]), (), {}, 0, 0),
        (found((0.005, 0.9), (50, 0.70005), (90, 0.1)), (), {}, 0, 0),  # within the limits
        (found(*OWN, label=1), (), {}, 6, 0),
        (found((0, 0.9), (90, 0.1)), (), {}, 1, 0),
        (found((0, 0.9), (50, 0.7), (50, 0.7), (90, 0.1)), (), {}, 1, 0),  # one to one
        (found((0, 0.9), (50, 0.6), (90, 0.1)), (), {}, 2, 0),
        (found(), (), {}, 3, 0),
        # Another box of the same score, which the model did not find: its own one is excused only if that is.
        (found(*SWAPPED), (), {}, 2, 0),
        (found(*SWAPPED), ((52, 0.7),), {}, 0, 2),  # the model found both, and NMS kept the other one
        (found(*SWAPPED), ((52, 0.7),), {"nms_threshold": 0.7}, 2, 0),  # which NMS does not compare
        (found((0, 0.9), (52, 0.6), (90, 0.1)), ((52, 0.6),), {}, 2, 0),  # of another score
        # NMS kept one more: 8 / 12 was taken for less than its threshold.
        (found(*OWN, (52, 0.6)), ((52, 0.6),), {"nms_threshold": 0.66}, 0, 1),
        (found(*OWN, (52, 0.6)), (), {"nms_threshold": 0.66}, 1, 0),
        (found(*OWN, (52, 0.6)), ((52, 0.6),), {"nms_threshold": 0.6}, 1, 0),
        # The last of a full list, or at the threshold.
        (found(*OWN[:2], (20, 0.1)), ((20, 0.1),), {"max_detections": 3}, 0, 2),
        (found(*OWN[:2], (20, 0.1)), ((20, 0.1),), {}, 2, 0),
        (found(*OWN[:2]), (), {"score_threshold": 0.09995}, 0, 1),
        (found(*OWN[:2]), (), {"score_thresholds": {"a": 0.09995}}, 0, 1),
    ],
)
def test_each_detection_has_its_counterpart_or_ties(
    other: Prediction, more: tuple, predict: dict, unmatched: int, ties: int
) -> None:
    settings = SimpleNamespace(
        **{"nms_threshold": 0.5, "score_threshold": 0.05, "score_thresholds": None, "max_detections": 100} | predict
    )
    difference = detection_results.compare(
        [found(*OWN)], [other], 1e-4, 1e-2, settings, lambda index: found(*OWN, *more)
    )
    assert f", {unmatched} unmatched, {counted(ties, 'tie')}," in difference.text
    assert difference.is_same == (unmatched == 0)


def test_each_class_has_its_score() -> None:
    def ranked(*labels: int) -> list[ClassPrediction]:
        return [ClassPrediction(np.array([0.5, 0.3, 0.1, 0.09995], np.float32)[: len(labels)], np.array(labels), [])]

    for labels, is_same in (
        ((0, 1, 2), True),
        ((0, 1, 3), True),  # 2 and 3 tie for the last place
        ((0, 2, 1), False),
        ((1, 0, 2), False),
        ((0, 3, 2), False),
    ):
        given = 1e-4, 1e-2, None, None
        assert classification_results.compare(ranked(0, 1, 2), ranked(*labels), *given).is_same == is_same


def test_many_ties_are_a_difference() -> None:
    """Of 100 detections, one tie of two is allowed, and not two."""
    settings = SimpleNamespace(nms_threshold=0.5, score_threshold=0.05, score_thresholds=None, max_detections=1000)
    lefts = 100 * np.arange(100)
    own = found(*[(left, 0.5) for left in lefts])
    for moved, is_same in ((1, True), (2, False)):
        other = found(*[(left + 2 * (left < 100 * moved), 0.5) for left in lefts])
        every = found(*[(left, 0.5) for left in (*lefts, *other.boxes[:, 0])])
        difference = detection_results.compare([own], [other], 1e-4, 1e-2, settings, lambda index, every=every: every)
        assert f", 0 unmatched, {2 * moved} ties," in difference.text
        assert difference.is_same == is_same


def test_files_that_are_not_ours(file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value], [helper.make_empty_tensor_value_info("y")]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "other.onnx"
    )
    for name, reason in (("none", "is not a file"), ("text", "not an ONNX file"), ("other", "not written by detector")):
        with pytest.raises(WeightsError, match=reason):
            detector.load(tmp_path / f"{name}.onnx")
    with pytest.raises(DataError, match="--bits 16"):
        detector.load(file).predict([np.zeros((9, 9, 3), np.uint16)])
