"""Images and data sets by URL: the same results as from a folder, each file copied once, and one line for a fault."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from detector.__main__ import run_command
from detector.config.loader import load_config
from detector.config.schema import DataConfig
from detector.data import cache
from detector.data.cache import local_copy, local_split
from detector.data.detection import open_dataset
from detector.data.images import read_image
from detector.dev.stress import tiny_checkpoint
from detector.errors import DataError
from detector.inference.parts import Shard
from detector.inference.urls import find_url_images
from detector.tasks.detection import make_transform


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """fsspec's files in memory, none yet."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    cache.local_copy.cache_clear()
    yield fsspec.filesystem("memory")
    cache.local_copy.cache_clear()


@pytest.fixture(scope="module")
def images(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "deep").mkdir()
    for file in sorted((shapes / "images").glob("val_*.jpg"))[:3]:
        shutil.copy(file, folder / "deep")
    (folder / "broken.JPG").write_bytes(b"no image")
    (folder / "notes.txt").write_text("none either")
    return folder


def infer(folder: Path, given: str, output: str, *more: str) -> int:
    arguments = ["--checkpoint", str(folder / "tiny.pt"), "--input", given, "--output", str(folder / output)]
    low = ["model.predict.score_threshold=0.0", "model.predict.max_detections=3"]
    return run_command("infer", [*arguments, "--no-images", "--device", "cpu", *low, *more])


def test_a_url_is_predicted_as_a_folder_is(images: Path, tmp_path: Path, memory: MemoryFileSystem) -> None:
    """By processes, too, which are forked after the file system was used here."""
    tiny_checkpoint(tmp_path / "tiny.pt")
    memory.put(f"{images}/", "bucket/", recursive=True)
    assert infer(tmp_path, str(images), "here", "--workers", "0") == 1
    for workers in ("0", "2"):
        assert infer(tmp_path, "memory://bucket", f"there{workers}", "--workers", workers) == 1
        there = (tmp_path / f"there{workers}/predictions.json").read_text()
        assert there == (tmp_path / "here/predictions.json").read_text()
    (error,) = map(json.loads, (tmp_path / "there2/errors.jsonl").read_text().splitlines())
    assert error["error"].startswith("memory:///bucket/broken.JPG: is not an image")


def test_what_a_url_names(images: Path, memory: MemoryFileSystem) -> None:
    memory.put(f"{images}/", "bucket/", recursive=True)
    found = find_url_images("memory://bucket/")
    assert [found.name(index) for index in range(4)][:1] == ["broken.JPG"]
    assert found.note == "skipped: 1 .txt"
    assert len(find_url_images("memory://bucket/deep/*.jpg")) == 3
    one = find_url_images("memory://bucket/deep/" + found.name(1).removeprefix("deep/"))
    assert (len(one), str(one[0])) == (1, str(found[1]))
    shards = [Shard(index, 2).of(found) for index in (1, 2)]
    assert sum(map(len, shards)) == 4
    assert type(shards[0]) is type(found)
    memory.rm("bucket/broken.JPG")
    with pytest.raises(DataError, match=r"^memory:///bucket/broken.JPG: does not exist$"):
        found.read(0, read_image, (3, "auto", None))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/x", "s3://bucket/x: needs a plugin of fsspec that is not installed: Install s3fs"),
        ("nothing://x", "nothing://x: cannot be opened: Protocol not known: nothing; fsspec reads URLs such as s3://"),
        ("memory://empty", "memory://empty: has no images"),
    ],
)
def test_urls_that_cannot_be_read(
    url: str, said: str, tmp_path: Path, memory: MemoryFileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    if url.startswith("s3") and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    assert infer(tmp_path, url, "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_training_data_is_copied_once(
    shapes: Path, tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again what changed, or what a kill left undone; what is gone there goes here."""
    memory.put(f"{shapes}/", "bucket/set/", recursive=True)
    splits = {
        name: {"annotations": f"memory://bucket/set/annotations/{name}.json", "images": "memory://bucket/set/images"}
        for name in ("train", "val")
    }
    given = [f"data.{name}={json.dumps(split)}" for name, split in splits.items()]
    config = load_config("quickstart.yaml", [*given, f"data.cache={tmp_path}/cache"])
    data = open_dataset(config.data, "train", make_transform(config, "train"))
    there = sorted((shapes / "images").iterdir())
    copy = tmp_path / "cache/memory/bucket/set/images"
    assert [path.read_bytes() for path in sorted(copy.iterdir())] == [path.read_bytes() for path in there]
    assert len(data) == 12
    assert data[0, 0].image.shape[0] == 3

    fetched: list[str] = []
    real = MemoryFileSystem.get_file

    def get_file(self: Any, remote: str, local: str, **more: Any) -> None:
        fetched.append(remote.rpartition("/")[2])
        if remote.endswith(stop):
            raise ConnectionError("the store\nis away")
        real(self, remote, local, **more)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    stop = "nothing"

    def again() -> list[str]:
        local_copy.cache_clear()
        fetched.clear()
        assert local_copy("memory://bucket/set/images", tmp_path / "cache") == copy
        return sorted(fetched)

    assert again() == []
    first, second, third = (path.name for path in there[:3])
    memory.pipe(f"bucket/set/images/{first}", b"new")
    memory.rm(f"bucket/set/images/{second}")
    (copy / third).unlink()
    assert again() == [first, third]
    assert (copy / first).read_bytes() == b"new"
    assert not (copy / second).exists()

    memory.pipe(f"bucket/set/images/{first}", b"newer")
    stop = first
    with pytest.raises(DataError, match=f"{first}: cannot be read: ConnectionError: the store is away$"):
        again()
    assert (copy / first).read_bytes() == b"new"  # whole, and fetched again the next time
    stop = "nothing"
    assert again() == [first]
    assert not list(copy.glob("*.partial"))


def test_paths_stay_as_they_are_and_names_stay_inside(tmp_path: Path, memory: MemoryFileSystem) -> None:
    split = DataConfig().train.model_copy(update={"annotations": "a.json", "images": "images"})
    assert local_split(DataConfig(), split) == split
    memory.store["/bucket/../../x"] = fsspec.implementations.memory.MemoryFile(memory, "/bucket/../../x", b"1")
    with pytest.raises(DataError, match="leads out of the folder"):
        local_copy("memory://bucket", tmp_path)
