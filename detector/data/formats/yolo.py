"""YOLO labels: a text file per image, beside it or in ``labels/``, with a row ``class cx cy w h`` per object.

The numbers are fractions of the image. A row with more than five numbers is a polygon (``class x y x y …``), whose
extent is the box. An image without a label file, or with an empty one, is a background image. Where the images are and
what the classes are called is said by a ``data.yaml``, of which nothing is downloaded or executed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detector.data.formats.building import LARGEST_TEXT, LISTED_AGAIN, PARTS, Builder, Source, read_text, stamp
from detector.data.formats.columns import Rows
from detector.data.formats.recognition import labels_folder, what_it_is
from detector.data.listing import list_images
from detector.data.names import ALLOW_OUTSIDE, Names, files_below, is_certain, leads_out
from detector.errors import DataError, counted, kind_of
from detector.structures import Category
from detector.system.json_stream import show, show_text

YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAME_FILES = ("classes.txt", "obj.names")
MARGIN = 0.01  # fraction of the image by which numbers may lie outside: they are clipped
MOST_CLASSES = 100_000


@dataclass
class _Layout:
    """Where the images of a part are, and the classes."""

    root: Path  # that names of images are relative to
    entries: list[str]  # folders, and lists of images
    names: list[str]  # of the classes
    said: str  # where the names come from
    box_columns: int | None = None  # numbers of a row that are the box, where key points follow
    notes: list[str] = field(default_factory=list)


def read(source: Source, is_strict: bool) -> Rows:
    """The images and boxes of a ``data.yaml``, a folder of images or a list of them."""
    layout = _layout(source)
    builder = Builder(source, is_strict)
    folders: dict[str, _Labels] = {}
    has_label = False
    for name, path, label_file in _labelled(layout, builder, folders):
        width, height = builder.size_of(Path(path))
        image = builder.add_image(name, width, height)
        if label_file is None:
            builder.notes["image{s} without a label file, as background"] += 1
            continue
        has_label = True
        for line, words, box in _boxes(label_file, len(layout.names), layout.box_columns):
            if words:
                builder.fault(label_file, line, words)
            elif width:
                _add(builder, image, box, width, height)
    if folders and not has_label:
        searched = ", ".join(labels.folder for labels in list(folders.values())[:3])
        raise DataError(
            f"{source.path}: none of the {len(builder.widths):,} images has a label file, which would be in {searched};"
            " check the folder: the last 'images' of its path becomes 'labels'"
        )
    builder.notes["label file{s} without an image, not used"] += _unused(layout, folders)
    folders.clear()  # the columns need the memory of the names
    categories = [Category(label, name) for label, name in enumerate(layout.names)]
    form = f"YOLO, {source.part}: {layout.said}"
    return builder.rows(categories, layout.root, "; ".join([form, *layout.notes]))


def state(source: Source) -> Iterator[object]:
    """All that :func:`read` depends on, without reading the images and their labels."""
    layout, builder = _layout(source), Builder(source, is_strict=True)
    folders: dict[str, _Labels] = {}
    yield layout
    for name, path, label_file in _labelled(layout, builder, folders):
        yield name, stamp(path), label_file and stamp(label_file)
    yield builder.notes, _unused(layout, folders)


def _unused(layout: _Layout, folders: dict[str, _Labels]) -> int:
    """The label files without an image. A list names some of the images only."""
    if not all(map(os.path.isdir, layout.entries)):
        return 0
    return sum(not is_used for labels in folders.values() for is_used in labels.is_used.values())


# --- where images are -------------------------------------------------------------------------------------------------


def has_part(path: Path, part: str) -> bool:
    """Whether a source names this part itself."""
    file = _yaml_of(path)
    if file:
        return bool(_entries(_read_yaml(file), part))
    return path.is_dir() and bool(_part_folders(path, part))


def _layout(source: Source) -> _Layout:
    path, part = source.path, source.part
    if file := _yaml_of(path):
        return _layout_of_yaml(file, source)
    if path.is_dir():
        root, entries = path, [str(path / below) for below in _part_folders(path, part) or ["."]]
    elif what_it_is(path) == "YOLO labels":
        raise DataError(f"{path}: has the labels of one image; give data.yaml, or the folder or list of images")
    else:
        root, entries = source.images or path.parent, [str(path)]
    names, said = _names_near(path if path.is_dir() else path.parent, root)
    return _Layout(root, entries, names, said)


def _yaml_of(path: Path) -> Path | None:
    """The data.yaml that a path is, or has in it."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return path
    return next((path / name for name in YAMLS if (path / name).is_file()), None) if path.is_dir() else None


def _part_folders(folder: Path, part: str) -> list[str]:
    """The folder of a part below ``folder``, by the usual names; none where it holds the images itself."""
    for name in PARTS[part]:
        for below in (f"images/{name}", f"{name}/images", name):
            if (folder / below).is_dir():
                return [below]
    return []


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml

        from detector.config.loader import load_yaml
    except ImportError:
        raise DataError(f"{path}: is read by the whole package only: pip install pyramid-detector") from None
    text = read_text(path, "*.yaml")
    try:
        tree = load_yaml(text)[1]
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        fault = getattr(error, "problem", None) or " ".join(str(error).split())[:200]
        raise DataError(f"{path}{line}: not valid YAML: {fault}; correct it") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: holds {kind_of(tree)}; YOLO's data.yaml is a mapping with train, val, names")
    return tree


def _entries(tree: dict[str, Any], part: str) -> list[str]:
    """The folders and lists of a part, as the file names them; none where it has no such part."""
    for key in PARTS[part]:
        if value := tree.get(key):
            entries = value if isinstance(value, list) else [value]
            return [entry if isinstance(entry, str) else "" for entry in entries]
    return []


def _layout_of_yaml(file: Path, source: Source) -> _Layout:
    tree = _read_yaml(file)
    given = tree.get("path") or ""
    if not isinstance(given, str) or "\0" in given:
        raise DataError(f"{file}: path is {show(given)}; give the folder that train and val are relative to")
    root = source.images or file.parent
    is_path_there = source.images is not None or os.path.exists(file.parent / given)  # noqa: PTH110
    if given and source.images is None and is_path_there:  # else it is of another machine
        root = _inside(file, "path", given, file.parent, source.allow_outside)
    entries = _entries(tree, source.part)
    if not entries:
        raise DataError(f"{file}: has no {' or '.join(PARTS[source.part])}; add the folder of these images")
    names = _names(tree, file)
    layout = _Layout(
        root, [], names, f"{counted(len(names), 'class')} of {file.name}", 5 if tree.get("kpt_shape") else None
    )
    for entry in entries:
        if not entry or "\0" in entry:
            raise DataError(f"{file}: {source.part} must be a folder, a list of images, or several of these")
        below = next((own for own in _meant(entry) if os.path.exists(root / own)), None)  # noqa: PTH110
        if below is None:
            other = "" if is_path_there else f" and path: {show_text(given)}"
            raise DataError(
                f"{file}: {source.part}: {show_text(str(root / entry))}{other} does not exist; correct the path"
            )
        if below != entry:
            layout.notes.append(f"{show_text(entry)} is taken for {below}")
        layout.entries.append(str(_inside(file, source.part, below, root, source.allow_outside)))
    if not is_path_there:
        layout.notes.append(f"path {show_text(given)} does not exist, so paths are relative to {file.name}")
    return layout


def _meant(entry: str) -> Iterator[str]:
    """A folder or list as a file names it, then what it may mean here: the first that exists is taken.

    Windows writes backslashes, Roboflow paths as seen from a neighbouring folder, others those of their own machine.
    """
    yield entry
    plain = entry.replace("\\", "/")
    below = re.sub(r"^(\.\.?/)+", "", plain)
    if not below.startswith("/") and below[1:3] != ":/":
        yield below
        return
    parts = below.strip("/").split("/")
    yield from ("/".join(parts[start:]) for start in range(1, len(parts) - 1))
    if parts[-1].endswith(".txt") or any(parts[-1] in names for names in PARTS.values()):
        yield parts[-1]


def _inside(file: Path, key: str, entry: str, root: Path, allow_outside: bool) -> Path:
    """The path of an entry. Raises where it leads out of the file's folder, unless that is allowed."""
    path = root / entry
    base = os.path.abspath(file.parent)  # noqa: PTH100 (links are the user's own)
    if not allow_outside and os.path.commonpath([base, os.path.abspath(path)]) != base:  # noqa: PTH100
        raise DataError(
            f"{file}: {key}: {show_text(entry)} leads out of {file.parent}; move the data there, or {ALLOW_OUTSIDE} if"
            " you trust the file"
        )
    return path


def _names(tree: dict[str, Any], file: Path) -> list[str]:
    """The names of the classes: a list, a mapping from 0 on, or only their number."""
    names, count = tree.get("names"), tree.get("nc")
    if names is None and type(count) is int and 0 < count <= MOST_CLASSES:
        return [str(label) for label in range(count)]
    if isinstance(names, dict):
        names = {int(key) if isinstance(key, str) and key.isdecimal() else key: name for key, name in names.items()}
        if set(names) != set(range(len(names))):
            raise DataError(
                f"{file}: names has the keys {show(list(names))}; number the classes 0, 1, 2, … without gaps"
            )
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"{file}: names is {show(names)}; give the list of class names")
    if count is not None and count != len(names):
        raise DataError(f"{file}: nc is {show(count)}, but names has {len(names)}; correct one of them")
    return _unique([str(name) for name in names], file)


def _unique(names: list[str], file: Path) -> list[str]:
    if again := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise DataError(f"{file}: the class name {show_text(again)} is duplicated; rename one")
    return names


def _names_near(folder: Path, root: Path) -> tuple[list[str], str]:
    """Class names that are written near a folder of images, and where."""
    labels = Path(_Labels(str(folder)).folder)
    for place in dict.fromkeys((labels, folder, root, *list(folder.absolute().parents)[:2])):
        for name in NAME_FILES:
            if (place / name).is_file():
                names = [line.strip() for line in read_text(place / name, name).splitlines() if line.strip()]
                return _unique(names, place / name), f"{counted(len(names), 'class')} of {place / name}"
        for name in YAMLS:
            if (place / name).is_file():
                names = _names(_read_yaml(place / name), place / name)
                return names, f"{counted(len(names), 'class')} of {place / name}"
    raise DataError(
        f"{folder}: has no class names near it; give YOLO's data.yaml, or write them into classes.txt there"
    )


def _labelled(layout: _Layout, builder: Builder, folders: dict[str, _Labels]) -> Iterator[tuple[str, str, str | None]]:
    """Name, path and label file, if it has one, of each image; ``folders`` are filled by the images' folder."""
    seen: set[str] = set()
    may_repeat = len(layout.entries) > 1 or not os.path.isdir(layout.entries[0])  # noqa: PTH112
    for name in _images(layout, builder):
        if name in seen:
            builder.notes[LISTED_AGAIN] += 1
            continue
        if may_repeat:  # the files of one folder need no set, which would be as large as the labels
            seen.add(name)
        path = os.path.join(layout.root, name)  # noqa: PTH118 (a Path for each of 100,000 is slow)
        folder, file = os.path.split(path)
        if folder not in folders:
            folders[folder] = _Labels(folder)
        yield name, path, folders[folder].of(file)


def _images(layout: _Layout, builder: Builder) -> Iterator[str]:
    """The names of all images, relative to the root."""
    for entry in layout.entries:
        path = Path(entry)
        if path.is_dir():
            below = os.path.relpath(path, layout.root)
            prefix = "" if below == "." else below + "/"
            yield from (prefix + name for name in list_images(path).files)
        else:
            yield from _listed(path, layout.root, builder)


def _listed(path: Path, root: Path, builder: Builder) -> Iterator[str]:
    """The images of a list: relative to its folder, or to the root, or else those below the root that are meant."""
    names = Names(files_below(root))
    for line, text in enumerate(read_text(path, "*.txt").splitlines(), start=1):
        name = text.strip()
        if not name:
            continue
        own = os.path.normpath(os.path.join(path.parent, name))  # noqa: PTH118
        if not os.path.isfile(own):  # noqa: PTH113
            own = os.path.normpath(os.path.join(root, name))  # noqa: PTH118
        is_file = os.path.isfile(own)  # noqa: PTH113
        is_outside = leads_out(os.path.relpath(own, root)) and not builder.source.allow_outside
        if is_file and not is_outside:
            yield os.path.relpath(own, root)
        elif len(meant := names.meant(name)) == 1 and is_certain(name, meant[0]):
            builder.notes["image{s} listed with folders that are not here, found below"] += 1
            yield meant[0]
        elif is_file:
            builder.fault(path, line, f"{show_text(name)} leads out of {root}; {ALLOW_OUTSIDE}")
        else:
            builder.fault(path, line, f"{show_text(name)} does not exist; {names.hint(name) or 'correct the path'}")


class _Labels:
    """The label files of the images in one folder."""

    def __init__(self, folder: str) -> None:
        labels = labels_folder(Path(folder))
        self.folder = str(labels) if labels and (labels.is_dir() or not _label_files(folder)) else folder
        names = [name for name in _label_files(self.folder) if name not in NAME_FILES]
        self.is_used = dict.fromkeys(names, False)  # whether an image has the file
        self.odd = {name[:-4]: name for name in names if not name.endswith(".txt")}  # by name without the suffix

    def of(self, file: str) -> str | None:
        """The label file of an image; None where there is none."""
        stem = os.path.splitext(file)[0]  # noqa: PTH122
        name = f"{stem}.txt"
        if name not in self.is_used:
            if stem not in self.odd:
                return None
            name = self.odd[stem]
        self.is_used[name] = True
        return f"{self.folder}/{name}"


def _label_files(folder: str) -> list[str]:
    """The names of the label files of a folder."""
    try:
        return [name for name in os.listdir(folder) if name.lower().endswith(".txt")]  # noqa: PTH208
    except OSError:
        return []


# --- rows -------------------------------------------------------------------------------------------------------------


def _boxes(path: str, classes: int, columns: int | None) -> Iterator[tuple[int, str, Sequence[float]]]:
    """Line, fault and numbers of each row: either the fault or the numbers."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a Path for each of 100,000 is slow)
            data = file.read(LARGEST_TEXT + 1)
    except OSError as error:
        yield 0, f"cannot be read: {error.strerror}", ()
        return
    if len(data) > LARGEST_TEXT:
        yield 0, f"is larger than {LARGEST_TEXT:,} bytes; it is not a label file", ()
        return
    for line, row in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        cells = row.split()
        if not cells:
            continue
        try:
            numbers = [float(cell) for cell in cells]
        except ValueError:
            yield line, f"{show(row.decode(errors='replace'))} must be numbers: class cx cy w h", ()
            continue
        numbers = numbers[:columns]
        label, own = numbers[0], numbers[1:]
        if not 0 <= label < classes or label != int(label):
            given = cells[0].decode(errors="replace")[:40]
            yield line, f"class {given} is not one of 0 to {classes - 1}; correct it, or the names", ()
        elif len(own) != 4 and (len(own) < 6 or len(own) % 2):
            hint = "; a confidence belongs to predictions" if len(own) == 5 else ""
            yield line, f"has {len(cells)} numbers; give class cx cy w h, or a polygon: class x y x y x y …{hint}", ()
        elif math.isnan(sum(own)) or min(own) < -MARGIN or max(own) > 1 + MARGIN:
            odd = next(cell for cell, one in zip(cells[1:], own, strict=False) if not -MARGIN <= one <= 1 + MARGIN)
            yield line, f"{odd.decode(errors='replace')[:40]} is not a fraction of the image, 0 to 1", ()
        elif len(own) == 4 and min(own[2:]) < 0:
            yield line, "has a negative width or height", ()
        else:
            yield line, "", numbers


def _add(builder: Builder, image: int, numbers: Sequence[float], width: int, height: int) -> None:
    """Add the box or polygon of a row, in pixels."""
    label, own = int(numbers[0]), numbers[1:]
    area = None
    if len(own) == 4:
        x, y, w, h = own
        corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    else:
        xs, ys = [x * width for x in own[::2]], [y * height for y in own[1::2]]
        corners = (min(xs), min(ys), max(xs), max(ys))
        following = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
        area = abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in following)) / 2
    left, top, right, bottom = corners
    outside = max(-left / width, -top / height, right / width - 1, bottom / height - 1)
    if outside > 0 and max(-left, -top, right - width, bottom - height) > 1 and outside <= MARGIN:
        builder.notes["box{es} clipped that extended up to 1 % outside"] += 1
        corners = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    builder.add_box(image, label, corners, area)
