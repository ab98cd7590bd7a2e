"""Files of tensors from anywhere: what may be in them, what is refused in one line, and that nothing in them runs."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_V2_Weights, RetinaNet_ResNet50_FPN_Weights

from detector.errors import WeightsError
from detector.system.tensors import is_state_dict, read_file, resolve

State = dict[str, Tensor]


def small_state() -> State:
    generator = torch.Generator().manual_seed(0)
    state = {f"layer.{row}.weight": torch.randn(3, 2, generator=generator) for row in range(3)}
    return {**state, "count": torch.tensor(7), "half": torch.ones(2, dtype=torch.float16)}


def as_arrays(state: State) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def save_pickle(value: Any, path: Path, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps(value, protocol=protocol))


WRITERS: dict[str, Callable[[State, Path], object]] = {
    "w.pth": lambda state, path: torch.save(state, path),
    "w.pt": lambda state, path: torch.save(state, path),
    "old.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "w.pkl": lambda state, path: save_pickle(as_arrays(state), path),
    "new.pkl": lambda state, path: save_pickle(as_arrays(state), path, protocol=5),
    "torch.pkl": lambda state, path: torch.save(state, path),
    "w.safetensors": lambda state, path: save_file(state, path),
}


def assert_refused(path: Path, *words: str) -> str:
    """In one line that names the file."""
    with pytest.raises(WeightsError) as caught:
        read_file(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < len(str(path)) + 300
    for word in words:
        assert word in said
    return said


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_tensors(name: str, tmp_path: Path) -> None:
    state = small_state()
    WRITERS[name](state, tmp_path / name)
    read = read_file(tmp_path / name)
    assert is_state_dict(read)
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert (read[key].dtype, read[key].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[key], tensor)


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_file_has_beside_arrays(protocol: int, tmp_path: Path) -> None:
    """As in Detectron2's files: texts, numbers of Python and numpy, lists, and what a later protocol makes of them."""
    value = {
        "model": collections.OrderedDict(weight=np.arange(6, dtype=np.float32).reshape(2, 3).T),
        "__author__": "Détectron2 Model Zoo",
        "iteration": np.int64(89999),
        "lr": np.float32(0.25),
        "milestones": [60000, 80000.5, None, True, (1, 2)],
        "raw": b"\x00\xff",
    }
    save_pickle(value, tmp_path / "w.pkl", protocol)
    read = read_file(tmp_path / "w.pkl")
    assert torch.equal(read["model"]["weight"], torch.tensor([[0.0, 3], [1, 4], [2, 5]]))
    assert read["__author__"] == value["__author__"]
    assert (read["iteration"], read["lr"]) == (89999, 0.25)
    assert read["milestones"] == value["milestones"]
    assert read["raw"] == b"\x00\xff"


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    # {'w': 'caf\xe9'} by Python 2: byte strings, which its arrays hold their numbers in too.
    (tmp_path / "w.pkl").write_bytes(b"(dp0\nS'w'\np1\nS'caf\\xe9'\np2\ns.")
    assert read_file(tmp_path / "w.pkl") == {"w": "café"}


def test_the_modules_of_numpy_1_and_2(tmp_path: Path) -> None:
    content = pickle.dumps({"w": np.arange(3.0, dtype=np.float32)}, protocol=2)
    names = [b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"]
    present = next(name for name in names if name in content)
    for name in names:
        (tmp_path / "w.pkl").write_bytes(content.replace(present, name))
        assert read_file(tmp_path / "w.pkl")["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": torch.zeros(1)}, True),
        ({}, False),
        ({"a": torch.zeros(1), "b": 1}, False),
        ([torch.zeros(1)], False),
        (None, False),
    ],
    ids=str,
)
def test_what_is_a_state_dict(value: Any, expected: bool) -> None:
    assert is_state_dict(value) == expected


# --- what runs nothing ------------------------------------------------------------------------------------------------


class Command:
    """What an attacker puts into a file: unpickled, it runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


class Evaluated(Command):
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"open({str(self.target)!r}, 'w').close()",)


class Opened(Command):
    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.target), "w")


WRAPPERS: dict[str, Callable[[State, Any], Any]] = {
    "alone": lambda state, bad: bad,
    "beside": lambda state, bad: {**state, "extra": bad},
    "nested": lambda state, bad: {"model": state, "meta": {"hooks": [{"a": (1, bad)}]}},
    "as a key": lambda state, bad: {"model": state, (1, bad): 2},
    "at the end": lambda state, bad: [state, bad],
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "old.pth", "w.pkl", "zip.pkl", "w.bin"])
@pytest.mark.parametrize("kind", [Command, Evaluated, Opened])
def test_a_file_runs_no_command(kind: type[Command], name: str, wrapper: str, tmp_path: Path) -> None:
    target = tmp_path / "was_here"
    state: Any = small_state()
    bad = kind(target)
    if name == "w.pkl":
        save_pickle(WRAPPERS[wrapper](as_arrays(state), bad), tmp_path / name)
    else:
        torch.save(WRAPPERS[wrapper](state, bad), tmp_path / name, _use_new_zipfile_serialization=name != "old.pth")
    assert_refused(tmp_path / name)
    assert not target.exists()
    # The file does what it was made for where it is unpickled without care.
    if name == "w.pkl":
        pickle.loads((tmp_path / name).read_bytes())
        assert target.exists()


@pytest.mark.parametrize("name", ["w.pkl", "w.pth", "old.pth"])
@pytest.mark.parametrize(("kind", "called"), [(Command, "posix.system"), (Evaluated, "eval"), (Opened, "io.open")])
def test_what_a_file_asks_for_is_named(kind: type[Command], called: str, name: str, tmp_path: Path) -> None:
    value = {"model": {"w": kind(tmp_path / "was_here")}}
    if name == "w.pkl":
        save_pickle(value, tmp_path / name)
    else:
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=name != "old.pth")
    assert called in assert_refused(tmp_path / name)


@pytest.mark.parametrize(
    "line",
    [
        b"cposix\nsystem\n(S'touch %s'\ntR.",
        b"cbuiltins\neval\n(S'open(%r, chr(119))'\ntR.",
        b'c__builtin__\nexec\n(S\'open("%s", "w")\'\ntR.',
        b"(S'touch %s'\nios\nsystem\n.",  # the opcode that calls in one
        b"cnumpy\nload\n(S'%s'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'%s'\ntR.",
        b"ctorch\nload\n(S'%s'\ntR.",
        b"ccodecs\nopen\n(S'%s'\nS'w'\ntR.",
        b"c_codecs\ndecode\n(S'%s'\ntR.",
        b"cnumpy\nndarray.tofile\n(S'%s'\ntR.",
    ],
    ids=lambda line: line[:24].decode().replace("\n", " "),
)
def test_a_pickle_by_hand_runs_nothing(line: bytes, tmp_path: Path) -> None:
    target = tmp_path / "was_here"
    (tmp_path / "w.pkl").write_bytes(line % str(target).encode() if b"%s" in line else line)
    assert_refused(tmp_path / "w.pkl", "asks for ", "the file was not loaded")
    assert not target.exists()


def test_a_class_of_ours_is_not_asked_for(tmp_path: Path) -> None:
    """Not even imported: what a module does at import is code too."""
    (tmp_path / "w.pkl").write_bytes(b"\x80\x04cantigravity\nfly\n.")
    assert_refused(tmp_path / "w.pkl", "antigravity.fly")
    import sys

    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], dtype=object),
        np.array(["a", "b"]),
        np.array([b"a"]),
        np.array([1 + 2j]),
        np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        np.zeros(2, dtype="datetime64[s]"),
    ],
    ids=lambda array: str(array.dtype),
)
@pytest.mark.parametrize("is_nested", [True, False])
def test_arrays_that_cannot_be_tensors_are_refused(array: np.ndarray, is_nested: bool, tmp_path: Path) -> None:
    good = {"weight": np.zeros(2, dtype=np.float32)}
    save_pickle({"model": {**good, "bad": array}} if is_nested else {**good, "bad": array}, tmp_path / "w.pkl")
    assert_refused(tmp_path / "w.pkl", f"holds an array of {array.dtype}, which is not a tensor")


def test_an_array_of_objects_with_a_command_in_it(tmp_path: Path) -> None:
    target = tmp_path / "was_here"
    array = np.array([Command(target)], dtype=object)
    save_pickle({"model": {"w": array}}, tmp_path / "w.pkl")
    assert_refused(tmp_path / "w.pkl", "asks for posix.system")
    torch.save({"w": array}, tmp_path / "w.pth")
    assert_refused(tmp_path / "w.pth")
    assert not target.exists()


# --- what would grow, or is cut off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pth", "w.pkl"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_file_is_not_unpacked(method: int, name: str, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(4_000_000)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / name, "w", method) as bomb:
        for entry in whole.namelist():
            bomb.writestr(entry, whole.read(entry))
    assert (tmp_path / name).stat().st_size < 100_000
    assert_refused(tmp_path / name, "is compressed", "torch never compresses")


def test_one_compressed_entry_is_enough(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1_000_000), "v": torch.zeros(3)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "w.pth", "w") as bomb:
        for entry in whole.namelist():
            large = entry.endswith("data/0")
            bomb.writestr(entry, whole.read(entry), zipfile.ZIP_DEFLATED if large else zipfile.ZIP_STORED)
    assert_refused(tmp_path / "w.pth", "whole/data/0 is compressed", "for 4,000,000;")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.",  # bytes of which there are 2^60
        b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x.",  # a text of so many
        b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b"x.",
        b"\x80\x02cnumpy\nndarray\n(I1000000000\nI1000000000\nI1000000000\nttR.",
        b"\x80\x02cnumpy\nndarray\n((I1000000000\nI1000000000\ntI1000000000\ntR.",
    ],
    ids=["bytes", "text", "bytearray", "array", "array of tuple"],
)
def test_lengths_that_nobody_has_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(content)
    assert_refused(tmp_path / "w.pkl", "is not a file of tensors, or is cut off")


def test_a_dict_inside_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    save_pickle(loop, tmp_path / "w.pkl")
    assert_refused(tmp_path / "w.pkl", "is not a file of tensors, or is cut off")


@pytest.mark.parametrize("name", ["w.pkl", "new.pkl", "w.safetensors", "old.pth"])
def test_a_file_cut_off_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    WRITERS[name](small_state(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert 300 < len(content) < 5000
    for length in range(len(content)):
        (tmp_path / name).write_bytes(content[:length])
        assert_refused(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "torch.pkl"])
def test_a_zip_cut_off_is_refused(name: str, tmp_path: Path) -> None:
    WRITERS[name](small_state(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for length in [*range(40), *range(40, len(content), 37), *range(len(content) - 60, len(content))]:
        (tmp_path / name).write_bytes(content[:length])
        assert_refused(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ".pt", ""])
@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": [1, 2]}', b"<html>404</html>", b"\x80", b"\x00" * 100, b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18],
)
def test_what_is_not_a_file_of_tensors(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert_refused(path)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere.pth", "No such file")
    assert_refused(tmp_path / "nowhere.pkl", "No such file")
    assert_refused(tmp_path / "nowhere.safetensors")
    (tmp_path / "folder.pth").mkdir()
    assert_refused(tmp_path / "folder.pth", "is a folder; give a file")


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_a_path_and_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a file, 100 %.pth"
    path.write_bytes(b"")
    assert resolve(str(path)) == path
    assert resolve(path.as_uri()) == path
    assert "%20" in path.as_uri()
    monkeypatch.chdir(tmp_path)
    assert resolve(path.name) == Path(path.name)


ENUMS = [RetinaNet_ResNet50_FPN_Weights.COCO_V1, RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1]


@pytest.mark.parametrize("weights", ENUMS, ids=str)
def test_torchvisions_name_is_taken_from_the_cache(weights: Any, hub: Path) -> None:
    file = hub / weights.url.rpartition("/")[2]
    file.write_bytes(b"")
    assert resolve(str(weights)) == file
    assert resolve(weights.url) == file


@pytest.mark.parametrize("source", ["https://example.org/w.pth", "http://example.org/w.pth", *map(str, ENUMS)])
def test_without_a_network_it_says_what_to_put_where(source: str, hub: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        resolve(source)
    said = str(caught.value)
    url = source if "://" in source else next(weights.url for weights in ENUMS if str(weights) == source)
    assert said == (
        f"{url} cannot be downloaded (no network); download it elsewhere and put it into {hub}, or give the path of"
        " the file"
    )
    assert not list(hub.iterdir())


def test_a_download_is_kept(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, target: str) -> None:
        asked.append(url)
        Path(target).write_bytes(b"content")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert resolve("https://example.org/some/w.pth?download=1").read_bytes() == b"content"
    assert asked == ["https://example.org/some/w.pth?download=1"]
    assert [path.name for path in hub.iterdir()] == ["w.pth"]
    # A name out of a table of the caller's, and none of it.
    assert resolve("mine", known={"mine": "https://example.org/w.pth"}) == hub / "w.pth"
    assert resolve("yours", known={"mine": "https://example.org/w.pth"}) is None
    assert len(asked) == 1


@pytest.mark.parametrize(
    "source",
    ["", "nowhere.pth", "file:///nowhere/w.pth", "RetinaNet_ResNet50_FPN_Weights.COCO_V9", "A.B", "a.b.c", "a\0b"],
)
def test_what_is_nothing_known(source: str, hub: Path) -> None:
    assert resolve(source) is None


def test_a_name_too_long_for_a_file(hub: Path) -> None:
    assert resolve("x" * 300) is None
