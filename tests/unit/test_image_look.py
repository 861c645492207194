"""A look at a job's image at submit: refused with a sentence, asked once, and never longer than a submit may wait."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from jobs.placement import HostCapacity
from jobs.spec import JobSpec
from service.backends.engines import ImageFacts
from service.backends.references import SYSTEM_LABEL
from service.builds import look as module
from service.builds.look import ImageLook
from service.contract.errors import Problem
from service.intake.admission import parse

HOSTS = (HostCapacity("h1", "h1"), HostCapacity("h2", "h2"))


class Shelf:
    """The images of each host, and how often their engines were asked; `stuck` ones answer when they are let."""

    def __init__(self, images: dict[str, ImageFacts]) -> None:
        self.images = images
        self.asked: list[str] = []
        self.stuck = threading.Event()
        self.stuck.set()

    def engine(self, host_id: str) -> Any:
        self.stuck.wait(10)
        self.asked.append(host_id)
        return self

    def image(self, reference: str) -> ImageFacts | None:
        return self.images.get(reference)

    def holding(self, image_id: str, paths: tuple[str, ...]) -> frozenset[str]:
        return frozenset({"/bin/sh"})


def spec(**more: Any) -> JobSpec:
    return parse({"type": "command", "image": "team/box:1", "command": ["true"], "ssh": False, **more})


def test_submits_that_come_together_ask_an_engine_once_and_begin_no_thread_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf = Shelf({"team/box:1": ImageFacts("sha256:1", "team/box:1", {SYSTEM_LABEL: "1"})})
    look = ImageLook(shelf)  # type: ignore[arg-type]
    begun: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (begun.append(self.name), start(self))[1])
    for _ in range(20):
        look.check(spec(), HOSTS)
    assert shelf.asked == ["h1"] and begun == ["image-look"]
    monkeypatch.setattr(module, "_FRESH_S", 0.0)
    look.check(spec(), HOSTS)
    assert shelf.asked == ["h1", "h1"]


def test_what_a_plain_image_lacks_is_said_again_from_memory() -> None:
    shelf = Shelf({"team/box:1": ImageFacts("sha256:1", "team/box:1")})
    look = ImageLook(shelf)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(Problem, match="has no bash"):
            look.check(spec(command="echo hello"), HOSTS)
    look.check(spec(), HOSTS)
    assert shelf.asked == ["h1"]


def test_an_engine_that_says_nothing_delays_one_submit_and_is_left_alone_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    shelf = Shelf({})
    shelf.stuck.clear()
    look = ImageLook(shelf)  # type: ignore[arg-type]
    look.check(spec(), HOSTS[:1])
    start = time.monotonic()
    look.check(spec(), HOSTS[:1])
    assert time.monotonic() - start < 0.05
    shelf.stuck.set()
