"""Where an image comes from: another host that has it, its registry, or nowhere, with the reason that helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.backends.docker.pulls import Pulls
from service.backends.errors import EngineError, ImageMissing


class Way:
    """A stream that says one thing, and then ends or fails."""

    def __init__(self, error: EngineError | None = None) -> None:
        self.error, self.used = error, False

    def __iter__(self) -> Iterator[str]:
        self.used = True
        yield "a layer"
        if self.error is not None:
            raise self.error

    def close(self) -> None: ...


class Registry:
    def __init__(self, way: Way) -> None:
        self.way = way

    def engine(self, host_id: str) -> Any:
        return self

    def pull(self, reference: str) -> Way:
        return self.way


def fetch(copy: Way | None, pull: Way) -> Pulls:
    """Wants an image; the lane does its work at once."""

    def in_lane(kind: str, where: str, work: Callable[[], None]) -> None:
        work()

    pulls = Pulls(Registry(pull), in_lane, lambda owner: None, lambda host, reference: copy)  # type: ignore[arg-type]
    pulls.want("h2", "team/box:1", "job")
    return pulls


def test_another_host_is_asked_before_the_registry() -> None:
    copy, pull = Way(), Way()
    fetch(copy, pull)
    assert copy.used and not pull.used


def test_a_host_that_cannot_give_it_is_no_reason_while_the_registry_has_it() -> None:
    copy, pull = Way(EngineError("no plain layers")), Way()
    fetch(copy, pull)
    assert copy.used and pull.used


@pytest.mark.parametrize("copied", [True, False])
def test_the_error_is_the_one_that_helps(copied: bool) -> None:
    copy = Way(EngineError("no plain layers")) if copied else None
    pulls = fetch(copy, Way(ImageMissing("the registry has no such image")))
    with pytest.raises(EngineError, match="no plain layers" if copied else "the registry has no such image"):
        pulls.want("h2", "team/box:1", "job")
