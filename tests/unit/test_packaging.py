"""An installed Navarch has every file that its source tree has."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_of_the_packages_is_installed_with_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = ["*.py", *project["package-data"]["*"]]
    folders = [ROOT / pattern.rstrip("*") for pattern in project["packages"]["find"]["include"]]
    sources = ROOT / "service/dashboard"  # what its pages are built from stays behind
    assert project["package-data"]["service.dashboard"] == ["dist/*", "dist/assets/*"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    files = [path for path in files if not path.is_relative_to(sources) or path.suffix == ".py"]
    assert len(files) > 200
    missing = [str(path.relative_to(ROOT)) for path in files if not any(fnmatch(path.name, each) for each in patterns)]
    assert missing == [], "files that package-data in pyproject.toml leaves out of an installation"
