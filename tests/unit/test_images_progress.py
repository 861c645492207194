"""How far a pull is, in one line every few seconds."""

from __future__ import annotations

from typing import Any

from images.progress import follow

EVENTS: list[dict[str, Any]] = [
    {"status": "Pulling from library/debian", "id": "bookworm"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "a"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "b"},
    {"status": "Downloading", "progressDetail": {"current": 1_000_000, "total": 50_000_000}, "id": "a"},
    {"status": "Downloading", "progressDetail": {"current": 400_000_000, "total": 2_000_000_000}, "id": "b"},
    {"status": "Download complete", "progressDetail": {}, "id": "a"},
    {"status": "Extracting", "progressDetail": {"current": 32768, "total": 50_000_000}, "id": "a"},
    {"status": "Pull complete", "progressDetail": {}, "id": "a"},
    {"status": "Pull complete", "progressDetail": {}, "id": "b"},
    {"status": "Digest: sha256:0"},
]


def lines(seconds_each: float) -> list[str]:
    moments = iter(range(1000))
    return [line for line, _ in follow(EVENTS, "Pulling x", clock=lambda: next(moments) * seconds_each) if line]


def test_what_is_there_and_what_comes() -> None:
    shown = lines(2.0)
    assert "Pulling x: 0 of 2 layers, 401 MB of 2.0 GB" in shown
    assert "Pulling x: 1 of 2 layers, 450 MB of 2.0 GB" in shown
    assert shown[-1] == "Pulling x: 2 of 2 layers, 2.0 GB of 2.0 GB"


def test_a_quick_pull_says_only_how_it_ended() -> None:
    assert lines(0.001) == ["Pulling x: 2 of 2 layers, 2.0 GB of 2.0 GB"]


def test_every_message_passes() -> None:
    assert [event for _, event in follow(EVENTS, "Pulling x") if event] == EVENTS
