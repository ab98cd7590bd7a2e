"""The README's lines as a newcomer types them: every command parses, every key exists, and what can run here runs.

Commands are made small: ``SMALL`` is added to those that train, ``--workers 0`` to ``infer``, and the files that the
README names are in a folder of generated data. A run that a line creates is removed before it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detector
from detector.__main__ import COMMANDS, build_parser, main
from detector.config.loader import CONFIG_FOLDERS, _section_at, load_config
from detector.data.formats.reading import read_annotations
from detector.data.images import read_image
from detector.inference.video import is_video
from detector.tasks.detection import Prediction
from detector.training import fitting
from detector.training.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


class Line(NamedTuple):
    """A command of the README."""

    section: str  # its heading
    words: list[str]

    @property
    def command(self) -> list[str]:
        """What follows ``detector``; empty for what is not one of its commands, such as make."""
        for index, word in enumerate(self.words):
            if Path(word).name == "detector":
                return self.words[index + 1 :]
            if word.startswith("tools/"):
                return [Path(word).stem, *self.words[index + 1 :]]
        return []


def readme_lines() -> Iterator[Line]:
    """Indented blocks are what is typed; a backslash at the end of a line continues it."""
    section, in_fence = "", False
    for line in README.replace("\\\n", " ").splitlines():
        in_fence ^= line.startswith("```")
        if line.startswith("#"):
            section = line.lstrip("# ")
        if line.startswith("    ") and not in_fence:
            yield Line(section, shlex.split(line, comments=True))


LINES = list(readme_lines())
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TRACKING = next(block for block in PYTHON if "import trackers" in block)

# What is not run here, by a word of the command, and why; it is parsed all the same.
NOT_RUN = {
    "quickstart": "minutes",
    "benchmark": "tens of seconds",
    "torchrun": "several GPUs",
    "compare": "many runs, tested with the comparison",
    "serve": "runs until it is stopped, tested with the server",
    "gpu_check": "a GPU",
    "--suggest": "many seconds, tested with the anchors",
    "--compare": "many seconds, tested with the summary",
    "RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1": "a download",
    "model_final.pkl": "a file of Detectron2",
    "model.weights=model_final.pkl": "a file of Detectron2",
    "--to": "torchvision takes a whole ResNet",
    "export": "half a minute, tested with the export",
    "rtsp://HOST/live": "a camera, tested with the videos",
    "--engine": "Ray, tested with it",
    "--merge": "all shards, tested with the parts",
    "--version": "ends in SystemExit, tested with the commands",
}
RUN = [line for line in LINES if line.command and not set(line.words) & NOT_RUN.keys()]

SMALL = [
    "model.backbone={name: resnet10, norm: bn, freeze_at: 0}",
    "train.steps=1",
    "data.workers=0",
    "train.batch_size=4",
]
DETECTS = [*SMALL, "model.fpn={levels: [3, 4, 5], channels: 16}", "data.resize={short: [64], long: 64}"]
CLASSIFIES = [*SMALL, "model.fpn={levels: [3, 4, 5], channels: 16, norm: bn}", "data.crop={size: 32}"]
# A detector's pyramid, from which a classifier can start.
CLASSIFIES_AS_DETECTOR = [*SMALL, "model.fpn={levels: [3, 4, 5], channels: 16}", "data.crop={size: 32}"]
SEGMENTS = [
    *SMALL,
    "model.fpn={levels: [2, 3, 4, 5], channels: 16}",
    "data.resize={short: [64], long: 64}",
    "data.augment={}",
]


def test_the_readme_has_commands_and_python() -> None:
    assert len(LINES) > 30
    assert len(RUN) > 20
    assert len(PYTHON) >= 3
    assert {line.command[0] for line in LINES if line.command} >= COMMANDS.keys() - {"stress"}


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.words))
def test_a_line_parses(line: Line) -> None:
    if not line.command:
        program, *arguments = line.words
        assert program in ("make", "pip", "curl")
        if program == "make":
            assert f"\n{arguments[0]}:" in (REPOSITORY / "Makefile").read_text()
        return
    name, *arguments = line.command
    if name.startswith("--"):
        assert name == "--version"
        return
    parser = build_parser(name)
    parser.exit_on_error = False  # the parser's own SystemExit says less
    args = parser.parse_intermixed_args(arguments)
    given = getattr(args, "config", None)
    for config in given if isinstance(given, list) else [given]:
        if config is not None and (CONFIG_FOLDERS[0] / config).exists():
            load_config(config, args.overrides)
    for config in getattr(args, "compare", None) or []:
        load_config(config)
    for override in getattr(args, "overrides", []):
        assert_is_key(override.partition("=")[0])


def assert_is_key(dotted: str) -> None:
    *section, key = dotted.split(".")
    assert key in _section_at(tuple(section)).model_fields, f"{dotted} is not a key of a config"


KEYS = sorted(set(re.findall(r"`((?:data|model|train|eval)(?:\.[a-z_0-9]+)+)", README)) - {"data.yaml"})


def test_the_keys_in_the_text_exist() -> None:
    assert len(KEYS) > 20
    for key in KEYS:
        assert_is_key(key)


def test_the_files_that_are_named_exist() -> None:
    named = re.findall(r"\]\(([a-zA-Z_/.]+)\)", README) + re.findall(r"`(tools/\w+\.py)`", README)
    named += [
        f"configs/{name}" for name in re.findall(r"`(\w+\.yaml)`", README) if name not in ("config.yaml", "data.yaml")
    ]
    assert len(named) > 20
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    assert {path.stem for path in (REPOSITORY / "tools").glob("*.py")} == COMMANDS.keys()
    listed = set(re.findall(r"`(\w+\.yaml)`", README[README.index("## Configs") :]))
    assert {path.name for path in CONFIG_FOLDERS[0].glob("*.yaml")} == listed


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(shapes: Path, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the README's lines name, and runs of one step."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(shapes / "images", folder / "images")
    for name, split in (("train", "train"), ("val", "val"), ("a", "val")):
        shutil.copy(shapes / f"annotations/{split}.json", folder / f"{name}.json")
    truth = json.loads((folder / "a.json").read_text())["annotations"]
    row = {key: truth[0][key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
    (folder / "results.json").write_text(json.dumps([row]))
    shutil.copy(min((folder / "images").glob("val_*")), folder / "a.jpg")
    for name in ("train", "val"):
        shutil.copytree(colors / name, folder / name)
        shutil.copytree(colors / name, folder / "classes" / name)
    shutil.copytree(colors / "train", folder / "all")
    write_clip(folder / "clip.mp4")

    write_other_formats(folder)

    splits = [f"data.{s}.annotations={s}.json" for s in ("train", "val")] + [
        f"data.{s}.images=images" for s in ("train", "val")
    ]
    small = ["model.head={num_convs: 1}", "train.schedule={warmup_steps: 0}", "model.predict.score_threshold=0.0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = load_config("quickstart.yaml", [*DETECTS, *small, *splits])
        assert fitting.fit(config, RunFolder(Path("runs/mine")), torch.device("cpu"))
        shutil.copy("runs/mine/config.yaml", "mine.yaml")
        for name in ("before", "detector"):
            shutil.copytree("runs/mine", f"runs/{name}")
        data = ["data.train.images=train", "data.val.images=val"]
        config = load_config("classify_quickstart.yaml", [*CLASSIFIES, *data])
        assert fitting.fit(config, RunFolder(Path("runs/classifier")), torch.device("cpu"))
        rng = np.random.default_rng(0)
        for name in ("photos", "masks"):
            Path(name).mkdir()
        for number in range(6):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"photos/{number}.jpg")
            Image.fromarray(rng.integers(0, 3, (64, 64), dtype=np.uint8)).save(f"masks/{number}.png")
        data = ["data.train={images: photos, annotations: masks}", "data.val={images: photos, annotations: masks}"]
        config = load_config("segment_quickstart.yaml", [*SEGMENTS, *data, "data.classes=[a, b, c]"])
        assert fitting.fit(config, RunFolder(Path("runs/streets")), torch.device("cpu"))
    return folder


def write_clip(path: Path) -> None:
    """Two seconds in which a bright square goes right and a dark one goes left, past each other."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (160, 96))
    for number in range(50):
        image = np.full((96, 160, 3), 90, dtype=np.uint8)
        for (left, top, right, bottom), shade in zip(squares(number), (255, 0), strict=True):
            image[top:bottom, left:right] = shade
        writer.write(image)
    writer.release()


def squares(number: int) -> list[tuple[int, int, int, int]]:
    """The boxes in a frame of :func:`write_clip`."""
    return [(5 + 2 * number, 10, 35 + 2 * number, 40), (125 - 2 * number, 50, 155 - 2 * number, 80)]


def write_other_formats(folder: Path) -> None:
    """train.json as CSV, and train.json and val.json as YOLO's and Pascal VOC's files."""
    lines = ["image_path,xmin,ymin,xmax,ymax,label"]
    for split in ("train", "val"):
        found = read_annotations(folder / f"{split}.json")
        names = []
        for index in range(len(found)):
            name, (height, width) = found.file_name(index), (int(found.heights[index]), int(found.widths[index]))
            rows, objects = [], ""
            for row in range(*found.first[index : index + 2].tolist()):
                x, y, w, h = found.boxes_xywh[row].tolist()
                label = found.categories[int(found.labels[row])].name
                lines += [f"images/{name},{x},{y},{x + w},{y + h},{label}"] * (split == "train")
                rows.append(
                    f"{int(found.labels[row])} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}"
                )
                corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                objects += f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
            names.append(Path(name).stem)
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            for path, text in (
                (f"yolo/labels/{split}/{names[-1]}.txt", "\n".join(rows)),
                (f"voc/Annotations/{names[-1]}.xml", f"<annotation>{size}{objects}</annotation>"),
            ):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text)
            for place in (f"yolo/images/{split}", "voc/JPEGImages"):
                (folder / place).mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / "images" / name, folder / place)
        (folder / "voc/ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (folder / f"voc/ImageSets/Main/{split}.txt").write_text("\n".join(names))
    classes = [category.name for category in found.categories]
    (folder / "yolo/data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(classes)}\n")
    (folder / "boxes.csv").write_text("\n".join(lines))


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template; checkpoints, which are replaced but never changed, are links: they are most of 360 MB."""
    folder = tmp_path / "world"
    shutil.copytree(
        template, folder, copy_function=lambda a, b: os.link(a, b) if Path(a).suffix == ".pt" else shutil.copy2(a, b)
    )
    monkeypatch.chdir(folder)
    return folder


def shortened(line: Line) -> list[str]:
    """The command with what makes it small; in the section of classification, runs/mine is a classifier."""
    name, *arguments = line.command
    args: argparse.Namespace = build_parser(name).parse_intermixed_args(arguments)
    added: list[str] = []
    if line.section == "Classify":
        shutil.rmtree("runs/mine")
        shutil.copytree("runs/classifier", "runs/mine")
    if name == "train":
        shutil.rmtree(f"runs/{args.name}" if args.name else "nothing", ignore_errors=True)
        own = {
            "Classify": CLASSIFIES,
            "From a detector to a classifier, and back": CLASSIFIES_AS_DETECTOR,
            "Segment": SEGMENTS,
        }
        # The lines of one folder and of --overfit come last, so that they win.
        added = own.get(line.section, [] if args.config == "mine.yaml" else DETECTS)
        added = [*added, *(["train.steps=2"] if args.overfit else [])]
    if name == "infer" and not is_video(args.input):
        added = ["--workers", "0"]
    return [name, *arguments, *added]


# Allowed exit codes other than 0: findings, and images that two steps do not overfit.
FOUND = {"doctor": (0, 1), "train --overfit": (0, 1)}


@pytest.mark.parametrize("line", RUN, ids=lambda line: " ".join(line.words))
def test_a_line_runs(line: Line, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(world.rglob("*"))
    typed = shortened(line)
    kind = "train --overfit" if "--overfit" in typed else typed[0]
    assert main(typed) in FOUND.get(kind, (0,)), capsys.readouterr().err
    for option in ("--output", "--html", "--report", "--fix", "--write"):
        if option in typed and kind != "doctor":
            assert set((world / typed[typed.index(option) + 1]).parent.rglob("*")) - before, option


def test_the_python_blocks_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace, as in a notebook."""
    made: dict[str, Any] = {}
    stub = SimpleNamespace(Detections=lambda xyxy, **values: made.update(xyxy=xyxy, **values))
    monkeypatch.setitem(sys.modules, "supervision", stub)
    array = read_image(world / "a.jpg")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    names: dict[str, Any] = {"pil_image": Image.fromarray(array), "numpy_array": array, "tensor": tensor, "numpy": np}
    for block in (block for block in PYTHON if block != TRACKING):
        exec(
            block.replace("score_threshold=0.5", "score_threshold=0.0").replace("train.epochs=3", "train.steps=2"),
            names,
        )
    found = names["found"]
    assert isinstance(found, Prediction)
    assert Image.open(world / "found.png").size == (480, 480)
    assert len(names["rows"]) == len(made["xyxy"]) == len(made["confidence"]) == len(made["class_id"]) > 0
    assert made["data"]["class_name"].tolist() == found.names
    assert names["run"] == Path("runs/shorter")
    assert names["metrics"].keys() >= {"AP", "per_class"}
    assert len(names["categories"]) == names["predictions"].cls_logits.shape[2] == 4
    assert len((world / "runs/shorter/metrics.jsonl").read_text().splitlines()) >= 2


def test_the_tracking_block_gives_each_object_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackers")
    supervision = pytest.importorskip("supervision")
    monkeypatch.chdir(tmp_path)
    write_clip(Path("clip.mp4"))

    def stream(video: detector.Video, score_threshold: float) -> Iterator[tuple[Any, Prediction]]:
        for frame in video:
            boxes = np.array(squares(frame.number), dtype=np.float32)
            kept = boxes[: 1 + (frame.number % 7 != 3)]  # the second one is missed now and then
            labels = np.arange(len(kept))
            yield (
                frame,
                Prediction(kept, np.full(len(kept), 0.9, np.float32), labels, labels + 1, ["a", "b"][: len(kept)]),
            )

    predictor = SimpleNamespace(stream=stream, categories=[SimpleNamespace(name=name) for name in "ab"])
    exec(TRACKING, {"predictor": predictor, "detector": detector, "supervision": supervision})
    rows = [json.loads(line) for line in Path("tracks.jsonl").read_text().splitlines()]
    assert {row["frame"] for row in rows} >= set(range(5, 50))
    ids = [{row["id"] for row in rows if row["class"] == name} for name in "ab"]
    assert [len(own) for own in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert rows[-1]["time"] == pytest.approx(rows[-1]["frame"] / 25)
