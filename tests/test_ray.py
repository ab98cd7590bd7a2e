"""Ray: blocks that a killed actor leaves are continued, and the outcome is what one process writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.__main__ import run_command
from detector.checkpoints.checkpoint import save_checkpoint
from detector.checkpoints.opening import open_model
from detector.dev.stress import tiny_checkpoint
from detector.ray import Predict

LOW = ["model.predict.score_threshold=0.0", "model.predict.max_detections=3"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, 20 images and a broken one, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("world")
    path = tiny_checkpoint(folder / "tiny.pt")
    model, config, categories = open_model(path, LOW)
    torch.manual_seed(0)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_checkpoint(path, config, categories, {"model": model.state_dict()})
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(20):
        size = (40, 64, 3) if number % 2 else (64, 48, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"images/{number:02}.png")
    (folder / "images/07.png").write_bytes(b"no image")
    assert run_command("infer", arguments(folder, "one")) == 1
    return folder


def arguments(world: Path, output: str) -> list[str]:
    given = ["--checkpoint", str(world / "tiny.pt"), "--input", str(world / "images"), "--output", str(world / output)]
    return [
        *given,
        "--device",
        "cpu",
        "--batch-size",
        "2",
        "--workers",
        "1",
        "--format",
        "coco",
        "--draw-score",
        "0.01",
    ]


def files(folder: Path) -> dict[str, bytes]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith("blocks/")}


def test_rows_of_a_pipeline(world: Path) -> None:
    predict = Predict(str(world / "tiny.pt"), device="cpu")
    paths = [world / "images/00.png", world / "images/07.png", world / "images/01.png"]
    expected = {name: [] for name in ("00.png", "01.png")}
    for row in json.loads((world / "one/predictions.json").read_text()):
        if row["file_name"] in expected:
            expected[row["file_name"]].append([row["bbox"], row["score"]])
    batches = {
        "path": {"path": np.array([str(paths[0]), paths[1].as_uri(), paths[2].as_uri()])},
        "bytes": {"bytes": np.array([path.read_bytes() for path in paths], dtype=object), "path": np.array(paths)},
    }
    for batch in batches.values():
        found = predict(batch)
        assert [error is None for error in found["error"]] == [True, False, True]
        assert "07.png: is not an image" in found["error"][1]
        assert found["results"][1] is None
        rows = [json.loads(found["results"][index]) for index in (0, 2)]
        assert [[[row["bbox"], row["score"]] for row in own] for own in rows] == list(expected.values())
    image = np.asarray(Image.open(paths[0]))
    (only,) = predict({"image": np.stack([image])})["results"]
    assert [row["score"] for row in json.loads(only)] == [score for _, score in expected["00.png"]]


def test_two_actors_of_which_one_is_killed(world: Path) -> None:
    """Through Ray itself: an actor is found by the lock of its block."""
    pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    output, killed = world / "two", []

    def kill_one() -> None:
        while not killed:
            time.sleep(0.01)
            for lock in output.glob("blocks/*/lock"):
                try:
                    process = json.loads(lock.read_text())["pid"]
                    if (lock.parent / "progress.jsonl").read_bytes().count(b"\n") > 1:
                        os.kill(process, signal.SIGKILL)
                        killed.append(process)
                        break
                except (OSError, ValueError, KeyError):
                    continue

    threading.Thread(target=kill_one, daemon=True).start()
    code = "import sys, detector.ray, detector.__main__ as command; detector.ray.BLOCK = 6; sys.exit(command.main())"
    given = [*arguments(world, "two"), "--engine", "ray", "--actors", "2"]
    environment = os.environ | {"RAY_worker_niceness": "0"}  # 15 is its default, which waits for ever beside others
    command = [sys.executable, "-c", code, "infer", *given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert killed
    assert files(output) == files(world / "one")
