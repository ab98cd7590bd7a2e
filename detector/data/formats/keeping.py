"""What was read from many label files, kept in one file of tensors: they are read again only once something changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from detector.data.formats.building import Source, numbered_rows
from detector.data.formats.columns import Rows, Texts
from detector.errors import ConfigError, StorageError, WeightsError
from detector.structures import Category
from detector.system.atomic import atomic_write, make_folder
from detector.system.tensors import read_file

VERSION = 3  # raised with every change to what a reader makes of the same files
COLUMNS = ("heights", "widths", "image", "label", "boxes_xywh", "areas", "is_crowd")


def kept_rows(folder: Path, source: Source, state: Iterable[object], read: Callable[[], Rows]) -> Rows:
    """The columns that ``folder`` keeps of a source, if its ``state`` is still the same, or else those of ``read``.

    ``read`` raises for every fault. A folder that cannot be written keeps nothing.
    """
    absolute = os.path.abspath(source.path)  # noqa: PTH100 (links are the user's own)
    path = folder / f"{_digest([absolute, source])[:16]}.pt"
    now = _digest([VERSION, *state])
    with contextlib.suppress(WeightsError, KeyError, TypeError):
        kept = read_file(path)
        if kept["state"] == now:
            return numbered_rows(
                source.path,
                [Category(*category) for category in kept["categories"]],
                Texts(kept["names"].numpy(), kept["name_ends"].numpy()),
                {key: kept[key].numpy() for key in COLUMNS},
                Counter(kept["notes"]),
                Path(kept["root"]),
                kept["form"],
            )
    rows = read()
    columns = {"names": rows.names.data, "name_ends": rows.names.ends} | {key: getattr(rows, key) for key in COLUMNS}
    content = {
        "state": now,
        "categories": [tuple(category) for category in rows.categories],
        "notes": dict(rows.notes),
        "root": str(rows.root),
        "form": rows.form,
        **{key: torch.from_numpy(column) for key, column in columns.items()},
    }
    with contextlib.suppress(ConfigError, StorageError):
        make_folder(folder)
        with atomic_write(path, "wb") as file:
            torch.save(content, file)
    return rows


def _digest(parts: Iterable[object]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{part!r}\n".encode())
    return whole.hexdigest()
