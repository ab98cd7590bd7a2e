"""World coordinates of what was found in GeoTIFF files, as GeoJSON. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import TiffImagePlugin

from detector.data.headers import open_header, orientation_of
from detector.errors import DataError, counted
from detector.system.atomic import atomic_write

FILE = "predictions.geojson"
# Tags, and keys in the directory of keys (OGC GeoTIFF 1.1, sections 7.2 to 7.4).
SCALE, TIE_POINT, TRANSFORMATION, KEYS = 33550, 33922, 34264, 34735
RASTER_TYPE, GEOGRAPHIC, PROJECTED = 1025, 2048, 3072
POINT, USER_DEFINED = 2, 32767


class World(NamedTuple):
    """Where the pixels of an image lie."""

    transform: np.ndarray  # [2, 3]: x, y in the world of (column, row, 1) in the image
    epsg: int | None  # code of the coordinate system; None: the file names none

    def of(self, points: np.ndarray) -> np.ndarray:
        """World coordinates of points [N, 2] in pixels; the first pixel reaches from 0 to 1."""
        return points @ self.transform[:, :2].T + self.transform[:, 2]


def read_world(path: Path) -> World | None:
    """What a GeoTIFF's tags say; None for other files, and for images that EXIF turns."""
    try:
        with path.open("rb") as file:
            header = open_header(path, file)
            if not isinstance(header, TiffImagePlugin.TiffImageFile) or orientation_of(header) != 1:
                return None
            tags = dict(header.tag_v2)
    except (OSError, DataError):
        return None
    transform = _transform(tags)
    if transform is None:
        return None
    entries = np.array(tags.get(KEYS, ())[4:]).reshape(-1, 4)
    keys = {key: value for key, place, _, value in entries.tolist() if place == 0}
    if keys.get(RASTER_TYPE) == POINT:  # the tie point is the middle of a pixel
        transform[:, 2] -= transform[:, :2].sum(axis=1) / 2
    codes = (keys.get(key) for key in (PROJECTED, GEOGRAPHIC))
    return World(transform, next((code for code in codes if code and code != USER_DEFINED), None))


def _transform(tags: dict[int, Any]) -> np.ndarray | None:
    if len(tags.get(TRANSFORMATION, ())) == 16:
        return np.array(tags[TRANSFORMATION], dtype=float).reshape(4, 4)[:2][:, [0, 1, 3]]
    if len(tags.get(SCALE, ())) < 2 or len(tags.get(TIE_POINT, ())) < 6:
        return None
    (across, down, *_), (column, row, _, x, y, _, *_) = tags[SCALE], tags[TIE_POINT]
    return np.array([[across, 0, x - column * across], [0, -down, y + row * down]], dtype=float)


def write_geojson(rows: Callable[[], Iterator[dict[str, Any]]], path: Path) -> list[str]:
    """Write the boxes of files with world coordinates as polygons; returns a line on it, none if there is no such file.

    GeoJSON is of longitude and latitude (RFC 7946); coordinates in another system are named by the member ``crs``, as
    GIS programs read it. Where files differ in their system, each feature's ``epsg`` says its own.
    """
    systems, number = set(), 0
    for row in rows():
        if world := read_world(Path(row["file"])):
            systems.add(world.epsg)
            number += 1
    if not number:
        return []
    head = {"type": "FeatureCollection"}
    if len(systems) == 1 and None not in systems:
        head["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{min(systems)}"}}
    with atomic_write(path) as file:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        separator = "\n"
        for row in rows():
            if world := read_world(Path(row["file"])):
                for result in row["results"]:
                    file.write(separator + json.dumps(_feature(result, world), ensure_ascii=False))
                    separator = ",\n"
        file.write("\n]}\n")
    return [f"world coordinates of {counted(number, 'image')}: {path}"]


def _feature(result: dict[str, Any], world: World) -> dict[str, Any]:
    left, top, width, height = result["bbox"]
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]) * (width, height) + (left, top)
    properties = {key: value for key, value in result.items() if key != "bbox"} | {"epsg": world.epsg}
    geometry = {"type": "Polygon", "coordinates": [world.of(corners).tolist()]}
    return {"type": "Feature", "properties": properties, "geometry": geometry}
