"""How far a pull or a push is, from the engine's messages about each layer: a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

EVERY_S = 2.0
_DONE = frozenset({"Pull complete", "Already exists", "Pushed", "Layer already exists"})
_MOVED = frozenset({"Download complete", "Verifying Checksum", "Extracting"})
_MOVING = frozenset({"Downloading", "Pushing"})


@dataclass
class _Layer:
    status: str = ""
    current: int = 0
    total: int = 0

    @property
    def done(self) -> bool:
        return self.status in _DONE or self.status.startswith("Mounted from")


@dataclass
class Transfer:
    """The state of one pull or push."""

    layers: dict[str, _Layer] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        """Notes one message; those that are about no layer change nothing."""
        status = str(event.get("status", ""))
        known = event.get("id") in self.layers
        if "id" not in event or (not known and status.startswith(("Pulling from", "Digest"))):
            return
        layer = self.layers.setdefault(str(event["id"]), _Layer())
        layer.status = status
        detail = event.get("progressDetail") or {}
        if status in _MOVING:
            layer.total = max(layer.total, int(detail.get("total") or 0))
            # A layer's size is known uncompressed only: what was sent may come to more.
            layer.current = min(int(detail.get("current") or 0), layer.total or 1 << 62)
        elif status in _MOVED or layer.done:
            layer.current = layer.total

    def __str__(self) -> str:
        done = sum(layer.done for layer in self.layers.values())
        moved, total = (sum(getattr(layer, name) for layer in self.layers.values()) for name in ("current", "total"))
        sizes = f", {_size(moved)} of {_size(total)}" if total else ""
        return f"{done} of {len(self.layers)} layers{sizes}"


def follow(
    events: Iterable[dict[str, Any]], doing: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each message of a transfer, and the line to show with it: empty unless something is to be told by now."""
    transfer, told, last = Transfer(), clock(), ""
    for event in events:
        transfer.take(event)
        line = f"{doing}: {transfer}" if transfer.layers else ""
        if line != last and clock() - told >= EVERY_S:
            told, last = clock(), line
            yield line, event
        else:
            yield "", event
    if transfer.layers and f"{doing}: {transfer}" != last:
        yield f"{doing}: {transfer}", {}


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
