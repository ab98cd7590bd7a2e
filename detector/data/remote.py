"""Files by URL, read through fsspec: ``s3://``, ``gs://``, ``file://`` and whatever plugins are installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from detector.data.images import LARGEST_FILE
from detector.errors import DataError


class Url(NamedTuple):
    """A file, with as much of ``Path`` as reading an image takes."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def suffix(self) -> str:
        name = self.text.rpartition("/")[2]
        return name[name.rindex(".") :] if "." in name else ""


def open_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises DataError where its plugin is missing.

    Each process has one per kind and settings, whatever it was forked from.
    """
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise DataError(f"{url}: reading a URL needs fsspec, which is not installed: pip install fsspec") from None
    try:
        return url_to_fs(url)
    except ImportError as error:  # its text names the package
        raise DataError(f"{url}: needs a plugin of fsspec that is not installed: {_line(error)}") from None
    except ValueError as error:
        known = "such as s3://, gs://, az://, https:// or file://"
        raise DataError(f"{url}: cannot be opened: {_line(error)}; fsspec reads URLs {known}") from None


@contextlib.contextmanager
def reading(url: object) -> Iterator[None]:
    """Turn whatever a plugin raises into one DataError."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{url}: does not exist") from None
    except Exception as error:  # plugins raise the errors of their libraries
        raise DataError(f"{url}: cannot be read: {type(error).__name__}: {_line(error)}") from None


def read_bytes(url: str) -> bytes:
    system, path = open_system(url)
    with reading(url):
        data = system.cat_file(path, end=LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise DataError(f"{url}: an image has at most {LARGEST_FILE:,} bytes")
    return data


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
