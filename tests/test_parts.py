"""Folders of images in parts: the same bytes as from one process, and nothing joined that is not exactly one list."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.__main__ import run_command
from detector.checkpoints.checkpoint import save_checkpoint
from detector.commands import RESUMABLE
from detector.config.loader import load_config
from detector.dev.stress import tiny_checkpoint
from detector.errors import ConfigError
from detector.inference import predictor
from detector.inference.folder import Images, find_images
from detector.inference.parts import Shard, which_shard
from detector.models import build_model
from detector.structures import Category

LABELS = [
    "--format",
    "coco,csv,voc,yolo,cvat,labelstudio",
    "--crops",
    "--counts",
    "--draw-score",
    "0.01",
    "--no-images",
]
LOW = ["model.predict.score_threshold=0.0", "model.predict.max_detections=2"]
TASKS = {
    "detection": [*LABELS, *LOW],
    "classification": [],  # with drawings, and masks
    "segmentation": [],
}
SMALL = ["model.backbone={name: resnet10}", "model.fpn.channels=16"]
SIZES = {"classification": "data.crop={size: 32}", "segmentation": "data.resize={short: [48], long: 64}"}


def checkpoint_of(task: str, folder: Path) -> Path:
    if task == "detection":
        return tiny_checkpoint(folder / "tiny.pt")
    config = load_config(
        f"{task.removesuffix('ation').replace('classific', 'classify')}_quickstart.yaml", [*SMALL, SIZES[task]]
    )
    torch.manual_seed(0)
    content = {"model": build_model(config.model, 3).state_dict()}
    save_checkpoint(folder / "tiny.pt", config, [Category(7, "a"), Category(8, "b"), Category(9, "c")], content)
    return folder / "tiny.pt"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 images of two shapes, in two folders, and one that is broken."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(8):
        path = folder / ("a" if number % 3 else "b & ü") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        size = (40, 64, 3) if number % 2 else (64, 48, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def infer(checkpoint: Path, images: Path, output: Path, *more: str) -> int:
    given = ["--checkpoint", str(checkpoint), "--input", str(images), "--output", str(output), "--workers", "0"]
    return run_command("infer", [*given, "--device", "cpu", "--batch-size", "2", *more])


def files(folder: Path, skip: str = "shard-") -> dict[str, bytes]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(skip)}


@pytest.mark.parametrize("task", TASKS)
def test_all_shards_joined_are_what_one_process_writes(
    task: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard is stopped after its first batch and resumed, while an image comes that the others know nothing of."""
    checkpoint = checkpoint_of(task, tmp_path)
    mine = shutil.copytree(images, tmp_path / "images")
    assert infer(checkpoint, mine, tmp_path / "one", *TASKS[task]) == 1
    assert infer(checkpoint, mine, tmp_path / "many", *TASKS[task], "--shard", "1/2") in (0, 1)
    with monkeypatch.context() as patch:
        real, calls = predictor.Predictor.predict_samples, []

        def stopped(*given: object) -> object:
            calls.append(given)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*given)  # type: ignore[arg-type]

        patch.setattr(predictor.Predictor, "predict_samples", stopped)
        assert infer(checkpoint, mine, tmp_path / "many", *TASKS[task], "--shard", "2/2") == RESUMABLE
    assert run_command("infer", ["--output", str(tmp_path / "many"), "--merge"]) == 2
    for name in ("0.png", "z.png"):
        shutil.copy(images / "a/1.png", mine / name)
    assert infer(checkpoint, mine, tmp_path / "many", *TASKS[task], "--shard", "2/2", "--resume") in (0, 1)
    assert run_command("infer", ["--output", str(tmp_path / "many"), "--merge"]) == 1
    one = files(tmp_path / "one")
    assert files(tmp_path / "many") == one
    assert {"predictions.json", "predictions.csv"} & one.keys()
    assert "errors.jsonl" in one


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished shards."""
    folder = tmp_path_factory.mktemp("done")
    checkpoint = tiny_checkpoint(folder / "tiny.pt")
    for shard in ("1/2", "2/2"):
        assert infer(checkpoint, images, folder, *LOW, "--no-images", "--shard", shard) in (0, 1)
    return folder


def _edit(folder: Path, **changes: object) -> None:
    """Shard 2 as if it had been asked something else."""
    path = folder / "shard-2-of-2/part.jsonl"
    header, rows = path.read_text().split("\n", 1)
    known = json.loads(header)
    for section in (known["asked"], known["part"]):
        section |= {key: value for key, value in changes.items() if key in section}
    path.write_text(json.dumps(known) + "\n" + rows)


def _cut(folder: Path) -> None:
    path = folder / "shard-2-of-2/part.jsonl"
    path.write_bytes(path.read_bytes()[:-9])


def _of_other_images(folder: Path) -> None:
    """Shard 2 with the images of shard 1, as by another version's hash."""
    shutil.copytree(folder / "shard-1-of-2", folder / "shard-2-of-2", dirs_exist_ok=True)
    _edit(folder, label="shard 2/2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder / "shard-2-of-2"), "1 shard of 2 missing: 2; predict them, as with"),
        (
            lambda folder: shutil.copytree(folder / "shard-2-of-2", folder / "shard-2-of-3"),
            "has shards of 2 and of 3, which overlap",
        ),
        (
            lambda folder: (folder / "shard-2-of-2/part.jsonl").rename(folder / "shard-2-of-2/progress.jsonl"),
            "shard-2-of-2: is not finished; continue it with --shard 2/2 --resume",
        ),
        (lambda folder: _edit(folder, score=0.1), "shard-2-of-2: its score is 0.1, that of"),
        (lambda folder: _edit(folder, model="another"), "shard-2-of-2: its model is another, that of"),
        (lambda folder: _edit(folder, total=7, digest="x"), "shard-2-of-2: is of another list of images (7) than"),
        (_cut, "shard-2-of-2/part.jsonl: has "),
        (
            lambda folder: shutil.copytree(folder / "shard-1-of-2", folder / "shard-2-of-2", dirs_exist_ok=True),
            "shard-2-of-2: holds shard 1/2; give the folder its own name back",
        ),
        (_of_other_images, "of them twice; predict the parts again"),
    ],
)
def test_what_is_not_one_whole_list_is_refused(
    change: Callable[[Path], object],
    said: str,
    done: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(done, tmp_path / "done")
    change(folder)
    capsys.readouterr()
    assert run_command("infer", ["--output", str(folder), "--merge"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (folder / "predictions.json").exists()


def test_shards_are_disjoint_and_even() -> None:
    whole = Images(Path("x"), [f"camera {number % 7}/{number:06}.jpg" for number in range(10_000)])
    shards = [Shard(index, 8).of(whole) for index in range(1, 9)]
    assert sorted(name for shard in shards for name in shard.names) == whole.names.tolist()
    assert all(1_150 < len(shard) < 1_350 for shard in shards)  # 1,250 ± 3 standard deviations of 33
    assert all(whole.names[shard.numbers - 1].tolist() == shard.names.tolist() for shard in shards)
    more = Images(Path("x"), [*map(str, range(50)), *(whole.name(index) for index in range(10_000))])
    assert set(shards[0].names) <= set(Shard(1, 8).of(more).names)  # whatever else is there


ARRAY = {f"SLURM_ARRAY_TASK_{name}": value for name, value in {"ID": "3", "MIN": "0", "MAX": "7", "COUNT": "8"}.items()}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("1/1", {}, (1, 1)),
        ("8/8", ARRAY, (8, 8)),
        ("auto", ARRAY, (4, 8)),
        ("auto/9", ARRAY, (4, 9)),
        ("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (1, 2)),
        ("auto/5", {"SLURM_NTASKS": "1", "JOB_COMPLETION_INDEX": "4"}, (5, 5)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_MIN": "3"}, "the job array is not 0 to N-1"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_COUNT": "2"}, "the job array is not 0 to N-1"),
        ("auto/3", ARRAY, "this process has the index 3, but indices of 3 are 0 to 2"),
        ("auto", {"JOB_COMPLETION_INDEX": "4"}, "give them, as in auto/8"),
        ("auto", {}, "give a shard, as in 1/8"),
        *((text, {}, "is not a shard such as 1/8 or 8/8") for text in ("0/4", "5/4", "4", "a/b", "1/4/2", "-1/4")),
        ("auto/x", ARRAY, "'x' is not a number of shards"),
    ],
)
def test_which_shard_a_process_is(text: str, environment: dict[str, str], expected: object) -> None:
    if isinstance(expected, tuple):
        assert which_shard(text, environment) == expected
    else:
        with pytest.raises(ConfigError, match="^command line: --shard .*" + str(expected)):
            which_shard(text, environment)


def test_a_shard_without_images_is_done_too(done: Path, images: Path, tmp_path: Path) -> None:
    given = find_images(str(images / "a/1.png"))
    empty = next(index for index in (1, 2) if not len(Shard(index, 2).of(given)))
    more = [*LOW, "--format", "coco", "--shard", f"{empty}/2"]
    assert infer(done / "tiny.pt", images / "a/1.png", tmp_path, *more) == 0
    assert json.loads((tmp_path / f"shard-{empty}-of-2/predictions.json").read_text()) == []
