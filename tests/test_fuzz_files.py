"""Configs, checkpoints and CSV files from anywhere: taken, or refused in one line; nothing in them runs."""

from __future__ import annotations

import copy
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import mutate, survive
from networks import MAX_IOU
from safetensors.torch import save_file
from torch import Tensor

from detector.checkpoints.checkpoint import load_model, read_checkpoint, read_progress, save_checkpoint
from detector.checkpoints.opening import open_checkpoint
from detector.config.loader import LARGEST_FILE, MOST_ERRORS, load_config
from detector.data.formats.class_folders import read_csv, read_folders
from detector.errors import ConfigError, DataError, WeightsError
from detector.models import build_model
from detector.structures import Category
from detector.system.tensors import read_file

REPOSITORY = Path(__file__).resolve().parent.parent

# --- YAML -------------------------------------------------------------------------------------------------------------


def error_of(path: Path, content: str | bytes, overrides: tuple[str, ...] = ()) -> list[str]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", ["quickstart.yaml", "retinanet_r50_fpn_v2.yaml", "classify_vgg16_r50_fused.yaml"])
def test_a_damaged_config_is_read_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load_config(path)

    survive(f"yaml/{name}", (REPOSITORY / "configs" / name).read_bytes(), 60, read)


OVERRIDES = ["train.optimizer={name: sgd, lr: 1.0e-3}", "model.anchors.levels={3: {scales: [1.0, 2.0]}}"]
OVERRIDES += ["data.classes=[a, 'b', \"c\"]", "model.pyramid.branches=[vgg16, {name: resnet50}]"]


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_damaged_override_is_taken_or_refused(override: str) -> None:
    survive(
        f"yaml/{override}",
        override.encode(),
        80,
        lambda data: load_config("retinanet_r50_fpn.yaml", [data.decode(errors="surrogateescape")]),
    )


def doublings(first: str, other: Callable[[str], str], times: int = 40) -> str:
    """Each line holds the one before several times: a kilobyte that means 9^40 values."""
    names = [f"a{number}" for number in range(times)]
    pairs = pairwise(names)
    return f"a0: &a0 {first}\n" + "".join(f"{name}: &{name} {other('*' + before)}\n" for before, name in pairs)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (doublings("[x]", lambda name: f"[{', '.join([name] * 9)}]"), "its aliases expand to "),
        (doublings("{x: 1}", lambda name: f"{{a: {name}, b: {name}, c: {name}}}"), "its aliases expand to "),
        ("data: &a {b: *a}", "an alias is inside the value that it names"),
        ("data: &a [*a]", "an alias is inside the value that it names"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("{a: " * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("seed: \0", "special characters are not allowed"),
        ("#" * LARGEST_FILE + "#", "has 1,048,577 bytes; a config has at most 1,048,576"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "not UTF-8 text"),
        ("seed: " + "9" * 6000, "Exceeds the limit"),
        ("model: {anchors: {levels: {1000000000000: {}}}}", "less than or equal to 7"),
        ("seed: [" + "1, " * 20_000 + "]", "it is [1, 1, 1, 1, 1, 1, ...]"),
        ("train: {epochs: yes}", "train.epochs: must be a number; it is true"),
        (f"seed: {2**64}", "less than 9223372036854775808"),
        ("model: {in_channels: 1000000000}", "less than or equal to 4096"),
        ("base: " + "x" * 5000, "no such config file"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "bytes",
)
def test_what_would_take_all_time_and_memory_takes_none(content: str | bytes, words: str, tmp_path: Path) -> None:
    lines = error_of(tmp_path / "x.yaml", content)
    assert words in lines[0]
    assert len(lines) == 1
    assert len(lines[0]) < 300 or words == "no such config file"


def test_not_every_one_of_a_thousand_errors_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    lines = error_of(path, "".join(f"key{number}: 1\n" for number in range(1000)))
    assert lines[0].startswith(f"{path}:1: key0: unknown key; ")
    assert lines[MOST_ERRORS:] == [f"{path}: {1000 - MOST_ERRORS} more errors like these"]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/apply:pathlib.Path.touch"])
def test_a_tag_builds_no_object(tag: str, tmp_path: Path) -> None:
    proof = tmp_path / "was_here"
    lines = error_of(tmp_path / "x.yaml", f"seed: {tag} ['touch {proof}']")
    assert lines[0].startswith(f"{tmp_path / 'x.yaml'}:1: not valid YAML: could not determine a constructor for")
    for override in (f"seed={tag} ['touch {proof}']", f"seed: {tag}", "seed=&a [*a]", "seed=" + "[" * 5000):
        (line,) = error_of(tmp_path / "x.yaml", "", (override,))
        assert line.startswith("command line: seed")
        assert len(line) < 250
    assert not proof.exists()


def test_a_key_twice_in_an_override(tmp_path: Path) -> None:
    (line,) = error_of(tmp_path / "x.yaml", "", ("data={workers: 1, workers: 2}",))
    assert line.startswith("command line:1: data.workers: is duplicated")


# --- checkpoints ------------------------------------------------------------------------------------------------------

TINY = ["model.backbone={name: resnet10, norm: bn}", "model.fpn={levels: [3, 4], channels: 8}"]
TINY += ["model.head={num_convs: 1}"]
WEIGHT = "head.cls_output.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model of two classes."""
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    config = load_config(MAX_IOU, TINY)
    save_checkpoint(
        path, config, [Category(1, "a"), Category(7, "b")], {"model": build_model(config.model, 2).state_dict()}
    )
    return path


@pytest.fixture
def content(whole: Path) -> dict[str, Any]:
    return copy.deepcopy(torch.load(whole, weights_only=True))


def refusal(content: Any, path: Path) -> str:
    torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        load_model(open_checkpoint(path), path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < 400
    return said


STATE = {f"layer{row}.weight": torch.arange(12.0).reshape(3, 4) + row for row in range(3)}


def save_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_pickle(state: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {name: tensor.numpy() for name, tensor in state.items()}}))


KINDS: dict[str, Callable[[Any, Path], object]] = {
    "w.pth": torch.save,
    "old.pth": save_legacy,
    "w.safetensors": save_file,
    "w.pkl": save_pickle,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_of_tensors_is_read_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    KINDS[name](STATE, path)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_file(path)

    _, refused = survive(f"weights/{name}", path.read_bytes(), 300, read)
    assert refused > 50


def test_a_checkpoint_cut_off_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    data, path = whole.read_bytes(), tmp_path / "last.pt"
    rng = random.Random(0)
    for length in [0, 1, *sorted(rng.randrange(len(data)) for _ in range(30)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"last\.pt: ") as caught:
            read_progress(path, tmp_path / "best.pt")
        assert str(caught.value).endswith("; there is no best.pt either; start another run with --name")
    path.with_name("best.pt").touch()
    with pytest.raises(
        WeightsError, match=r"start another run from the best epoch's weights with --init-from .*best\.pt"
    ):
        read_progress(path, tmp_path / "best.pt")


def test_a_damaged_checkpoint_is_loaded_or_refused(whole: Path, tmp_path: Path) -> None:
    """The pickle inside, which says what everything is; the weights around it are numbers whatever they are."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(whole) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))

    def read(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for entry, value in entries.items():
                archive.writestr(entry, data if entry == name else value)
        read_checkpoint(path)

    survive("checkpoint", entries[name], 100, read)


NO_PARTS: list[tuple[str, Any]] = [
    *(("format", value) for value in (torch.ones(3), [1], "1", True, 2)),
    *(("config", value) for value in (3, "x", [], {"a": 1}, {1: 2}, torch.ones(2), {"seed": {"a": [1] * 9999}})),
    *(("categories", value) for value in (3, "x", [], {}, [1], [{"id": 1}], torch.ones(2))),
    *(("categories", [{"id": 1, "name": "a"}, row]) for row in ({"id": 1, "name": "b"}, {"id": True, "name": "b"})),
    *(("categories", [{"id": 1, "name": "a"}, row]) for row in ({"id": 1.5, "name": "b"}, {"id": 2, "name": 3})),
    *(("categories", [{"id": 1, "name": "a"}, row]) for row in ({"id": "1", "name": "b"}, {"id": "", "name": "b"})),
    ("categories", [{"id": 1, "name": "a", "x": 1}] * 2),
    ("categories", [{"id": 1, "name": "a"}]),
    *((part, value) for part in ("model", "ema") for value in (3, [], {"a": 1}, {1: torch.ones(1)}, torch.ones(2))),
]


def test_a_checkpoint_with_parts_of_other_kinds(content: dict[str, Any], tmp_path: Path) -> None:
    for part, value in NO_PARTS:
        refusal({**content, part: value}, tmp_path / "x.pt")
    for part in ("config", "categories", "model"):
        assert part in refusal({key: value for key, value in content.items() if key != part}, tmp_path / "x.pt")


def test_a_config_that_asks_for_more_than_the_file_has(content: dict[str, Any], tmp_path: Path) -> None:
    for keys, value in {
        ("fpn", "channels"): 2**30,
        ("head", "channels"): 100_000,
        ("head", "num_convs"): 10**9,
        ("in_channels",): 10**9,
        ("backbone", "name"): "resnet152",
        ("fpn", "levels"): [3, 4, 5],
    }.items():
        config = copy.deepcopy(content["config"])
        section = config["model"]
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        refusal({**content, "config": config}, tmp_path / "x.pt")


def changes(weight: Tensor) -> dict[str, tuple[Any, str]]:
    not_finite = weight.clone().flatten()
    not_finite[5] = torch.inf
    return {
        "nan": (torch.full_like(weight, torch.nan), "has 1,296 of 1,296 values that are not finite"),
        "inf": (not_finite.view_as(weight), "has 1 of 1,296 values that are not finite"),
        "int": (weight.int(), "is of torch.int32 in the checkpoint, torch.float32 in the model"),
        "complex": (weight.to(torch.complex64), "is not a dense tensor of numbers"),
        "sparse": (weight.to_sparse(), "is not a dense tensor of numbers"),
        "meta": (weight.to("meta"), "is not a dense tensor of numbers"),
        "quantised": (torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "is not a dense tensor of numbers"),
        "8 bits": (weight.to(torch.float8_e4m3fn), "weights have 16 bits or more"),
        "repeated": (torch.zeros(1).expand(weight.shape), "made of 4 bytes that repeat"),
        "shape": (weight[:1], "of another architecture or class count"),
        "scalar": (torch.tensor(1.0), "of another architecture or class count"),
        "text": ("x", "its model is not a state dict"),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_are_no_weights_are_named(content: dict[str, Any], tmp_path: Path) -> None:
    for change, words in changes(content["model"][WEIGHT]).values():
        said = refusal({**content, "model": {**content["model"], WEIGHT: change}}, tmp_path / "x.pt")
        assert words in said
        assert WEIGHT in said or change == "x"
    for other in ({**content["model"], "more": torch.ones(1)}, {WEIGHT: content["model"][WEIGHT]}):
        assert "of another architecture" in refusal({**content, "model": other}, tmp_path / "x.pt")


class Marker:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_no_place_of_a_checkpoint_runs_code(content: dict[str, Any], tmp_path: Path) -> None:
    proof = tmp_path / "was_here"
    for part in (*content, "optimizer", "extra"):
        for save in (torch.save, save_legacy):
            save({**content, part: Marker(proof)}, tmp_path / "x.pt")
            with pytest.raises(WeightsError, match=r"holds .*mkdir, which is not a tensor and is not loaded"):
                open_checkpoint(tmp_path / "x.pt")
    assert not proof.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)  # it is a trap
    assert proof.exists()


def test_a_zip_whose_entries_overlap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(1, 2000):  # all of them are the first one's bytes
            entry = copy.copy(first)
            entry.filename = f"archive/data/{number}"
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True
    with pytest.raises(WeightsError, match=r"claims to hold 200,000,000 bytes, and has \d+,\d+: cut off, or malicious"):
        read_file(path)


def test_dicts_that_double_take_a_line_to_refuse(tmp_path: Path) -> None:
    value: dict[str, Any] = {"x": 1}
    for _ in range(60):
        value = {"a": value, "b": value}
    for name, save in (("x.pkl", lambda path: path.write_bytes(pickle.dumps({"model": value}))),):
        save(tmp_path / name)
        with pytest.raises(WeightsError, match="is neither a checkpoint nor a state dict"):
            open_checkpoint(tmp_path / name)


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_damaged_csv_file_is_read_or_refused(multi_label: bool, tmp_path: Path) -> None:
    rows = [
        f"{name}.png,{label}"
        for name, label in zip("abcdéf", ("cat", "dog", '"a ""cow"""', "cat", "dog", "cat"), strict=True)
    ]
    for name in "abcdéf":
        (tmp_path / f"{name}.png").touch()
    path = tmp_path / "x.csv"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        labelled = read_csv(path, tmp_path, None, multi_label)
        assert len(labelled.files) == len(labelled.first) - 1

    taken, refused = survive(f"csv/{multi_label}", "\n".join(["path,label", *rows, ""]).encode(), 500, read)
    assert min(taken, refused) > 30


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\na.png,caf\xe9\n".encode("latin-1"), "is not UTF-8 text"),
        ("path,label\na.png,x\n".encode("utf-16"), "is not UTF-8 text"),
        (b"path,label\na.png,\0\n", "x.csv"),
        (b"path,label\na\0.png,x\n", "x.csv"),
        (b"path,label\n" + b"x" * 200_000 + b",x\n", "field larger than field limit"),
        (b'path,label\n"a.png,x\n', "is not a CSV file: unexpected end of data"),
        (b"", "has no rows"),
        (b"path,label\n" + b"y" * 5000 + b".png,x\n", "does not exist"),
    ],
    ids=lambda value: value[:16] if isinstance(value, bytes) else "",
)
def test_a_csv_file_that_is_none(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "x.csv").write_bytes(content)
    try:
        read_csv(tmp_path / "x.csv", tmp_path, None, multi_label=False)
        assert b"a.png,\0" in content  # from Python 3.11 on, a NUL is a character of a label
    except DataError as error:
        assert words in str(error)
        assert str(error).startswith(f"{tmp_path}/x.csv")


def test_a_mutation_is_made_again_from_its_seed() -> None:
    data = bytes(range(200))
    made = [mutate(data, random.Random(f"a/0/{number}")) for number in range(200)]
    assert made == [mutate(data, random.Random(f"a/0/{number}")) for number in range(200)]
    assert len(set(made)) > 190
    assert data not in made[:50]


def test_a_folder_whose_name_is_no_text_is_no_class(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(DataError, match="the folder's name is not UTF-8"):
        read_folders(tmp_path, None)
