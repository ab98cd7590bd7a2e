"""A model's parts by their names in a config: the package's own, and the user's as ``package.module:name``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from detector.errors import ConfigError, one_of

if TYPE_CHECKING:
    from detector.config.schema import Config

Part = TypeVar("Part")
TIMM = "timm:"  # prefix of timm's networks
LISTED = 6  # how many names a message lists at most


def is_code(name: str) -> bool:
    """Whether a name has the form ``package.module:name``, which is imported and called."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None and not name.startswith(TIMM)


def find_part(key: str, name: str, known: Mapping[str, Part], like: Callable[..., Any] | None = None) -> Part:
    """``known[name]``, or the object that ``package.module:name`` names, of the same kind as the dict's values.

    It must take the arguments of ``like``, by default those of the first value. ``key`` is the name's key in a config,
    for messages. :func:`check_code` has decided whether code is allowed.
    """
    if name in known:
        return known[name]
    if not is_code(name):
        raise ConfigError(f"{key}: unknown {key.split('.')[1]} {name!r}; use {near_names(name, known)}")
    module, _, attribute = name.partition(":")
    try:
        part = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: {name} cannot be imported ({error}); is its folder in PYTHONPATH?") from None
    example = next(iter(known.values()), None)
    if not callable(part) and type(part) is not type(example):
        raise ConfigError(f"{key}: {name} is {type(part).__name__}; name a class or a function")
    if callable(part) and (like or example):
        check_signature(f"{key}: {name}", part, list(inspect.signature(like or example).parameters))
    return part


def check_signature(name: str, part: Callable[..., Any], given: Sequence[str]) -> None:
    """Refuse a part of the user's that does not take the arguments ``given``, by their order."""
    try:
        signature = inspect.signature(part)
    except ValueError:  # of a function in C, which is not known
        return
    try:
        signature.bind(*given)
    except TypeError:
        takes = ", ".join(signature.parameters)
        raise ConfigError(f"{name} takes ({takes}); it must take ({', '.join(given)})") from None


def check_code(config: Config, source: str | Path) -> None:
    """Refuse a config whose model names code: a foreign file runs nothing that the user has not allowed."""
    for key, name in _texts(config.model.model_dump(), "model"):
        if is_code(name):
            raise ConfigError(
                f"{source}: {key}: {name} is code, which runs only if you trust it: add --allow-code (in Python,"
                " allow_code=True)"
            )


def near_names(name: str, known: Iterable[str]) -> str:
    """The known names for a message: all if they are few, else the nearest to ``name``."""
    names = list(known)
    near = [other for other in names if other.startswith(name)][:LISTED]
    return one_of(names if len(names) <= LISTED else near or difflib.get_close_matches(name, names, LISTED, cutoff=0))


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Each string in a tree with its dotted key, except ``weights``, which are files."""
    if isinstance(value, str):
        yield key, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        if name != "weights":
            yield from _texts(inner, f"{key}.{name}")
