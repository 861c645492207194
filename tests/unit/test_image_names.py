"""Whose an image's name is: what others run is not changed under them by a member."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import ImageNotFound

from service.access.principals import Kind, Principal, Role
from service.builds.names import LABELS, check_name
from service.contract.errors import Problem

ANN, ADMIN = Principal("u-ann", "ann", Role.MEMBER, Kind.USER), Principal("u-root", "root", Role.ADMIN, Kind.USER)


class Shelf:
    """An engine's images, by name, with the labels that a commit gives them."""

    def __init__(self) -> None:
        self.images = self
        self.makers: dict[str, str | None] = {"team/ann:1": "ann", "team/bob:1": "bob", "navarch/cpu:latest": None}

    def get(self, name: str) -> Any:
        if name not in self.makers:
            raise ImageNotFound(name)
        maker = self.makers[name]
        return SimpleNamespace(labels={f"{LABELS}by": maker} if maker else {})


@pytest.mark.parametrize("tag", ["navarch/cpu", "navarch/cpu:latest", "team/bob:1"])
def test_a_member_moves_no_name_that_others_use(tag: str) -> None:
    with pytest.raises(Problem) as caught:
        check_name(Shelf(), tag, ANN)  # type: ignore[arg-type]
    assert caught.value.code == "not_yours" and tag in caught.value.detail
    check_name(Shelf(), tag, ADMIN)  # type: ignore[arg-type]


@pytest.mark.parametrize("tag", ["team/ann:1", "team/new:1"])
def test_new_names_and_those_of_ones_own_commits_are_free(tag: str) -> None:
    check_name(Shelf(), tag, ANN)  # type: ignore[arg-type]
