"""Reads a job's YAML as its author meant it: overrides applied, relative paths made absolute."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jobs.documents import MAX_BYTES, DocumentError, read_yaml
from jobs.spec import load_document
from jobs.training import write_out_shorthand
from service.contract.errors import Problem

#: Where specs hold paths. `[]` stands for each item of a list (or the one thing that stands in its place).
PATH_KEYS = (
    "model",
    "tokenizer",
    "reference",
    "resume",
    "adapter",
    "data[]",
    "data[].path",
    "data.sources[]",
    "data.sources[].path",
    "eval.data[]",
    "eval.data[].path",
    "data.eval[]",
    "data.eval[].path",
    "reward.model",
    "critic.model",
    "ptx.data[]",
    "ptx.data[].path",
)
_SCHEMES = ("artifact:", "hf:", "/")


def read(file: str, overrides: Iterable[str]) -> dict[str, Any]:
    """The spec in `file` (`-` is standard input) with `key=value` overrides.

    Paths in the file are relative to the file's folder, paths in overrides to the working folder.
    Raises Problem.
    """
    document, folder = _load(file)
    given = [parse_override(text) for text in overrides]
    absolutize(document, folder)
    for key, value in given:
        set_key(document, key, value)
        absolutize(document, Path.cwd())  # all that was there before is absolute already
    return document


def _load(file: str) -> tuple[dict[str, Any], Path]:
    if file == "-":
        text, folder = sys.stdin.read(MAX_BYTES + 1), Path.cwd()
    else:
        path = Path(file).expanduser().absolute()
        try:
            with path.open() as opened:
                text, folder = opened.read(MAX_BYTES + 1), path.parent
        except FileNotFoundError:
            raise Problem("path_missing", f"There is no file {file}.", "Give the path of a job's YAML file.") from None
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise Problem("path_missing", f"{file} can't be read: {why}.", "Give a job's YAML file.") from None
    try:
        return load_document(text), folder
    except DocumentError as error:
        raise Problem("invalid_spec", f"{file}: {error}.", "See jobs/examples for specs that work.") from None


def parse_override(text: str) -> tuple[list[str], Any]:
    """`train.lr=1e-5` → (["train", "lr"], 1e-5). Values are YAML. Raises Problem `invalid_override`."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise Problem("invalid_override", f"{text!r} is not KEY=VALUE.", "Write overrides as train.lr=1e-5.")
    try:
        return parts, read_yaml(value)
    except DocumentError as error:
        detail = f"The value of {key!r} can't be read: {error}."
        raise Problem("invalid_override", detail, "Put quotes around text.") from None


def set_key(document: dict[str, Any], key: list[str], value: Any) -> None:
    """Set a dotted key; sections on the way are made, list items are named by number. Raises Problem."""
    write_out_shorthand(document, key)
    place: Any = document
    for depth, part in enumerate(key):
        last = depth == len(key) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                where = ".".join(key[:depth])
                detail = f"`{where}` is a list of {len(place)}; {part!r} is none of its items."
                raise Problem("invalid_override", detail, f"Use a number from 0 to {len(place) - 1}.")
            index: Any = int(part)
        elif isinstance(place, dict):
            index = part
        else:
            where = ".".join(key[:depth])
            raise Problem("invalid_override", f"`{where}` is {place!r}, which holds no `{part}`.", "Override it whole.")
        if last:
            place[index] = value
        else:
            if isinstance(place, dict) and place.get(index) is None:
                place[index] = {}
            inner: Any = place[index]
            place = inner


def absolutize(document: dict[str, Any], folder: Path) -> None:
    """Make the relative paths in a spec absolute, in place."""
    for key in PATH_KEYS:
        _walk(document, key.split("."), folder)
    mounts = document.get("mounts")
    if isinstance(mounts, list):
        document["mounts"] = [_mount(mount, folder) for mount in mounts]
    reward = document.get("reward")
    if isinstance(reward, dict):
        _function(reward, "function", folder)
        several = reward.get("functions")
        for place, each in enumerate(several) if isinstance(several, list) else ():
            if isinstance(each, dict):
                _function(each, "function", folder)
            else:
                _function(several, place, folder)


def _function(holder: Any, key: Any, folder: Path) -> None:
    """`file.py:function` with the file's path made absolute, in place."""
    given = holder.get(key) if isinstance(holder, dict) else holder[key]
    path, colon, name = given.partition(":") if isinstance(given, str) else ("", "", "")
    if path.endswith(".py"):
        holder[key] = _absolute(path, folder) + colon + name


def _walk(place: Any, key: list[str], folder: Path) -> None:
    if not isinstance(place, dict):
        return
    name = key[0].removesuffix("[]")
    value: Any = place.get(name)
    if key[0].endswith("[]"):
        if isinstance(value, str) and len(key) == 1:
            place[name] = _absolute(value, folder)
        for index, item in enumerate(value) if isinstance(value, list) else ():
            if len(key) == 1 and isinstance(item, str):
                value[index] = _absolute(item, folder)
            elif len(key) > 1:
                _walk(item, key[1:], folder)
        if isinstance(value, dict) and len(key) > 1:
            _walk(value, key[1:], folder)
    elif len(key) == 1:
        if isinstance(value, str):
            place[name] = _absolute(value, folder)
    else:
        _walk(value, key[1:], folder)


def _absolute(path: str, folder: Path) -> str:
    if not path or path.startswith(_SCHEMES):
        return path
    import os

    return os.path.normpath(folder / Path(path).expanduser())


def _mount(mount: Any, folder: Path) -> Any:
    if isinstance(mount, dict) and isinstance(mount.get("source"), str):
        return {**mount, "source": _absolute(mount["source"], folder)}
    if not isinstance(mount, str) or ":" not in mount:
        return mount
    source, _, rest = mount.partition(":")
    return f"{_absolute(source, folder)}:{rest}"


def dump(document: dict[str, Any]) -> str:
    """A spec as YAML, in the order in which it was written, scripts as blocks."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return str(yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100))
