"""Bad input to whole commands: one line, exit code 2, no file that looks finished; and images of extreme sides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_training import CPU, TINY

import detector
from detector.__main__ import main
from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import load_config
from detector.models import build_model
from detector.structures import Category
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and damaged things of every kind."""
    folder = tmp_path_factory.mktemp("bad")
    config = load_config("quickstart.yaml", TINY)
    save_checkpoint(
        folder / "good.pt", config, [Category(1, "a")], {"model": build_model(config.model, 1).state_dict()}
    )
    content = torch.load(folder / "good.pt", weights_only=True)
    (folder / "cut.pt").write_bytes((folder / "good.pt").read_bytes()[:5000])
    weight = content["model"]["head.cls_output.bias"]
    torch.save(
        {**content, "model": {**content["model"], "head.cls_output.bias": weight * torch.nan}}, folder / "nan.pt"
    )
    torch.save({**content, "categories": 3}, folder / "categories.pt")
    (folder / "deep.yaml").write_text("[" * 5000)
    (folder / "laugh.yaml").write_text("a: &a [x,x,x]\n" + "b: &b [*a,*a]\nseed: [*b]\n")
    (folder / "run.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{folder}/was_here']\n")
    (folder / "images").mkdir()
    Image.new("RGB", (40, 30)).save(folder / "images" / "a.png")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        "train --config {0}/deep.yaml --runs {0}/runs",
        "train --config {0}/laugh.yaml --runs {0}/runs",
        "train --config {0}/run.yaml --runs {0}/runs",
        "train --config {0} --runs {0}/runs",
        "train --config {0}/good.pt --runs {0}/runs",
        "train --config quickstart.yaml --runs {0}/runs seed=[[",
        "train --config quickstart.yaml --runs {0}/runs train.epochs=true",
        "infer --checkpoint {0}/cut.pt --input {0}/images --output {0}/found",
        "infer --checkpoint {0}/nan.pt --input {0}/images --output {0}/found",
        "infer --checkpoint {0}/categories.pt --input {0}/images --output {0}/found",
        "infer --checkpoint {0}/images --input {0}/images --output {0}/found",
        "evaluate --checkpoint {0}/nan.pt",
        "import_weights {0}/good.pt {0}/imported.pt",
        "import_weights {0}/cut.pt {0}/imported.pt",
        "summary --config {0}/deep.yaml",
    ],
)
def test_a_command_refuses_in_one_line(arguments: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    words = [word.format(folder) for word in arguments.split(" ")]
    assert main(words) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [index == 0 for index in range(len(lines))], printed.err
    assert len(lines) == 1 or "laugh" in arguments  # it has three unknown keys and values
    assert sorted(folder.rglob("*")) == before


def test_images_at_the_limit_train_and_infer(tmp_path: Path, shapes: Path) -> None:
    data = tmp_path / "shapes"
    shutil.copytree(shapes, data)
    sizes = {"point.png": (1, 1), "line.png": (20_000, 1), "mast.png": (1, 20_000)}  # width, height
    for split in ("train", "val"):
        path = data / "annotations" / f"{split}.json"
        tree = json.loads(path.read_text())
        tree["images"], tree["annotations"] = tree["images"][:1], tree["annotations"][:0]
        for number, (name, (width, height)) in enumerate(sizes.items(), start=1000):
            Image.new("RGB", (width, height), "red").save(data / "images" / name)
            tree["images"].append({"id": number, "file_name": name, "width": width, "height": height})
            box = {"id": number, "image_id": number, "category_id": tree["categories"][0]["id"]}
            tree["annotations"].append({**box, "bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0})
        path.write_text(json.dumps(tree))
    splits = [f"data.{split}.annotations={data}/annotations/{split}.json" for split in ("train", "val")]
    splits += [f"data.{split}.images={data}/images" for split in ("train", "val")]
    overrides = [*TINY, *splits, "train.batch_size=2", "train.epochs=2", "data.workers=0"]
    run = RunFolder(tmp_path / "run")
    assert fit(load_config("quickstart.yaml", overrides), run, CPU)
    predictor = detector.load(run.best, device="cpu")
    found = predictor.predict([data / "images" / name for name in sizes], score_threshold=0.0)
    for prediction, (width, height) in zip(found, sizes.values(), strict=True):
        assert np.isfinite(prediction.boxes).all()
        assert (prediction.boxes >= 0).all()
        assert (prediction.boxes <= [width, height, width, height]).all()
