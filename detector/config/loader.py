"""Configs from YAML files, checkpoints and the command line; errors name the file and line.

:func:`load_config` reads a file with line numbers, applies ``key=value`` overrides, and reports all errors together.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from detector.config.parts import check_code
from detector.config.schema import DERIVED, INSTEAD, Config, Section
from detector.config.tasks import HEADS, TASKS
from detector.errors import ConfigError, kind_of, near_path, one_of, unreadable
from detector.system.atomic import atomic_write

_PACKAGE = Path(__file__).resolve().parent.parent
CONFIG_FOLDERS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")  # in a checkout, in an installed wheel

# Larger than any experiment needs; they bound the cost of a malicious file.
LARGEST_FILE = 2**20  # bytes
LARGEST_TREE = 200_000  # values, with every alias expanded
MOST_ERRORS = 20  # listed in one message
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pkl", ".safetensors")

_Tree = dict[str, Any]
_Places = dict[tuple[str, ...], str]  # the names that lead to a key → "file:line" or "command line"


def find_config(name: str | Path) -> Path:
    """The file that ``--config`` means: a path, or a name in the package's ``configs``."""
    candidates = [Path(name), *(folder / name for folder in CONFIG_FOLDERS)]
    for candidate in candidates:
        if os.path.isfile(candidate):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
            return candidate
    if os.path.isdir(name):  # noqa: PTH112
        raise ConfigError(f"{name}: {unreadable(Path(name), IsADirectoryError(), '*.yaml')}")
    packaged = sorted(path.name for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml"))
    hint = near_path(name, packaged) or f"; the package has {', '.join(packaged)}"
    raise ConfigError(f"{name}: no such config file{hint}")


def load_config(path: str | Path, overrides: Sequence[str] = (), allow_code: bool = False) -> Config:
    """The config of a YAML file (with its ``base:``, one level deep) and ``key=value`` overrides.

    Parts of the model that name the user's code (``package.module:name``) need ``allow_code``.

    Raises :class:`detector.errors.ConfigError` that lists every unknown key, wrong type and value out of range as
    ``file:line: key: fault; remedy``.
    """
    path = find_config(path)
    tree, places = _read_yaml(path)
    base = tree.pop("base", None)
    if base is not None:
        base_path = _find_base(path, base, places)
        base_tree, base_places = _read_yaml(base_path)
        if "base" in base_tree:
            raise ConfigError(
                f"{base_places[('base',)]}: base: {path} builds on this file; a base cannot have a base:"
                f" copy the keys of {base_tree['base']} into one of them"
            )
        if _names_whole_data(tree):
            base_tree.get("data", {}).pop("val", None)
        tree, places = merge(base_tree, tree), base_places | places
    given: _Tree = {}
    for override in overrides:
        if not override.startswith("data.train."):  # what is added to data.train=PATH leaves it a path here
            _apply_override(given, {}, override)
    if _names_whole_data(given) and isinstance(tree.get("data"), dict):
        tree["data"].pop("val", None)
    for override in overrides:
        _apply_override(tree, places, override)
    config = _validate(tree, places)
    if not allow_code:
        check_code(config, path)
    return config


def _names_whole_data(tree: _Tree) -> bool:
    """Whether ``data.train`` is a path or a list, and ``data.val`` is not given: then a base's val is of other data."""
    data = tree.get("data")
    return isinstance(data, dict) and isinstance(data.get("train"), str | list) and "val" not in data


def _find_base(path: Path, base: Any, places: _Places) -> Path:
    """The file that ``base:`` of ``path`` means."""
    beside = path.parent / str(base)
    if os.path.isfile(beside):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        return beside
    try:
        return find_config(str(base))
    except ConfigError as error:
        raise ConfigError(f"{places[('base',)]}: base: {error}") from None


def build_on(path: str | Path, overrides: Sequence[str], changes: _Tree, folder: Path) -> str:
    """YAML for a file in ``folder`` that is the config of ``path`` and ``overrides`` with ``changes`` on top."""
    path = find_config(path)
    own, places = _read_yaml(path)
    # A base cannot have a base itself, so a file with one is copied onto the same base.
    has_base = "base" in own
    base = _find_base(path, own.pop("base"), places) if has_base else path
    tree: _Tree = own if has_base else {}
    for override in overrides:
        _apply_override(tree, {}, override)
    is_packaged = base.parent in CONFIG_FOLDERS and not (folder / base.name).exists()
    name = base.name if is_packaged else os.path.relpath(base, folder)
    return yaml.safe_dump({"base": name} | merge(tree, changes), sort_keys=False, allow_unicode=True)


def config_from_dict(tree: _Tree, source: str) -> Config:
    """The config of a tree from :func:`config_to_dict`; errors name ``source``, the file it came from."""
    return _validate(tree, {(): source})


def apply_overrides(config: Config, overrides: Sequence[str], source: str) -> Config:
    """``config`` (of a checkpoint ``source``) with ``key=value`` overrides."""
    return overlay(config_to_dict(config), source, None, overrides)


def overlay(tree: _Tree, source: str, path: str | None, overrides: Sequence[str]) -> Config:
    """``tree`` (of ``source``) with a YAML file and ``key=value`` overrides on top of it."""
    places: _Places = {(): source}
    if path is not None:
        own_tree, own_places = _read_yaml(find_config(path))
        tree, places = merge(tree, own_tree), places | own_places
    for override in overrides:
        _apply_override(tree, places, override)
    return _validate(tree, places)


def config_to_dict(config: Config) -> _Tree:
    """Plain lists, dicts, strings and numbers, as YAML and a checkpoint store them."""
    return config.model_dump(mode="json")


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two trees below ``key`` differ."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for name in old:
            yield from differences(old[name], new[name], f"{key}.{name}".removeprefix("."))
    elif old != new:
        yield key, old, new


def save_config(config: Config, path: Path) -> None:
    """The resolved config as YAML: every key, defaults included."""
    with atomic_write(path) as file:
        yaml.safe_dump(config_to_dict(config), file, sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> tuple[_Tree, _Places]:
    if path.suffix in CHECKPOINT_SUFFIXES:
        raise ConfigError(f"{path}: is a checkpoint, not a config; use the config.yaml in its run's folder")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path}: has {path.stat().st_size:,} bytes; a config has at most {LARGEST_FILE:,}")
        text = path.read_text(encoding="utf-8")
        node, value = load_yaml(text)
        places: _Places = {(): str(path)}
        if node is not None:
            _note_places(node, (), str(path), places)
        tree = _text_keys(value or {})
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: {unreadable(path, error, '*.yaml')}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}; correct it") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-40
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}; correct it") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {kind_of(tree)}; a config is a mapping of sections")
    return tree, places


def load_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a document, with their lines, and its value."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None, None
        size = _size(node, {})
        if size == math.inf:
            raise yaml.YAMLError("an alias is inside the value that it names")
        if size > LARGEST_TREE:
            raise yaml.YAMLError(f"its aliases expand to {size:,} values; it may have {LARGEST_TREE:,}")
        return node, yaml.constructor.SafeConstructor().construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Number of values in a document with every alias expanded, as the code below walks it; inf for a cycle."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # its size if it occurs again below itself
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if pairs else node.value
        below = () if isinstance(node, yaml.ScalarNode) else children
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in below)
    return sizes[id(node)]


def _note_places(node: yaml.Node, keys: tuple[str, ...], source: str, places: _Places) -> None:
    """Fill ``places`` with the line of every key. Refuse duplicate keys, of which PyYAML silently takes the last."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            below = (*keys, str(key_node.value))
            place = f"{source}:{key_node.start_mark.line + 1}"
            if below in places:
                raise ConfigError(f"{place}: {'.'.join(below)}: is duplicated, first at {places[below]}; keep one")
            places[below] = place
            _note_places(value_node, below, source, places)


def _text_keys(tree: Any) -> Any:
    """Keys as text everywhere: levels are numbers in YAML and text on the command line."""
    return {str(key): _text_keys(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def merge(base: _Tree, own: _Tree) -> _Tree:
    """``base`` with the values of ``own``, section by section."""
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _apply_override(tree: _Tree, places: _Places, override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"command line: {override}: an override is written key=value, as in train.epochs=12")
    keys = dotted.split(".")
    try:
        node, value = load_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"command line: {override[:120]}: the value is not valid YAML; quote it") from None
    if node is not None:
        _note_places(node, tuple(keys), "command line", {})
    value = _text_keys(value)
    for depth, key in enumerate(keys[:-1]):
        child = tree.get(key)
        if child is None:
            child = tree[key] = {}
        if isinstance(child, str) and keys[: depth + 1] in (["data", "train"], ["data", "val"]):
            child = tree[key] = {"annotations": child}
        if not isinstance(child, dict):
            section = ".".join(keys[: depth + 1])
            fault = f"{section} is {_short(child)}, not a section; set {section} itself"
            if isinstance(child, list) and keys[:depth] == ["data"]:
                fault = f"{section} is a list; give each set its own, as [{{annotations: a.json, images: a/}}, b.json]"
            raise ConfigError(f"command line: {dotted}: {fault}")
        tree = child
    tree[keys[-1]] = value
    for end in range(1, len(keys)):
        places.setdefault(tuple(keys[:end]), "command line")
    places[tuple(keys)] = "command line"


def refuse_auto(config: Config, source: object) -> None:
    """Raises for values that are still to be derived, where there are no data to derive them from.

    Without data nothing is trained, so values of ``train`` may stay open.
    """
    if keys := [key for key in config.auto if not key.startswith("train.")]:
        tree = config_to_dict(config)
        values = " ".join(f"{key}={_value_at(tree, key)}" for key in keys)
        raise ConfigError(
            f"{source}: {', '.join(keys)}: auto is derived from the data when training starts; give a value, such as"
            f" {values}"
        )


def _value_at(tree: Any, dotted: str) -> Any:
    """The value of a key below ``tree``; None where there is none."""
    for key in dotted.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _list_auto(tree: _Tree) -> _Tree:
    """The tree with the keys whose value is auto in the list ``auto`` instead, unless another key takes their place."""
    keys = [key for key in DERIVED if _value_at(tree, key) == "auto"]
    if not keys:
        return tree
    tree = copy.deepcopy(tree)
    for key in keys:
        *sections, name = key.split(".")
        del _value_at(tree, ".".join(sections))[name]
    needed = [key for key in keys if key not in INSTEAD or _value_at(tree, INSTEAD[key]) is None]
    return tree | {"auto": [*tree.get("auto", []), *needed]}


def _validate(tree: _Tree, places: _Places) -> Config:
    try:
        config = Config.model_validate(_list_auto(tree))
    except ValidationError as error:
        details = [detail for detail in error.errors() if not _is_other_branch(detail)]
        lines = [_explain(detail, places) for detail in details[:MOST_ERRORS]]
        if len(details) > MOST_ERRORS:
            lines.append(f"{places[()]}: {len(details) - MOST_ERRORS} more errors like these")
        raise ConfigError("\n".join(lines)) from None
    lines = [
        f"{_where(tuple(key.split('.')), places)}has no effect here, it is for {user}; remove it"
        for key, user in _without_effect(config)
    ]
    if lines:
        raise ConfigError("\n".join(lines))
    return config


def _without_effect(config: Config) -> Iterator[tuple[str, str]]:
    """Keys that are set although this task or head does not read them, and those that would."""
    own, default = config_to_dict(config), config_to_dict(Config())
    heads = {name: keys for own_heads in HEADS.values() for name, keys in own_heads.items()}
    for kind, name, readers in (("task", config.task, TASKS), ("head", config.model.head.name, heads)):
        for key in dict.fromkeys(key for keys in readers.values() for key in keys if name in readers):
            is_set = _value_at(own, key) != _value_at(default, key)
            is_auto = any(f"{auto}.".startswith(f"{key}.") for auto in config.auto)
            users = [user for user, keys in readers.items() if key in keys]
            if name not in users and (is_set or is_auto):
                yield key, f"{kind} {one_of(users)}"
    if config.model.head.name == "classic" and own["model"]["fpn"] != default["model"]["fpn"]:
        yield "model.fpn", "heads on a pyramid"


def _where(keys: tuple[str, ...], places: _Places) -> str:
    place = next(places[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in places or end == 0)
    return f"{place}: {'.'.join(keys)}: " if keys else f"{place}: "


def _is_other_branch(detail: Any) -> bool:
    """Whether an error is of the type that was not meant, where either a word or a mapping is allowed."""
    kind = str(detail["loc"][-1]) if detail["loc"] else ""
    return (kind.startswith("literal[") and isinstance(detail["input"], dict)) or (
        kind.startswith("dict[") and isinstance(detail["input"], str)
    )


def _explain(detail: Any, places: _Places) -> str:
    """An error as one line: where, which key, what is wrong, what to do."""
    keys = tuple(str(key) for key in detail["loc"] if "[" not in str(key))  # literal['balanced'] names a type
    where = _where(keys, places)
    if detail["type"] == "extra_forbidden":
        known = list(_section_at(keys[:-1]).model_fields)
        near = difflib.get_close_matches(keys[-1], known, n=1)
        return f"{where}unknown key; " + (f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}")
    if detail["type"] == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        key, colon, words = message.partition(": ")  # a section names the keys below it
        return _where((*keys, *key.split(".")), places) + words if colon and " " not in key else where + message
    if detail["type"] == "model_type":
        message = f"must be a section, with keys such as {', '.join(list(_section_at(keys).model_fields)[:3])}"
    else:
        message = WORDS.get(detail["type"], detail["msg"].replace("Input should", "must"))
        if detail["type"] == "list_type":
            message = f"must be a list, as [{_example(keys, detail['input'])}]"
    message = message.format(**detail.get("ctx", {})).replace(" 1 values", " 1 value")
    return f"{where}{message}; it is {_short(detail['input'])}"


PLAIN = ("integer", "number", "string")  # types of JSON schemas

# Our words for pydantic's types of errors that speak of Python.
WORDS = {
    "dict_type": "must be a mapping, as {{key: value}}",
    "string_type": "must be text",
    "too_short": "must have at least {min_length} values",
    "too_long": "must have at most {max_length} values",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
}

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
# As YAML writes them.
_SHORT.repr_NoneType = lambda value, level: "null"  # type: ignore[attr-defined]
_SHORT.repr_bool = lambda value, level: str(value).lower()  # type: ignore[attr-defined]


def _short(value: Any) -> str:
    """A value, shortened to one line for a message."""
    return _SHORT.repr(value)


def _section_at(keys: tuple[str, ...]) -> type[Section]:
    section: type[Section] = Config
    for key in keys:
        if key in section.model_fields:
            section = next(_sections_in(section.model_fields[key].annotation), section)
    return section


def _example(keys: tuple[str, ...], value: Any) -> str:
    """What the list at ``keys`` may hold: ``value``, where it fits, as often as it must have values."""
    schema = _section_at(keys[:-1]).model_json_schema()["properties"].get(keys[-1], {})
    lists = [one for one in (schema, *schema.get("anyOf", ())) if one.get("items", {}).get("type") in PLAIN]
    if not lists:
        return "a, b"
    fits = isinstance(value, int | float) or lists[0]["items"]["type"] == "string"
    return ", ".join([_short(value) if fits else "a number"] * lists[0].get("minItems", 1))


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections in a type such as ``list[Annotated[BackboneConfig, ...]]`` or ``BackboneConfig | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)
