"""tools/import_weights.py, and other packages' files wherever one of ours may stand: one line for every mistake."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import assert_same_outputs, drawn, make_image, pair_of, randomised, small_retinanet
from PIL import Image
from safetensors.torch import save_file
from test_from_detectron2 import detectron2_state
from test_from_mmdetection import mmdetection_shapes
from test_from_torchvision import UNUSED
from torch import Tensor
from torchvision.models.detection import RetinaNet

import detector
from detector.__main__ import run_command
from detector.checkpoints.checkpoint import read_checkpoint
from detector.checkpoints.foreign.importing import Imported
from detector.checkpoints.opening import import_checkpoint, open_start
from detector.checkpoints.start import begin_normalise, load_start
from detector.checkpoints.transfer import conventions
from detector.config.loader import apply_overrides, config_from_dict, differences, load_config
from detector.config.schema import Config
from detector.models import build_model
from detector.structures import Category
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

OWN_CONVENTION = {
    "torchvision": "model.anchors.rounded",
    "detectron2": "model.backbone.stride_in_1x1",
    "mmdetection": "model.fpn.relu_before_p7",
}
PACKAGES = list(OWN_CONVENTION)
State = dict[str, Tensor]
CPU = torch.device("cpu")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for files of a hundred megabytes, which no run leaves behind."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def retinanet() -> RetinaNet:
    return randomised(partial(small_retinanet, "resnet18", 3), seed=11, mean=-3.5)


@pytest.fixture(scope="module")
def foreign(retinanet: RetinaNet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """torchvision's file of a small model."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.save(retinanet.state_dict(), folder / "theirs.pth")
    yield folder / "theirs.pth"
    shutil.rmtree(folder)


def hollow(shapes: dict[str, torch.Size]) -> State:
    """All zeros, one number for all of a tensor: a file of a few kilobytes."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def state_of(package: str) -> State:
    """A small model of any package, without numbers."""
    if package == "detectron2":
        return detectron2_state(2, 64)
    if package == "mmdetection":
        return hollow(mmdetection_shapes("resnet18", 2, 64))
    with torch.device("meta"):
        state = small_retinanet("resnet18", 2).state_dict()
    return hollow({name: tensor.shape for name, tensor in state.items()})


def assert_refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Exit code 2, one line, and nothing more in ``folder`` than before."""
    before = sorted((path, path.stat().st_size) for path in folder.rglob("*"))
    assert run_command("import_weights", arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert sorted((path, path.stat().st_size) for path in folder.rglob("*")) == before
    return lines[0]


# --- what it writes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
def test_a_checkpoint_and_a_report(
    suffix: str, retinanet: RetinaNet, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, source, output = retinanet.state_dict(), scratch / f"theirs{suffix}", scratch / "ours.pt"
    if suffix == ".safetensors":
        save_file(state, source)
    elif suffix == ".pkl":  # arrays of a single number are another test's
        arrays = {name: tensor.numpy() for name, tensor in state.items() if tensor.ndim}
        source.write_bytes(pickle.dumps({"model": arrays}, protocol=2))
    else:
        torch.save(state, source)
    assert run_command("import_weights", [source.as_uri() if suffix == ".pth" else str(source), str(output)]) == 0
    *report, total, written = capsys.readouterr().out.splitlines()
    assert written == str(output)
    used = [name for name, tensor in state.items() if tensor.ndim or suffix != ".pkl"]
    assert total == (
        f"torchvision, resnet18, 3 classes (class 0, class 1, class 2): {len(used)} tensors used, 0 ignored"
    )
    said = [re.fullmatch(r"used +(\S+) -> (\S+)", line) for line in report]
    assert sorted(match[1] for match in said if match) == sorted(used)
    content = read_checkpoint(output)
    assert sorted(match[2] for match in said if match) == sorted(content["model"])
    assert content["source"] == f"torchvision: {source.name}"
    assert not list(scratch.glob("*.partial"))
    made = Imported("torchvision", content, {}, [])
    assert_same_outputs(pair_of(retinanet, made), make_image(70, 101))


def test_there_and_back(foreign: Path, retinanet: RetinaNet, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = scratch / "ours.pt"
    assert run_command("import_weights", [str(foreign), str(ours), "--from", "torchvision"]) == 0
    for source, output in (
        (ours, scratch / "back.pth"),
        (ours, scratch / "back.safetensors"),
        (foreign, scratch / "x.pt"),
    ):
        capsys.readouterr()
        assert run_command("import_weights", [str(source), str(output), "--to", "torchvision"]) == 0
        state = retinanet.state_dict()
        assert capsys.readouterr().out.splitlines() == [
            f"{len(state)} tensors; torchvision's num_classes is 3",
            str(output),
        ]
        if output.suffix == ".safetensors":
            from safetensors.torch import load_file

            back = load_file(output)
        else:
            back = torch.load(output, weights_only=True)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("package", PACKAGES)
def test_the_config_that_fits(package: str, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, checkpoint, written = scratch / "theirs.pth", scratch / "ours.pt", scratch / "mine.yaml"
    torch.save(state_of(package), source)
    assert run_command("import_weights", [str(source), str(checkpoint), "--config-out", str(written)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(checkpoint), str(written)]
    config = load_config(written)
    content = read_checkpoint(checkpoint)
    origin = config_from_dict(content["config"], "x")
    assert conventions(config) == conventions(origin)
    assert written.read_text().startswith(f"# detector train --config {written} ")
    # How it is trained is what the package's own config says, and no other weights are asked for.
    assert config.train == load_config("retinanet_r50_fpn.yaml").train
    assert (config.model.weights, config.model.backbone.weights) == (str(checkpoint), None)
    classes = [Category(**row) for row in content["categories"]]
    model = build_model(config.model, len(classes))
    lines, _ = load_start(model, config, classes, open_start(config))
    assert len(lines) == 1
    assert (
        f"{len(model.state_dict()) - 2} of {len(model.state_dict())} tensors loaded; the class layer by name"
        in lines[0]
    )

    # Without it, every value that the weights were made with and the config has not is said.
    own = Config.model_validate(
        {"model": {"weights": str(checkpoint), "backbone": {"name": config.model.backbone.name}}}
    )
    own = begin_normalise(own, content, "x")[0]
    (_, *lines), _ = load_start(build_model(own.model, 2), own, classes, content)
    said = {line.strip().partition("=")[0] for line in lines if line.startswith("  ")}
    expected = {key for key, _, _ in differences(conventions(own), conventions(origin))}
    assert said == expected >= {"model.fpn.channels", OWN_CONVENTION[package]}
    (warning,) = (line for line in lines if line.startswith("warning: "))
    assert warning.startswith("warning: head.cls_tower.*, head.box_tower.*, head.box_output.* stay random: ")
    # What it says can be given as it stands.
    overrides = [line.split(" (here")[0].strip() for line in lines if line.startswith("  ") and "…" not in line]
    assert conventions(apply_overrides(own, overrides, "x"))["model"]["fpn"] == conventions(origin)["model"]["fpn"]


def test_a_config_and_overrides(foreign: Path, scratch: Path) -> None:
    (scratch / "x.yaml").write_text("model: {predict: {max_detections: 11, score_threshold: 0.3}}\n")
    arguments = [str(foreign), str(scratch / "ours.pt"), "--config", str(scratch / "x.yaml")]
    assert run_command("import_weights", [*arguments, "model.predict.max_detections=12"]) == 0
    config = Config.model_validate(read_checkpoint(scratch / "ours.pt")["config"])
    assert (config.model.predict.max_detections, config.model.predict.score_threshold) == (12, 0.3)
    assert config.model.predict.keep_empty  # as torchvision, where nothing else is said


# --- by name, without a network ---------------------------------------------------------------------------------------

V1 = "RetinaNet_ResNet50_FPN_Weights.COCO_V1"


def test_torchvisions_name_out_of_the_cache(hub: Path, foreign: Path) -> None:
    shutil.copy(foreign, hub / "retinanet_resnet50_fpn_coco-eeacb38b.pth")
    made = import_checkpoint(V1)
    assert made.content["config"]["model"]["backbone"]["norm_eps"] == 0.0
    shutil.copy(foreign, hub / "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth")
    made = import_checkpoint("RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1")
    assert made.content["config"]["model"]["backbone"]["norm_eps"] is None
    (hub / "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth").unlink()
    (hub / "retinanet_resnet50_fpn_coco-eeacb38b.pth").unlink()


def test_without_a_network_it_says_what_to_put_where(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(hub.parent / "ours.pt")
    url = "https://download.pytorch.org/models/retinanet_resnet50_fpn_coco-eeacb38b.pth"
    for source in (V1, url):
        assert_refused([source, output], hub, capsys, url, "no network", f"put it into {hub}")


# --- what is refused --------------------------------------------------------------------------------------------------


# A tensor of the backbone, one of the pyramid, and one of the head.
TENSORS = {
    "torchvision": [
        "backbone.body.layer3.1.conv2.weight",
        "backbone.fpn.layer_blocks.1.0.bias",
        "head.regression_head.conv.2.0.weight",
    ],
    "detectron2": ["backbone.bottom_up.res4.1.conv2.weight", "backbone.fpn_output4.bias", "head.bbox_subnet.4.weight"],
    "mmdetection": [
        "backbone.layer3.1.conv2.weight",
        "neck.fpn_convs.1.conv.bias",
        "bbox_head.reg_convs.2.conv.weight",
    ],
}
# Names differ from package to package, and what compares them with ours is the same: each part once.
CASES = [(package, TENSORS[package][part]) for part, package in enumerate(PACKAGES)]
OTHER_CASES = [(package, TENSORS[package][part - 1]) for part, package in enumerate(PACKAGES)]


def assert_state_refused(state: Any, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    torch.save(state, folder / "theirs.pth")
    return assert_refused([str(folder / "theirs.pth"), str(folder / "ours.pt")], folder, capsys, *words)


@pytest.mark.parametrize(("package", "name"), CASES)
def test_a_missing_tensor(package: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of(package)
    del state[name]
    assert_state_refused(state, tmp_path, capsys, f"{tmp_path / 'theirs.pth'}: ", f"{name} is missing")


@pytest.mark.parametrize(("package", "place"), [*zip(PACKAGES, ["backbone", "head", "elsewhere"], strict=True)])
def test_a_tensor_too_many(package: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = {
        "backbone": TENSORS[package][0].replace("conv2.weight", "conv9.weight"),
        "head": TENSORS[package][2] + "_scale",
        "elsewhere": "roi_heads.mask.weight",
    }[place]
    said = "is unexpected" if place == "backbone" else "is unexpected (1 such tensors)"
    assert_state_refused({**state_of(package), name: torch.zeros(1)}, tmp_path, capsys, f"{name} {said}")


@pytest.mark.parametrize(("package", "name"), OTHER_CASES)
def test_a_tensor_of_another_shape(package: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of(package)
    shape = [side + 1 for side in state[name].shape]
    state[name] = torch.zeros(shape)
    said = assert_state_refused(state, tmp_path, capsys, str(shape))
    assert "is another architecture" in said or "of another architecture" in said or f"{name} is {shape}, not " in said


HUGE = [10**7, 10**7, 3, 3]  # 3.6 PB


@pytest.mark.parametrize("package", PACKAGES)
def test_a_small_file_of_a_huge_tensor(package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {**state_of(package), TENSORS[package][2]: torch.zeros(()).expand(HUGE)}
    assert_state_refused(state, tmp_path, capsys, str(HUGE))


@pytest.mark.parametrize(
    "change",
    [
        {"head.classification_head.cls_logits.bias": torch.zeros(())},
        {"head.regression_head.bbox_reg.bias": torch.zeros(())},
        {"backbone.fpn.inner_blocks.0.0.weight": torch.zeros(())},
        {"backbone.fpn.extra_blocks.p6.weight": torch.zeros(4)},
        {"backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()},
        {7: torch.zeros(1)},
    ],
    ids=lambda change: f"{next(iter(change))} {list(next(iter(change.values())).shape)}",
)
def test_shapes_and_names_that_nobody_would_write(
    change: dict[Any, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_state_refused({**state_of("torchvision"), **change}, tmp_path, capsys)


@pytest.mark.parametrize("meta", [{"classes": 7}, {"dataset_meta": [1]}], ids=str)
def test_class_names_that_are_none(meta: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_state_refused({"meta": meta, "state_dict": state_of("mmdetection")}, tmp_path, capsys)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_that_are_no_floats(dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {**state_of("torchvision"), "backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7, dtype=dtype)}
    assert_state_refused(state, tmp_path, capsys, "backbone.body.conv1.weight")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("other", PACKAGES)
def test_the_wrong_package(package: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of(package)
    torch.save(state, tmp_path / "x.pth")
    arguments = [str(tmp_path / "x.pth"), str(tmp_path / "ours.pt"), "--from", other]
    if package == other:
        assert import_checkpoint(arguments[0], other).source == package
        return
    assert_refused(
        arguments, tmp_path, capsys, f"is not a RetinaNet of {other}: its first tensor is {next(iter(state))}"
    )


def test_an_output_that_is_there(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ours.pt"
    output.write_text("precious")
    for more in ([], ["--to", "torchvision"]):
        assert_refused([str(foreign), str(output), *more], tmp_path, capsys, f"{output}: exists already")
    assert output.read_text() == "precious"
    assert_refused([str(foreign), str(tmp_path / "a/b.pt")], tmp_path, capsys, f"{tmp_path / 'a'}: no such folder")


def test_what_does_not_go_together(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--from", "torchvision"], ["--config", "quickstart.yaml"], ["model.predict.topk=5"]):
        arguments = [str(foreign), str(tmp_path / "x.pth"), "--to", "torchvision", *more]
        assert_refused(arguments, tmp_path, capsys, "--to has no --from")


def test_overrides_that_are_wrong(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(foreign), str(tmp_path / "ours.pt")]
    assert_refused([*arguments, "model.fpn.channel=3"], tmp_path, capsys, "model.fpn.channel: unknown key")
    assert_refused([*arguments, "--config", "nowhere.yaml"], tmp_path, capsys, "nowhere.yaml: no such config file")
    # Against what the tensors show.
    said = assert_refused([*arguments, "model.fpn.channels=32"], tmp_path, capsys, "[64, 128, 1, 1]")
    assert "[32, 128, 1, 1]" in said
    assert_refused([*arguments, "model.anchors.ratios=[1.0]"], tmp_path, capsys, "9 anchors per cell, the config 3")


class Command:
    """Unpickled, it runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


def write_command(path: Path, target: Path) -> None:
    content = {**state_of("torchvision"), "head.extra": Command(target)}
    if path.suffix == ".pkl":
        arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in content.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol=2))
    else:
        torch.save({"model": content}, path)


def write_bomb(path: Path) -> None:
    torch.save(state_of("torchvision"), path.with_name("whole"))
    with zipfile.ZipFile(path.with_name("whole")) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in whole.namelist():
            bomb.writestr(entry, whole.read(entry))
    path.with_name("whole").unlink()


def write_half(path: Path) -> None:
    state = {name: torch.zeros(3) for name in state_of("torchvision")}
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in state.items()}, protocol=2))
    else:
        torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES: dict[str, tuple[str, Callable[[Path, Path], object], list[str]]] = {
    "a command in a .pkl": ("x.pkl", write_command, ["posix.system"]),
    "a command in a .pth": ("x.pth", write_command, []),
    "an array of objects": (
        "x.pkl",
        lambda path, target: path.write_bytes(pickle.dumps({"a": np.array([None, 1], dtype=object)}, protocol=2)),
        ["array of object"],
    ),
    "a zip bomb": ("x.pth", lambda path, target: write_bomb(path), ["is compressed"]),
    "half a .pth": ("x.pth", lambda path, target: write_half(path), []),
    "half a .pkl": ("x.pkl", lambda path, target: write_half(path), ["cut off"]),
    "half a .safetensors": ("x.safetensors", lambda path, target: write_half(path), ["cut off"]),
    "nothing": ("x.pth", lambda path, target: path.write_bytes(b""), ["is empty; copy or download it again"]),
    "nothing in a .pkl": ("x.pkl", lambda path, target: path.write_bytes(b""), ["is empty; copy or download it again"]),
    "nothing in a .safetensors": (
        "x.safetensors",
        lambda path, target: path.write_bytes(b""),
        ["is empty; copy or download it again"],
    ),
    "JSON": ("x.json", lambda path, target: path.write_text(json.dumps({"a": 1})), ["a JSON file, not a checkpoint"]),
    "JSON in a .pkl": (
        "x.pkl",
        lambda path, target: path.write_text(json.dumps({"a": 1})),
        ["is text, which begins"],
    ),
    "a folder": ("x.pth", lambda path, target: path.mkdir(), ["is a folder without best.pt"]),
    "no file": ("x.pth", lambda path, target: None, ["is not a file"]),
    "numbers only": (
        "x.pth",
        lambda path, target: torch.save({"a": 1}, path),
        ["neither a checkpoint nor a state dict"],
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_not_taken(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, write, words = BAD_FILES[kind]
    (tmp_path / "folder").mkdir()
    path, target = tmp_path / "folder" / name, tmp_path / "was_here"
    write(path, target)
    for more in ([], ["--from", "torchvision"], ["--to", "torchvision"]):
        assert_refused([str(path), str(tmp_path / "ours.pt"), *more], tmp_path, capsys, str(path), *words)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["a command in a .pkl", "a command in a .pth", "a zip bomb", "half a .safetensors"])
def test_nor_by_the_other_commands(kind: str, tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, write, _ = BAD_FILES[kind]
    path, target = tmp_path / name, tmp_path / "was_here"
    write(path, target)
    data = [f"--annotations={shapes}/annotations/val.json", f"--images={shapes}/images"]
    found = ["--input", str(shapes / "images"), "--output", str(tmp_path / "found")]
    for command, arguments in (("evaluate", data), ("infer", found)):
        assert run_command(command, ["--checkpoint", str(path), "--device", "cpu", *arguments]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert str(path) in lines[0]
    assert not target.exists()
    assert not (tmp_path / "found").exists()


# --- wherever one of ours may stand -----------------------------------------------------------------------------------


def test_load_takes_their_file(foreign: Path, retinanet: RetinaNet) -> None:
    image = make_image(70, 101).permute(1, 2, 0).numpy()
    predictor = detector.load(foreign, device="cpu")
    retinanet.transform.min_size, retinanet.transform.max_size = (800,), 1333
    with torch.inference_mode():
        theirs = retinanet([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
    (found,) = predictor.predict([image])
    assert len(theirs["scores"]) == len(found.scores) == 300
    # Resized in 8 bits here and in floats there: nearly the same, and the best are the same.
    np.testing.assert_allclose(found.scores, theirs["scores"].numpy(), atol=0.01)
    np.testing.assert_allclose(found.boxes[0], theirs["boxes"][0].numpy(), atol=0.2)
    assert set(found.names) <= {"class 0", "class 1", "class 2"}


def test_infer_and_evaluate_take_their_file(
    foreign: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "data.resize={short: [96], long: 96}"
    arguments = ["--checkpoint", str(foreign), "--device", "cpu", small]
    image_of = sorted((shapes / "images").glob("val_*"))[0]
    output = tmp_path / "found"
    more = ["--input", str(image_of), "--output", str(output), "--workers", "0", "--no-images"]
    assert run_command("infer", [*arguments, *more]) == 0
    found = json.loads((output / "predictions.json").read_text())
    assert {row["category_name"] for row in found} <= {"class 0", "class 1", "class 2"}
    assert len(found) > 20
    width, height = Image.open(image_of).size
    assert all(row["bbox"][0] >= 0 and row["bbox"][0] + row["bbox"][2] <= width + 0.01 for row in found)
    assert all(row["bbox"][1] >= 0 and row["bbox"][1] + row["bbox"][3] <= height + 0.01 for row in found)

    # Its categories are 0 to 2: data with those.
    tree = json.loads((shapes / "annotations/val.json").read_text())
    tree["categories"] = [{"id": row, "name": f"class {row}"} for row in range(3)]
    for annotation in tree["annotations"]:
        annotation["category_id"] %= 3
    (tmp_path / "val.json").write_text(json.dumps(tree))
    capsys.readouterr()
    data = ["--annotations", str(tmp_path / "val.json"), "--images", str(shapes / "images")]
    assert run_command("evaluate", [*arguments, *data, "--json", "data.workers=0"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert 0 <= numbers["AP"] < 0.5
    assert numbers["max_detections"] == 300


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def test_fine_tuning_torchvisions(shared: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """91 classes there, three here: everything but the class layer is kept, and trains."""
    bccd = shared / "data/bccd"
    val = json.loads((bccd / "annotations/val.json").read_text())
    val["images"] = val["images"][:4]
    kept = {image["id"] for image in val["images"]}
    val["annotations"] = [annotation for annotation in val["annotations"] if annotation["image_id"] in kept]
    (scratch / "val.json").write_text(json.dumps(val))
    state = randomised(partial(small_retinanet, "resnet18", 91, has_gn=True), seed=12, unused=UNUSED).state_dict()
    source = scratch / "theirs.pth"
    torch.save(state, source)
    config = Config.model_validate(
        {
            "data": {
                "train": {"annotations": str(bccd / "annotations/train.json"), "images": str(bccd / "images")},
                "val": {"annotations": str(scratch / "val.json"), "images": str(bccd / "images")},
                "resize": {"short": [64], "long": 96},
                "workers": 0,
            },
            "model": {
                "weights": str(source),
                "backbone": {"name": "resnet18", "norm": "bn"},
                "fpn": {"channels": 64},
                "head": {"norm": "gn"},
                "anchors": {"rounded": True, "strides": "from_size"},
            },
            "train": {"steps": 4, "batch_size": 2, "optimizer": {"lr": 0.01}, "schedule": {"warmup_steps": 2}},
        }
    )
    run = RunFolder(scratch / "run")
    assert fit(config, run, CPU)
    line = next(
        line for line in capsys.readouterr().err.splitlines() if line.startswith(f"from {source} (detection): ")
    )
    assert "2 are randomly initialised (head.cls_output.*)" in line
    report = (run.path / "transfer.txt").read_text(encoding="utf-8").splitlines()
    loaded = [row.split()[1] for row in report if row.startswith("loaded ")]
    begun = [row for row in report if row.startswith("random ")]
    assert begun == [f"random     head.cls_output.{part}: no class has the same name" for part in ("weight", "bias")]
    assert len(loaded) + 2 == len(report) == len(build_model(config.model, 3).state_dict())
    content = torch.load(run.last, weights_only=True)
    assert content["step"] == 4
    assert content["model"]["head.cls_output.bias"].shape == (27,)
    theirs = import_checkpoint(str(source)).content["model"]
    assert all(tensor.isfinite().all() for tensor in content["model"].values())
    # It began with those weights, and went on from them.
    stem = [weights["pyramid.backbone.body.layer3.0.conv1.weight"] for weights in (content["model"], theirs)]
    assert 0 < (stem[0] - stem[1]).norm() < 0.3 * stem[1].norm()


def test_classes_of_the_same_name_are_kept(scratch: Path) -> None:
    build = partial(small_retinanet, "resnet18", 91)
    state = randomised(build, seed=13, unused=UNUSED).state_dict()
    torch.save(state, scratch / "theirs.pth")
    model = {"weights": str(scratch / "theirs.pth"), "backbone": {"name": "resnet18"}, "fpn": {"channels": 64}}
    config = Config.model_validate({"model": model})
    own = build_model(config.model, 4)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    names = ["zebra", "cell", "person", "stop sign"]
    lines, report = load_start(own, config, [Category(row, name) for row, name in enumerate(names)], open_start(config))
    said = "3 of 4 classes (zebra, person, stop sign)"
    assert f"the class layer by name: {said}" in lines[0]
    ids = [24, None, 1, 13]  # COCO's
    for part in ("weight", "bias"):
        assert f"by class   head.cls_output.{part}: {said}" in report.splitlines()
        tensor = own.state_dict()[f"head.cls_output.{part}"]
        theirs = state[f"head.classification_head.cls_logits.{part}"]
        for anchor in range(9):
            for row, number in enumerate(ids):
                source = (
                    before[f"head.cls_output.{part}"][4 * anchor + row]
                    if number is None
                    else theirs[91 * anchor + number]
                )
                assert torch.equal(tensor[4 * anchor + row], source)


def test_a_file_is_not_drawn_twice_the_same() -> None:
    """Seeds that do nothing would let any mixed-up tensor pass."""
    shapes = {"a.weight": torch.Size([4, 4, 3, 3]), "b.weight": torch.Size([4, 4, 3, 3])}
    first, second = drawn(shapes, 1), drawn(shapes, 2)
    assert not torch.equal(first["a.weight"], first["b.weight"])
    assert not torch.equal(first["a.weight"], second["a.weight"])
    assert torch.equal(first["a.weight"], drawn(shapes, 1)["a.weight"])
