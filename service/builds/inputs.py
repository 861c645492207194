"""What a build reads of this machine: opened for whoever asked for it, and read under names that are ours.

A path is looked at when a build is asked for, so that a mistake is told at once, and opened anew when it starts. A
mount root is where jobs write: what lies there is opened without following links out of it, and what was opened is
read, whatever its name leads to by then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from images.context import is_wheel
from images.recipes import Recipe, is_file_name, load_recipe, recipe_of
from jobs.documents import MAX_BYTES
from service.access.mounts import Checked, MountRules
from service.access.paths import Opened, open_below
from service.access.principals import Principal
from service.contract.errors import Problem

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Inputs:
    recipe: Recipe
    wheelhouse: Path | None
    ca_bundle: Path | None


def check(recipe: str, options: Mapping[str, Any], actor: Principal, rules: MountRules) -> Recipe:
    """The recipe of a build, whose other paths lead somewhere. Raises Problem, ImageError."""
    for name, is_dir in _PATHS.items():
        if options.get(name):
            _open(rules, options[name], name, actor, is_dir=is_dir).close()
    return _recipe(recipe, actor, rules)


@contextmanager
def opened(
    recipe: str, options: Mapping[str, Any], actor: Principal, rules: MountRules, beside: Path
) -> Iterator[Inputs]:
    """All that a build reads, held open; its names are in a folder in `beside`. Raises Problem, ImageError."""
    beside.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        folder = Path(held.enter_context(TemporaryDirectory(prefix=".inputs-", dir=beside)))
        wheelhouse = bundle = None
        if given := options.get("wheelhouse"):
            found = _open(rules, given, "wheelhouse", actor, is_dir=True)
            wheelhouse = folder / "wheelhouse"
            wheelhouse.mkdir()
            with found.opened:
                for name in filter(is_wheel, _names(found.opened)):
                    _name(held.enter_context(_within(found, name)), wheelhouse / name)
        if given := options.get("ca_bundle"):
            bundle = folder / Path(given).name
            _name(held.enter_context(_open(rules, given, "ca_bundle", actor, is_dir=False).opened), bundle)
        yield Inputs(_recipe(recipe, actor, rules), wheelhouse, bundle)


_PATHS = {"wheelhouse": True, "ca_bundle": False}
"""Options that are paths: whether they name a folder."""
_CALLED = {"wheelhouse": "The wheelhouse", "ca_bundle": "The CA bundle", "recipe": "The recipe file"}


def _recipe(name: str, actor: Principal, rules: MountRules) -> Recipe:
    if not is_file_name(name):
        return load_recipe(name)
    found = _open(rules, name, "recipe", actor, is_dir=False)
    with found.opened, os.fdopen(found.opened.readable(), "rb") as file:
        return recipe_of(file.read(MAX_BYTES + 1), Path(name))


def _open(rules: MountRules, path: str, what: str, actor: Principal, *, is_dir: bool) -> Checked:
    found = rules.open_given(path, _CALLED[what], actor)
    if found.opened.is_dir if is_dir else found.opened.is_file:
        return found
    found.close()
    kind = "folder" if is_dir else "file"
    raise Problem("path_missing", f"{_CALLED[what]} {path} is no {kind}.", f"Name a {kind}.", path=path)


def _names(folder: Opened) -> list[str]:
    handle = folder.readable()
    try:
        with os.scandir(handle) as entries:
            return sorted(entry.name for entry in entries)
    finally:
        os.close(handle)


def _within(found: Checked, name: str) -> Opened:
    """A file of a folder; what it links to must lie where the folder may. Raises Problem `path_missing`."""
    try:
        return open_below(found.anchor, str(Path(found.below(found.anchor), name)))
    except OSError as error:
        raise Problem(
            "path_missing",
            f"The wheel {found.opened.path / name} can't be read: {error.strerror}.",
            "Put the file itself into the wheelhouse, or take the link away.",
        ) from error


def _name(opened: Opened, name: Path) -> None:
    """A name by which only this file is read, as long as it is held open."""
    if hasattr(os, "O_PATH"):
        name.symlink_to(f"/proc/{os.getpid()}/fd/{opened.fd}")
        return
    with os.fdopen(opened.readable(), "rb") as source, name.open("xb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)
