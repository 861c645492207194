"""What an image is made from: the built-in recipes, and those that a user writes as YAML."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from images.errors import ImageError
from jobs.documents import MAX_BYTES, read_yaml

BUILTIN_DIR = Path(__file__).parent / "builtin"
REQUIREMENTS_DIR = Path(__file__).parent / "requirements"
DEFAULT_RECIPE = "colossalai-0.3.0"
SYSTEM_PACKAGES = (
    "ca-certificates",
    "curl",
    "openssh-client",
    "openssh-server",
    "procps",
    "rsync",
    "tini",
    "xauth",
)

TORCH_INDEXES = {
    "cpu": "https://download.pytorch.org/whl/cpu",
    "cuda11": "https://download.pytorch.org/whl/cu118",
}
"""PyTorch's own index, for flavours whose build is not what PyPI has under that version."""

_NAME = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*")
_REFERENCE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/@-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.:~-]*(=[A-Za-z0-9+.:~-]+)?")


@dataclass(frozen=True)
class Recipe:
    """How to make one image. `python` is `distribution` or the name of an image with Python 3.11 in /usr/local."""

    name: str
    base: str
    description: str = ""
    debootstrap: str = ""
    """Debian release to make the base from when no registry answers; empty: there is no such way."""
    python: str = "distribution"
    torch: str = "cuda12"
    packages: tuple[str, ...] = ()
    """More packages of the distribution."""

    def __post_init__(self) -> None:
        _require(
            bool(_NAME.fullmatch(self.name)),
            self.name,
            f"name {self.name!r} must be lower-case letters, digits and . _ -",
        )
        for field, value in (("base", self.base), ("python", self.python)):
            _require(bool(_REFERENCE.fullmatch(value)), self.name, f"{field} {value!r} is not the name of an image")
        flavours = torch_flavours()
        _require(self.torch in flavours, self.name, f"torch {self.torch!r} is not one of {', '.join(flavours)}")
        for package in self.packages:
            _require(bool(_PACKAGE.fullmatch(package)), self.name, f"{package!r} in packages is not a package name")

    @property
    def default_tag(self) -> str:
        return f"navarch/{self.name}:latest"

    @property
    def system_tag(self) -> str:
        """The name of the image without the training environment."""
        return f"navarch/{self.name}-system:latest"

    @property
    def system_packages(self) -> tuple[str, ...]:
        """All packages of the system layer."""
        python = ("python3", "python3-venv") if self.python == "distribution" else ()
        # torch.compile writes C++ and compiles it where it runs.
        compiler = () if self.torch == "cpu" else ("gcc", "g++", "libc6-dev")
        return tuple(sorted({*SYSTEM_PACKAGES, *python, *compiler, *self.packages}))

    def with_base(self, base: str | None) -> Recipe:
        """The same recipe on another base (then nothing is made by debootstrap)."""
        return self if base is None else replace(self, base=base, debootstrap="")


def torch_flavours() -> tuple[str, ...]:
    """Names of the torch builds that requirement files exist for, such as `cpu` and `cuda12`."""
    return tuple(sorted(path.stem.removeprefix("torch-") for path in REQUIREMENTS_DIR.glob("torch-*.txt")))


def torch_index(flavour: str) -> str:
    """Index to ask for this flavour's torch beside the package index; empty when PyPI has it."""
    return TORCH_INDEXES.get(flavour, "")


def builtin_recipes() -> dict[str, Recipe]:
    """The recipes that come with Navarch, the default first."""
    found = {recipe.name: recipe for recipe in map(load_recipe_file, sorted(BUILTIN_DIR.glob("*.yaml")))}
    return {DEFAULT_RECIPE: found.pop(DEFAULT_RECIPE), **found}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A built-in recipe by its name, or one from a YAML file. Raises ImageError (`unknown_recipe`, `bad_recipe`)."""
    builtin = builtin_recipes()
    if str(name_or_path) in builtin:
        return builtin[str(name_or_path)]
    if is_file_name(name_or_path):
        return load_recipe_file(Path(name_or_path))
    near = difflib.get_close_matches(str(name_or_path), builtin, n=1)
    raise ImageError(
        "unknown_recipe",
        f"There is no recipe {str(name_or_path)!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
        f"Recipes: {', '.join(builtin)}; or give the path of a YAML file.",
    )


def is_file_name(name_or_path: str | Path) -> bool:
    """Whether a recipe is named by a YAML file, not by its name."""
    return Path(name_or_path).suffix in {".yaml", ".yml"}


def load_recipe_file(path: Path) -> Recipe:
    """The recipe in a YAML file; its name defaults to the file's."""
    try:
        if not path.is_file():
            raise ImageError("unknown_recipe", f"There is no recipe file {path}.")
        with path.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError("bad_recipe", f"The recipe file {path} can't be read: {error}") from error
    return recipe_of(content, path)


def recipe_of(written: bytes, path: Path) -> Recipe:
    """The recipe that was read from a file."""
    try:
        content = read_yaml(written.decode("utf-8"))
    except ValueError as error:
        raise ImageError("bad_recipe", f"The recipe file {path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ImageError(
            "bad_recipe", f"The recipe file {path} must hold keys and values, such as `base: debian:bookworm`."
        )
    return recipe_from_mapping({"name": path.stem, **content}, where=str(path))


def recipe_from_mapping(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values, as a YAML file or an API body holds them."""
    known = [field.name for field in fields(Recipe)]
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            suggestion = f"; did you mean {near[0]!r}?" if near else ""
            raise ImageError("bad_recipe", f"{where}: unknown key {key!r}{suggestion}", f"Keys: {', '.join(known)}.")
    if "base" not in content:
        raise ImageError(
            "bad_recipe", f"{where}: `base` is missing", "Name the image to build on, such as ubuntu:22.04."
        )
    values = dict(content)
    packages = values.pop("packages", ())
    for key, value in values.items():
        if not isinstance(value, str):
            raise ImageError("bad_recipe", f"{where}: {key} must be a text, not {value!r}")
    if not isinstance(packages, list | tuple) or not all(isinstance(package, str) for package in packages):
        raise ImageError("bad_recipe", f"{where}: packages must be a list of package names")
    return Recipe(**values, packages=tuple(packages))


def _require(condition: bool, recipe: str, message: str) -> None:
    if not condition:
        raise ImageError("bad_recipe", f"recipe {recipe!r}: {message}")
