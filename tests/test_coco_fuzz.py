"""Annotation and results files from strangers: a thousand broken ones, each refused in one line or read whole.

Hypothesis draws the same cases in every run; a case that fails is printed, and shrunk.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.data.detection import apply_box_policy
from detector.data.formats.annotations import Annotations
from detector.data.formats.reading import read_annotations
from detector.errors import DataError
from detector.evaluation.coco import read_results

TREE: dict[str, Any] = {
    "info": {"year": 2017, "url": "x"},
    "images": [
        {"id": 7, "file_name": "a.png", "height": 50, "width": 100},
        {"id": 3, "file_name": "Ordner/ö.png", "height": 60, "width": 80, "license": 1},
    ],
    "annotations": [
        {"id": 11, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
        {"id": 12, "image_id": 3, "category_id": 2, "segmentation": [[20, 4, 40.5, 5, 30, 10]]},
        {
            "id": 13,
            "image_id": 7,
            "category_id": 2,
            "segmentation": {"counts": [1004, 6, 44, 6, 3940], "size": [50, 100]},
            "iscrowd": 1,
        },
    ],
    "categories": [{"id": 90, "name": "猫"}, {"id": 2, "name": "b"}],
}
RESULTS = [
    {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3.5, 4], "score": 0.25},
    {"image_id": 3, "category_id": 2, "bbox": [1, 2, 3.5, 4], "score": 1, "file_name": "Ordner/ö.png"},
]

numbers = st.sampled_from(
    [0, -1, 1, 2**31, 2**53 + 1, 2**63, 10**400, -0.0, 0.5, 1e-300, 1e308, float("nan"), float("inf")]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.integers(0, 100) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["counts", "size", "id"]), inner, max_size=2)
    ),
    max_leaves=6,
)
PIECES = [
    b"",
    b",",
    b":",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\",
    b"\\ud800",
    b"-",
    b"1e999",
    b"9" * 30,
    b"NaN",
    b"\0",
    b"\xff",
]
PIECES += [b'"id": 7', b"[" * 3000, b"null", b"\xef\xbb\xbf", b"0.1"]


def places(tree: Any, place: tuple = ()) -> list[tuple]:
    """Where something stands in ``tree``: keys and numbers from the outside in."""
    members = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [inner for key, value in members for inner in [(*place, key), *places(value, (*place, key))]]


def mutate_tree(data: st.DataObject, tree: Any) -> bytes:
    """One or two values are other ones, gone, or there twice."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 2))):
        *outer, key = data.draw(st.sampled_from(places(tree) or [("x",)]))
        holder = tree
        for step in outer:
            holder = holder[step]
        if not places(tree):
            break
        kind = data.draw(st.sampled_from(["other", "other", "gone", "twice"]))
        if kind == "gone":
            del holder[key]
        elif kind == "twice" and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = data.draw(values)
    return json.dumps(tree).encode()


def mutate_bytes(data: st.DataObject, tree: Any) -> bytes:
    """A piece of the file is cut out, and something else put there; or it ends early."""
    content = json.dumps(tree, indent=data.draw(st.sampled_from([None, 1]))).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 12, len(content))))
        content = content[:start] + data.draw(st.sampled_from(PIECES)) + content[end:]
    return content[: data.draw(st.integers(0, len(content)))] if data.draw(st.integers(0, 9)) == 0 else content


def one_line(error: DataError, path: Path) -> None:
    message = str(error)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert len(message) < 1000


def check_annotations(path: Path) -> None:
    try:
        notes = read_annotations(path)
    except DataError as error:
        one_line(error, path)
        return
    assert torch.isfinite(notes.boxes_xywh).all() and torch.isfinite(notes.areas).all()
    assert notes.first[0] == 0 and notes.first[-1] == len(notes.annotation_ids)
    assert ((notes.labels >= 0) & (notes.labels < len(notes.categories))).all()
    assert all(notes.file_name(index) for index in range(len(notes)))
    checked = apply_box_policy(notes, "clip")
    kept = checked.boxes[checked.is_kept]
    assert (kept[:, 2:] > kept[:, :2]).all()
    try:
        apply_box_policy(notes, "error")
    except DataError as error:
        one_line(error, path)


MUTATIONS = {"values": mutate_tree, "bytes": mutate_bytes}


@pytest.mark.parametrize("name", MUTATIONS)
def test_annotations_are_read_or_refused_in_one_line(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.json"

    @settings(max_examples=400)
    @given(data=st.data())
    def case(data: st.DataObject) -> None:
        path.write_bytes(MUTATIONS[name](data, TREE))
        check_annotations(path)

    case()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    path = tmp_path_factory.mktemp("truth") / "truth.json"
    path.write_text(json.dumps(TREE))
    return read_annotations(path)


@pytest.mark.parametrize("name", MUTATIONS)
def test_results_are_read_or_refused_in_one_line(
    name: str, truth: Annotations, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.json"

    @settings(max_examples=250)
    @given(data=st.data())
    def case(data: st.DataObject) -> None:
        path.write_bytes(MUTATIONS[name](data, RESULTS))
        try:
            rows, warnings = read_results(path, truth)
        except DataError as error:
            one_line(error, path)
        else:
            assert rows.shape[1] == 7 and np.isfinite(rows).all()
            assert np.isin(rows[:, [0, 6]], [0, 1]).all()
            assert all(len(f"{warning}\n".splitlines()) == 1 and len(warning) < 1000 for warning in warnings)

    case()


@pytest.mark.parametrize("read", [lambda path, truth: read_annotations(path), read_results], ids=["truth", "results"])
def test_every_truncation_is_refused(read: Callable[..., Any], truth: Annotations, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    content = json.dumps(RESULTS if read is read_results else TREE, indent=1).encode()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(DataError) as caught:
            read(path, truth)
        one_line(caught.value, path)
        assert f"{path}:" in str(caught.value) and ("not valid JSON" if end else "is empty") in str(caught.value)


def test_a_real_file_with_a_few_bytes_changed(shared: Path, tmp_path: Path) -> None:
    content = (shared / "data/bccd/annotations/val.json").read_bytes()
    path, rng = tmp_path / "x.json", np.random.default_rng(0)
    for _ in range(20):
        changed = bytearray(content)
        for place in rng.integers(len(changed), size=3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        check_annotations(path)
