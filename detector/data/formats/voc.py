"""Pascal VOC: an XML file per image in ``Annotations/``, images in ``JPEGImages/``, splits in ``ImageSets/Main/``.

Others keep ``annotations/`` and ``images/``, all files in one folder, or such folders per part or year.

Corners are pixels, the last one included. The original counts from 1 (Everingham et al. 2010, development kit), many
tools from 0: where any corner of the folder, or of those of the other parts, is under 1, all count from 0. Nothing
proves that corners count from 1: a box that begins at 1 and ends at the image's width may be a pixel inside, from 0. So
that is assumed, and said. ``difficult`` objects become ignore regions.

XML from strangers is parsed without entities, of bounded size and depth.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from detector.data.formats.building import LARGEST_TEXT, LISTED_AGAIN, Builder, Source, read_text, stamp
from detector.data.formats.columns import Rows
from detector.data.listing import list_images, walk
from detector.errors import DataError, near_path, one_of, unreadable
from detector.system.json_stream import show_text

PARTS = {"train": ("train", "trainval"), "val": ("val", "valid", "test"), "test": ("test",)}
ANNOTATION_FOLDERS = ("Annotations", "annotations")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
PART_FOLDERS = dict.fromkeys(name for names in PARTS.values() for name in names)
DEEPEST = 32  # elements inside each other; VOC has 5
SIDES = ("xmin", "ymin", "xmax", "ymax")
_below_one = re.compile(rb"<[xy]m(?:in|ax)>\s*(?:-[\d.]+|\+?(?:0+(?:\.\d*)?|\.\d+))\s*</").search


class Layout(NamedTuple):
    annotations: Path  # the folder of XML files
    images: Path
    listed: Path | None  # the file of ImageSets that names the images; None: all XML files

    @property
    def alike(self) -> list[Path]:
        """The folders of XML files whose corners count alike: this one, and those of the other parts beside it."""
        own = self.annotations
        for part, below in ((own, ""), (own.parent, own.name)):
            if part.name in PART_FOLDERS:
                return [folder for name in PART_FOLDERS if (folder := part.parent / name / below).is_dir()]
        return [own]


def read(source: Source, is_strict: bool) -> Rows:
    """The images and boxes of a folder of XML files, or of those that a file of ImageSets lists."""
    layout = layout_of(source)
    builder = Builder(source, is_strict)
    is_one_based, said = _origin(source, layout, builder, _read_files(layout, builder))
    if is_one_based:  # from 1 to 1 is the first pixel, which is from 0 to 1
        builder.shift(-1.0, -1.0, 0.0, 0.0)
    listed = f", {layout.listed.name}" if layout.listed else ""
    return builder.named_rows(layout.images, f"Pascal VOC{listed}: {said}")


def _read_files(layout: Layout, builder: Builder) -> list[str]:
    """Add the images and boxes of the XML files; returns their names."""
    files = list(_files(layout, builder))
    name_of = _image_names(layout)
    file_of: dict[str, str] = {}
    for file in files:
        path = f"{layout.annotations}/{file}"
        content = _parse(path, builder)
        if content is None:
            continue
        name = name_of(file[:-4], content.values.get("filename", "").strip().replace("\\", "/"))
        if (other := file_of.setdefault(name, file)) != file:
            other = f"{layout.annotations}/{other}"
            builder.fault(path, 0, f"is of the image {show_text(name)}, as {other} is; correct filename in one of them")
            continue
        image = builder.add_image(
            name, *builder.whole_size(path, 0, content.values.get("width"), content.values.get("height"))
        )
        for line, values in content.objects:
            _add(builder, image, path, line, values)
    return files


def _image_names(layout: Layout) -> Callable[[str, str], str]:
    """The image of an XML file by its name without the suffix, and by the ``filename`` in it."""
    suffix_of: dict[str, str] = {}
    others: set[str] = set()  # of a.jpg and a.png, the second
    for name in list_images(layout.images).files:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if suffix_of.setdefault(stem, sys.intern(suffix)) != suffix:
            others.add(name)

    def is_known(name: str) -> bool:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        return suffix_of.get(stem) == suffix or name in others

    def name_of(stem: str, given: str) -> str:
        before, suffix = os.path.splitext(given)  # noqa: PTH122
        if stem in suffix_of:  # of a.jpg and a.png, the one that is meant
            return stem + (suffix if is_known(stem + suffix) else suffix_of[stem])
        is_own = before == stem or (given and "/" not in given)
        return given if is_known(given) or is_own else f"{stem}.jpg"

    return name_of


def _origin(source: Source, layout: Layout, builder: Builder, files: list[str]) -> tuple[bool, str]:
    """Whether corners count from 1, and why, in words."""
    if source.one_based is not None:
        return source.one_based, f"corners count from {int(source.one_based)} (data.one_based)"
    if min(builder.corners, default=1.0) < 1 or _any_below_one(layout, files):
        return False, "corners count from 0, as one is under 1 (data.one_based)"
    return True, (
        "corners are assumed to count from 1, as none is under 1; if they count from 0, set data.one_based=false"
        " (without a config: --one-based false)"
    )


def state(source: Source) -> Iterator[object]:
    """All that :func:`read` depends on, without reading the XML files."""
    layout = layout_of(source)
    yield layout
    yield from list_images(layout.images).files
    yield listed_files(source)
    for folder in layout.alike:
        for name in sorted(_xml_files(folder)):
            yield name, stamp(f"{folder}/{name}")


def listed_files(source: Source) -> list[str]:
    """The XML file of each image that is read, in its order."""
    return list(_files(layout_of(source), Builder(source, is_strict=True)))


# --- where files are --------------------------------------------------------------------------------------------------


def has_part(path: Path, part: str) -> bool:
    """Whether a source names this part itself."""
    if not path.is_dir():
        return False
    root = _root_of(path, part)
    is_of_part = root != path and root.name in PARTS[part]
    return is_of_part or _list_of(root, part) is not None or _part_folder(root, part) is not None


def _annotations_in(folder: Path) -> Path | None:
    """The folder of XML files, which may be in folders below it. (COCO's JSON files are in ``annotations``, too.)"""
    folders = (below for name in ANNOTATION_FOLDERS if (below := folder / name).is_dir())
    return next((below for below in folders if any(_xml_files(below))), None)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(own.suffix.lower() == ".xml" for own in folder.iterdir())


def _root_of(path: Path, part: str) -> Path:
    """The folder that has ``Annotations``: this one, that of the part, or the only one below, as ``VOCdevkit`` has."""
    if not path.is_dir() or _annotations_in(path) or _has_files(path):
        return path
    below = sorted(child for child in path.iterdir() if child.is_dir() and _annotations_in(child))
    if of_part := [child for name in PARTS[part] for child in below if child.name == name]:
        return of_part[0]
    if len(below) > 1 and not any(child.name in PART_FOLDERS for child in below):
        raise DataError(f"{path}: holds several data sets: give {one_of(map(str, below))}, or several as a list")
    return below[0] if len(below) == 1 else path


def _list_of(root: Path, part: str) -> Path | None:
    files = (root / "ImageSets" / "Main" / f"{name}.txt" for name in PARTS[part])
    return next((file for file in files if file.is_file()), None)


def _part_folder(root: Path, part: str) -> Path | None:
    """The folder of a part with its own XML files, as Roboflow writes them."""
    folders = (root / name for name in PARTS[part])
    return next(filter(_has_files, folders), None)


def layout_of(source: Source) -> Layout:
    path = _root_of(source.path, source.part)
    if path.is_file():
        root = next(filter(_annotations_in, list(path.parents)[:4]), None)
        annotations, listed = root and _annotations_in(root), path
        if annotations is None or path.suffix.lower() == ".xml":
            raise DataError(
                f"{path}: give the folder of the XML files, or a file in ImageSets/Main beside Annotations/"
            )
    elif annotations := _annotations_in(path):
        root, listed = path, _list_of(path, source.part)
    else:
        annotations = _part_folder(path, source.part) or path
        root, listed = annotations.parent, None
    if not annotations.is_dir():
        raise DataError(f"{annotations}: no such file or folder{near_path(annotations)}")
    below = (root / name for name in IMAGE_FOLDERS)
    return Layout(annotations, source.images or next(filter(Path.is_dir, below), annotations), listed)


def _files(layout: Layout, builder: Builder) -> Iterator[str]:
    """The names of the XML files."""
    known = {name[:-4]: name for name in _xml_files(layout.annotations)}
    if layout.listed is None:
        yield from (known[stem] for stem in sorted(known, key=os.fsencode))
        return
    seen = set()
    for number, text in enumerate(read_text(layout.listed, "*.txt").splitlines(), start=1):
        # In the lists of one class, 1 or -1 follows.
        stem = text.strip() if text.strip() in known else next(iter(text.split()), "")
        if stem in seen:
            builder.notes[LISTED_AGAIN] += 1
        elif stem in known:
            seen.add(stem)
            yield known[stem]
        elif stem:
            builder.fault(layout.listed, number, f"{show_text(stem)} has no XML file in {layout.annotations}")


def _xml_files(folder: Path) -> Iterator[str]:
    return (name for name, is_file in walk(folder) if is_file and name.lower().endswith(".xml"))


def _any_below_one(layout: Layout, files: list[str]) -> bool:
    """Whether an XML file that was not read has a corner under 1."""
    seen = set(files)
    for folder in layout.alike:
        for name in _xml_files(folder):
            if folder != layout.annotations or name not in seen:
                with suppress(OSError), (folder / name).open("rb") as file:
                    if _below_one(file.read(LARGEST_TEXT)):
                        return True
    return False


# --- one file ---------------------------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """What XML may hold and no annotation needs."""


class _Content:
    """The values of an XML file: those of the image, and for each object its line and values."""

    def __init__(self, data: bytes) -> None:
        self.values: dict[str, str] = {}
        self.objects: list[tuple[int, dict[str, str]]] = []
        self.path: list[str] = []
        self.text = ""
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler, self.parser.EndElementHandler = self.start, self.end
        self.parser.CharacterDataHandler = self.add_text
        self.parser.EntityDeclHandler = self.refuse_entity
        self.parser.Parse(data, True)
        del self.parser  # which has this object's methods: many such cycles would wait for the garbage collector

    def refuse_entity(self, name: str, *_: object) -> None:
        raise _RefusedError(f"declares the entity {show_text(name)}; entities are not read")

    def start(self, name: str, _: dict[str, str]) -> None:
        path = self.path
        if not path and name != "annotation":
            raise _RefusedError(f"holds <{show_text(name)}>; Pascal VOC's file is an <annotation>")
        if len(path) == 1 and name == "object":
            self.objects.append((self.parser.CurrentLineNumber, {}))
        elif len(path) >= DEEPEST:
            raise _RefusedError(f"has more than {DEEPEST} elements inside each other")
        path.append(name)
        self.text = ""

    def add_text(self, text: str) -> None:
        self.text += text

    def end(self, name: str) -> None:
        path = self.path
        path.pop()
        depth = len(path)
        if depth == 1 or (depth == 2 and path[1] == "size"):
            self.values[name] = self.text
        elif (depth == 2 and path[1] == "object") or (depth == 3 and path[1] == "object" and path[2] == "bndbox"):
            self.objects[-1][1][name] = self.text
        self.text = ""


def _parse(path: str, builder: Builder) -> _Content | None:
    """The content of an XML file; None, with a fault, where it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a Path for each of 100,000 is slow)
            data = file.read(LARGEST_TEXT + 1)
        if len(data) > LARGEST_TEXT:
            raise _RefusedError(f"is larger than {LARGEST_TEXT:,} bytes")
        return _Content(data)
    except expat.ExpatError as error:
        remedy = "restore the file" if _is_utf8(data) else "save it as UTF-8, or declare its encoding"
        builder.fault(path, error.lineno, f"is not valid XML: {expat.ErrorString(error.code)}; {remedy}")
    except _RefusedError as error:
        builder.fault(path, 0, str(error))
    except OSError as error:
        builder.fault(path, 0, unreadable(Path(path), error, "*.xml"))
    except (ValueError, LookupError) as error:  # encodings that the parser does not know
        builder.fault(path, 0, f"is not valid XML: {error}; save it as UTF-8")
    return None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _add(builder: Builder, image: int, path: str, line: int, values: dict[str, str]) -> None:
    """Add an object."""
    name = values.get("name", "").strip()
    if not name:
        builder.fault(path, line, "the object has no name")
        return
    if any(side not in values for side in SIDES):
        builder.fault(path, line, f"the object {show_text(name)} has no bndbox with {', '.join(SIDES)}")
        return
    corners = builder.numbers(path, line, [values[side] for side in SIDES])
    if corners:
        is_difficult = values.get("difficult", "").strip() in ("1", "true", "True")
        builder.add_box(image, builder.label_of(name), corners, is_crowd=is_difficult)
