"""Recipes: the built-in ones, a user's own, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.errors import ImageError
from images.recipes import DEFAULT_RECIPE, builtin_recipes, load_recipe, torch_flavours, torch_index


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_the_builtin_recipes_and_their_bases() -> None:
    recipes = builtin_recipes()
    assert next(iter(recipes)) == DEFAULT_RECIPE == "colossalai-0.3.0"
    assert {name: recipe.base for name, recipe in recipes.items()} == {
        "colossalai-0.3.0": "hpcaitech/colossalai:0.3.0",
        "colossalai-0.5.0": "pytorch/pytorch:2.5.1-cuda12.4-cudnn9-devel",
        "cpu": "debian:bookworm-slim",
        "workspace": "debian:bookworm-slim",
    }


def test_a_base_with_an_old_python_brings_a_newer_one_and_a_compiler() -> None:
    recipe = load_recipe("colossalai-0.3.0")
    assert recipe.python == "python:3.11-slim-bullseye"
    assert "python3" not in recipe.system_packages
    assert {"gcc", "openssh-server", "rsync", "tini"} <= set(recipe.system_packages)


def test_the_cpu_recipe_uses_the_distributions_python_and_no_compiler() -> None:
    packages = load_recipe("cpu").system_packages
    assert {"python3", "python3-venv"} <= set(packages)
    assert "gcc" not in packages


def test_another_base_is_never_replaced_by_debootstrap() -> None:
    assert load_recipe("cpu").debootstrap == "bookworm"
    changed = load_recipe("cpu").with_base("ubuntu:24.04")
    assert (changed.base, changed.debootstrap, changed.default_tag) == ("ubuntu:24.04", "", "navarch/cpu:latest")


def test_a_users_recipe_takes_its_name_from_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, "base: ubuntu:24.04\ntorch: cpu\npackages: [git, vim]\n"))
    assert (recipe.name, recipe.base, recipe.default_tag) == ("mine", "ubuntu:24.04", "navarch/mine:latest")
    assert {"git", "vim", "openssh-server"} <= set(recipe.system_packages)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bse: x\n", "did you mean 'base'?"),
        ("torch: cpu\n", "`base` is missing"),
        ("base: x\ntorch: cuda99\n", "'cuda99' is not one of"),
        ("base: 'x; rm -rf /'\n", "is not the name of an image"),
        ("base: x\npackages: vim\n", "packages must be a list"),
        ("base: x\npackages: ['vim; reboot']\n", "is not a package name"),
        ("base: 12\n", "base must be a text"),
        ("base: x\nname: Not Lower\n", "must be lower-case"),
        ("- base\n", "must hold keys and values"),
        ("base: [x\n", "can't be read"),
    ],
)
def test_a_wrong_recipe_is_told_what_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_recipe(recipe_file(tmp_path, text))
    assert caught.value.code == "bad_recipe"
    assert told in str(caught.value)


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"Did you mean 'colossalai-0\.3\.0'") as caught:
        load_recipe("colossalai-0.3")
    assert caught.value.code == "unknown_recipe"
    assert "cpu" in caught.value.hint
    with pytest.raises(ImageError, match="no recipe file"):
        load_recipe(tmp_path / "absent.yaml")


def test_every_flavour_of_torch_is_pinned_and_found_where_its_build_is() -> None:
    from images.recipes import REQUIREMENTS_DIR

    assert {"cpu", "cuda11", "cuda12"} <= set(torch_flavours())
    for flavour in torch_flavours():
        lines = (REQUIREMENTS_DIR / f"torch-{flavour}.txt").read_text().splitlines()
        (pin,) = [line for line in lines if not line.startswith("#")]
        assert pin.startswith("torch==")
    assert torch_index("cpu").endswith("/cpu")
    assert torch_index("cuda12") == ""
