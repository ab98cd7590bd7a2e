"""Which images are held back: the rule itself, and that training, the doctor and ``detector split`` follow it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.__main__ import run_command
from detector.analysis.doctor.columns import hold_back_val
from detector.analysis.doctor.examination import Settings, examine
from detector.analysis.doctor.reading import read_boxes, read_labelled
from detector.checkpoints.checkpoint import check_val_share, read_checkpoint
from detector.config.loader import load_config
from detector.config.schema import Config, DataConfig
from detector.data.classification import open_classes
from detector.data.detection import open_dataset
from detector.data.formats.building import Source
from detector.data.formats.class_folders import read_folders
from detector.data.split import group, hold_back, split_folds, split_parts
from detector.data.synthetic import write_shapes
from detector.data.transforms.boxes import Transform
from detector.errors import ConfigError, DataError
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

TINY = ["model.backbone.name=resnet10", "model.fpn={levels: [3, 4, 5], channels: 16}", "data.workers=0"]
TINY += ["data.resize={short: [64], long: 64}", "train.batch_size=4", "train.ema=0.5"]
Sets = list[set[int]]  # the classes of each image


def held(names: list[str], classes: Sets, fraction: float = 0.2, seed: int = 0) -> set[str]:
    image = np.array([index for index, own in enumerate(classes) for _ in own], dtype=np.int64)
    label = np.array([label for own in classes for label in sorted(own)], dtype=np.int64)
    is_val = hold_back(Path("a.json"), [name.encode() for name in names], image, label, fraction, seed)
    return {name for name, own in zip(names, is_val, strict=True) if own}


def number(name: str, seed: int = 0) -> float:
    return int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:16], 16) / 2**64


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_each_image_is_decided_alone_by_its_name_and_the_seed() -> None:
    names = [f"ö/{index}.png" for index in range(400)]
    classes: Sets = [{index % 2} for index in range(400)]
    for seed in (0, 7):
        expected = {name for name in names if number(name, seed) < 0.2}
        assert held(names, classes, seed=seed) == expected
        assert 60 < len(expected) < 100
        assert held(names[:300], classes[:300], seed=seed) == expected & set(names[:300])  # more images move none
    assert held(names, classes) != held(names, classes, seed=7)


sets = st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=2, max_size=14)


@given(sets, st.floats(0.05, 0.95), st.integers(0, 20), st.randoms())
def test_a_class_is_in_both_parts_where_it_can_be(classes: Sets, fraction: float, seed: int, random: Any) -> None:
    names = [f"{index}.png" for index in range(len(classes))]
    by_name = dict(zip(names, classes, strict=True))
    with_all = {name: own | {"any"} for name, own in by_name.items()}  # type: ignore[operator]

    def of(part: set[str]) -> set[Any]:
        return set().union(*(with_all[name] for name in part))

    try:
        val = held(names, classes, fraction, seed)
    except DataError:
        val = set()
    train = set(names) - val
    assert of(train) == of(set(names))  # everything can be learnt
    for missing in of(set(names)) - of(val):  # no other image could be moved
        for name in train:
            assert missing not in with_all[name] or of(train - {name}) != of(train)
    moved = {name for name in names if (name in val) != (number(name, seed) < fraction)}
    assert len(moved) <= 2 * len(of(set(names))) or not val
    # Nor does it matter in which order images and classes are listed.
    shuffled = random.sample(names, len(names))
    turned = [{4 - label for label in by_name[name]} for name in shuffled]
    if val:
        assert held(shuffled, turned, fraction, seed) == val


def test_the_images_nearest_to_the_fraction_are_moved() -> None:
    names = [f"{index}.png" for index in range(40)]
    low, *_, high = sorted(range(40), key=lambda index: number(names[index]))
    outside = [index for index in range(40) if number(names[index]) >= 0.2]
    inside = [index for index in range(40) if number(names[index]) < 0.2]
    rare, early = sorted(outside[-3:], key=lambda index: number(names[index])), inside[:3]
    classes: Sets = [{0} for _ in names]
    for index in rare:
        classes[index] = {0, 1}  # none is held back: the nearest one is moved
    for index in early:
        classes[index] = {0, 2}  # all are held back
    last = max(early, key=lambda index: number(names[index]))
    expected = {names[index] for index in inside} - {names[last]} | {names[rare[0]]}
    assert held(names, classes) == expected
    assert low in inside
    assert high in outside


@pytest.mark.parametrize("classes", [[{0}], [{0}, {1}], [set()]])
def test_what_cannot_be_held_back_is_refused(classes: Sets) -> None:
    with pytest.raises(DataError, match=r"a\.json: of its \d images?, none can be held back .*data\.val=null"):
        held([f"{index}.png" for index in range(len(classes))], classes, fraction=0.9)


# --- the same everywhere ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty generated images in one file, with keys that only the file's owner knows."""
    folder = tmp_path_factory.mktemp("coco")
    write_shapes(folder, train=30, val=1)
    path = folder / "annotations/train.json"
    tree = json.loads(path.read_text())
    tree |= {"info": {"year": 2024}, "licenses": [{"id": 5, "name": "ö"}]}
    tree["categories"].reverse()
    for row in tree["annotations"]:
        row["extra"] = [1.0, None]
    path.write_text(json.dumps(tree))
    return folder


def test_training_the_doctor_and_the_command_agree(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = coco / "annotations/train.json"
    split = {"annotations": str(path), "images": f"{coco}/images"}
    config = load_config("quickstart.yaml", ["data.val=null", "data.val_share=0.3", "seed=3"]).data
    data = DataConfig(train=split, val=config.val, val_share=config.val_share)
    parts = [open_dataset(data, name, Transform(data.resize), seed=3) for name in ("train", "val")]
    files = [[part.annotations.file_name(index) for index in range(len(part))] for part in parts]
    assert len(files[0]) + len(files[1]) == 30
    assert 3 < len(files[1]) < 16

    assert run_command("split", [str(path), "--val", "0.3", "--seed", "3", "--output", f"{tmp_path}/new/x"]) == 0
    said = capsys.readouterr().out
    trees = [json.loads((tmp_path / f"new/x/{name}.json").read_text()) for name in ("train", "val")]
    assert [[image["file_name"] for image in tree["images"]] for tree in trees] == files
    whole = json.loads(path.read_text())
    for key in ("images", "annotations"):
        rows = trees[0].pop(key) + trees[1].pop(key)
        assert sorted(rows, key=lambda row: row["id"]) == sorted(whole.pop(key), key=lambda row: row["id"])
    assert trees == [whole, whole]
    assert [line.split()[1] for line in said.splitlines()[1:3]] == [str(len(own)) for own in files]
    assert run_command("split", [str(path), "--val", "1", "--output", str(tmp_path)]) == 2
    assert "error: command line: --val: '1' is not a number between 0 and 1" in capsys.readouterr().err
    before = (tmp_path / "new/x/train.json").read_bytes()
    assert run_command("split", [str(path), "--output", f"{tmp_path}/new/x"]) == 2
    assert "train.json: exists already" in capsys.readouterr().err
    assert (tmp_path / "new/x/train.json").read_bytes() == before

    lenient = hold_back_val(read_boxes("train", Source(path, coco / "images")), 0.3, seed=3)
    for own, strict in zip(lenient, parts, strict=True):
        assert own.files == [strict.annotations.file_name(index) for index in range(len(strict))]
        assert sorted(own.annotation_ids.tolist()) == sorted(strict.annotations.annotation_ids.tolist())
        ids = {int(row): int(own.image_ids[image]) for row, image in zip(own.annotation_ids, own.image, strict=True)}
        images = strict.annotations.image_ids.select(strict.annotations.image_index()).tolist()
        assert ids == dict(zip(strict.annotations.annotation_ids.tolist(), images, strict=True))
    assert examine(lenient, Settings(), True).count("error") == 0
    (same,) = hold_back_val(
        read_boxes("train", Source(path, coco / "images")).select("train", np.arange(30) < 1), 0.3, 3
    )
    assert [finding.check for finding in same.faults] == ["split-impossible"]


def test_classes_of_folders_are_held_back_by_the_same_rule(colors: Path) -> None:
    root = colors / "train"
    config = Config(task="classification", data=DataConfig(train={"images": str(root)}, val=None, val_share=0.3))
    names = [file.decode() for file in read_folders(root, None).files]
    expected = held(names, [{sorted(["blue", "green", "red"]).index(name.split("/")[0])} for name in names], 0.3)
    config = config.model_copy(update={"model": config.model.model_copy(update={"head": {"name": "pooled"}})})
    assert {file.decode() for file in open_classes(config, "val").labelled.files} == expected
    assert set(hold_back_val(read_labelled("train", None, root, None, multi_label=False), 0.3, 0)[1].files) == expected


def test_other_splits_with_a_share_are_refused() -> None:
    for data in ({"val": {"images": "x"}}, {"val": {"annotations": "x"}}):
        with pytest.raises(ConfigError, match=r"holds back a part of data\.train; data\.val\.\w+ is given too; set"):
            open_dataset(DataConfig(**data, val_share=0.2), "val", Transform(DataConfig().resize))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_nothing_to_evaluate_on_names_the_three_ways(coco: Path) -> None:
    train = {"annotations": f"{coco}/annotations/train.json", "images": f"{coco}/images"}
    with pytest.raises(DataError) as caught:
        open_dataset(DataConfig(train=train), "val", Transform(DataConfig().resize))
    for way in ("data.val.annotations=PATH", "data.val_share=0.2", "data.val=null"):
        assert way in str(caught.value)


def test_a_run_without_evaluation(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its result is last.pt, with the averaged weights; it infers, and evaluates on what is given."""
    data = [f"data.train.annotations={coco}/annotations/train.json", f"data.train.images={coco}/images"]
    run = ["--config", "quickstart.yaml", "--runs", str(tmp_path), "--name", "x", *TINY, *data, "data.val=null"]
    assert run_command("train", [*run, "train.steps=3"]) == 0
    last = tmp_path / "x/last.pt"
    assert f"finished without evaluation (data.val is null); the result is: {last}\n" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "x").glob("*.*")) == [
        "config.yaml", "environment.json", "first_batch.jpg", "last.pt", "metrics.jsonl",
    ]  # fmt: skip
    content = read_checkpoint(last)
    assert (content["step"], content["evaluated_step"]) == (3, 0)
    assert content["ema_updates"] == 3
    assert run_command("train", [*run, "train.steps=4", "--resume"]) == 0
    assert read_checkpoint(last)["step"] == 4

    (tmp_path / "images").mkdir()
    shutil.copy(next((coco / "images").iterdir()), tmp_path / "images")
    infer = ["--checkpoint", str(last), "--input", f"{tmp_path}/images", "--output", f"{tmp_path}/o", "--workers", "0"]
    assert run_command("infer", infer) == 0
    capsys.readouterr()
    assert run_command("evaluate", ["--checkpoint", str(last)]) == 2
    assert capsys.readouterr().err == (
        f"error: {last}: names no data of its own to evaluate on; give --annotations and --images\n"
    )
    given = ["--annotations", f"{coco}/annotations/val.json", "--images", f"{coco}/images"]
    assert run_command("evaluate", ["--checkpoint", str(last), *given, "--json"]) == 0
    assert "AP50" in json.loads(capsys.readouterr().out)


def test_a_share_is_evaluated_and_not_trained_on(coco: Path, tmp_path: Path) -> None:
    data = [f"data.train.annotations={coco}/annotations/train.json", f"data.train.images={coco}/images"]
    config = load_config("quickstart.yaml", [*TINY, *data, "data.val=null", "data.val_share=0.3", "train.steps=1"])
    run = RunFolder(tmp_path / "run")
    assert fit(config, run, torch.device("cpu"))
    objects = sum(row["objects"] for row in json.loads(run.results.read_text())["per_class"])
    val = open_dataset(config.data, "val", Transform(config.data.resize), seed=config.seed)
    assert objects == len(val.annotations.labels) > 0
    assert read_checkpoint(run.last)["num_images"] == 30 - len(val)


def test_runs_that_held_back_other_images_are_refused() -> None:
    """Version 0.1 held back by another rule: its images to evaluate on are not those of today."""
    old: dict[str, Any] = {"config": {"data": {"val_share": 0.2}}}
    with pytest.raises(ConfigError, match=r"x\.pt: is of an older version, whose data\.val_share=0\.2"):
        check_val_share(old, "x.pt")
    for data in ({"val_share": None}, {"val_share": 0.2, "exif": "auto"}):
        check_val_share({"config": {"data": data}}, "x.pt")


# --- groups, test parts and folds -------------------------------------------------------------------------------------


def test_images_are_grouped_by_their_names() -> None:
    names = ["v1_f1.png", "v2_f1.png", "v1_f2.png", "other.png", "x/v1_f3.png"]
    path = Path("a.json")
    assert [of.tolist() for _, of in [group(path, names, None)]] == [[0, 1, 2, 3, 4]]
    assert group(path, names, None)[0] == [name.encode() for name in names]  # so that groups of one change nothing
    assert group(path, names, r"(v\d)_f")[1].tolist() == [0, 1, 0, 2, 0]
    assert group(path, names, r"^(.*)_f(\d)")[1].tolist() == [0, 1, 2, 3, 4]
    assert group(path, names, r"v\d")[1].tolist() == [0, 1, 0, 2, 0]  # without a group: the whole match
    with pytest.raises(ConfigError, match=r"a\.json: no file name matches 'z\+' of --group; names are like v1_f1\.png"):
        group(path, names, "z+")
    with pytest.raises(ConfigError, match=r"--group: '\(' is not a regular expression"):
        group(path, names, "(")


@given(sets, st.integers(0, 5))
def test_a_test_part_leaves_val_as_it_is(classes: Sets, seed: int) -> None:
    names = [f"{index}.png" for index in range(len(classes))]
    image = np.array([index for index, own in enumerate(classes) for _ in own], dtype=np.int64)
    label = np.array([label for own in classes for label in sorted(own)], dtype=np.int64)
    given = Path("a.json"), [name.encode() for name in names], image, label
    try:
        is_val = hold_back(*given, 0.2, seed)
        part = split_parts(*given, 0.2, 0.3, seed)
    except DataError:
        return
    np.testing.assert_array_equal(part == 1, is_val)
    assert {0, 1, 2} == set(part.tolist())
    in_train = set(label[(part == 0)[image]].tolist())
    assert in_train == set(label.tolist())  # everything can be learnt


def test_fractions_of_three_parts() -> None:
    names = [b"%d" % index for index in range(4000)]
    nothing = np.empty(0, dtype=np.int64)
    part = split_parts(Path("a.json"), names, nothing, nothing, 0.2, 0.1, seed=0)
    assert (np.bincount(part) / 4000).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_folds_are_alike_in_size_and_classes() -> None:
    """60 groups of 1 to 3 images, a class in all, one in every third, one in five and one in a single group."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 4, 60)
    members = {0: range(60), 1: range(0, 60, 3), 2: range(7, 12), 3: [20]}
    label = np.array([own for own, groups in members.items() for _ in groups])
    image = np.array([index for groups in members.values() for index in groups])
    names = [b"%d" % index for index in range(60)]
    fold = split_folds(Path("a.json"), names, sizes, image, label, 5, seed=0)
    assert {own: sorted(np.bincount(fold[list(groups)], minlength=5)) for own, groups in members.items()} == {
        0: [12] * 5,
        1: [4] * 5,
        2: [1] * 5,
        3: [0, 0, 0, 0, 1],
    }
    assert np.ptp(np.bincount(fold, weights=sizes)) <= 6
    order = rng.permutation(60)  # nor does it matter in which order the images are listed
    other = split_folds(
        Path("a.json"), [names[own] for own in order], sizes[order], np.argsort(order)[image], label, 5, 0
    )
    np.testing.assert_array_equal(other, fold[order])
    assert (split_folds(Path("a.json"), names, sizes, image, label, 5, seed=1) != fold).any()
    with pytest.raises(DataError, match="4 images cannot make 5 folds"):
        split_folds(Path("a.json"), names[:4], sizes[:4], image[:0], label[:0], 5, 0)
