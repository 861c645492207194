"""The image's pinned requirements hold everything that the training package imports."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from images.recipes import REQUIREMENTS_DIR

TRAINING = Path(__file__).parents[2] / "training"
WHERE_PRESENT = {"triton"}
"""Imported only where it is installed: with CUDA builds of torch."""


def imported() -> dict[str, str]:
    """Top-level module → a file that imports it, wherever in the file that stands."""
    found: dict[str, str] = {}
    for file in sorted(TRAINING.rglob("*.py")):
        for module in _modules(ast.parse(file.read_text())):
            found.setdefault(module, str(file.relative_to(TRAINING.parent)))
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names and name != "training"}


def _modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> set[str]:
    """Distributions that install-training.sh installs: the pins, and what torch brings along."""
    lines = "".join((REQUIREMENTS_DIR / f"{name}.txt").read_text() for name in ("training", "no-deps", "torch-cpu"))
    pins = {canonical(line.partition("==")[0]) for line in lines.splitlines() if "==" in line}
    of_torch = {
        re.split(r"[\s<>=!~;\[]", each, maxsplit=1)[0] for each in requires("torch") or () if "extra" not in each
    }
    return pins | {canonical(name) for name in of_torch}


def test_every_module_that_training_imports_is_in_the_image() -> None:
    distributions, present, modules = packages_distributions(), pinned(), imported()
    assert {"torch", "transformers", "uvicorn"} <= set(modules)
    missing = {
        module: file
        for module, file in modules.items()
        if module not in WHERE_PRESENT and not {canonical(d) for d in distributions.get(module, [module])} & present
    }
    assert not missing, f"add to images/requirements/training.txt: {missing}"
