"""Where an open folder lies in its file system: the same for every name and bind mount that leads to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.access.paths import Opened

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Spot:
    """A folder as its file system knows it."""

    device: str
    """major:minor."""
    path: Path
    """From the root of the file system."""


@dataclass(frozen=True)
class _Mounted:
    id: int
    spot: Spot
    at: Path


def spot_of(opened: Opened) -> Spot | None:
    """None where the system doesn't tell (no Linux)."""
    try:
        lines = Path(f"/proc/self/fdinfo/{opened.fd}").read_text().splitlines()
        there = Path(f"/proc/self/fd/{opened.fd}").readlink()
    except OSError:
        return None
    number = next((int(line.split()[1]) for line in lines if line.startswith("mnt_id:")), None)
    for mounted in _table():
        if mounted.id == number and (there == mounted.at or mounted.at in there.parents):
            return Spot(mounted.spot.device, mounted.spot.path / there.relative_to(mounted.at))
    return None


def below(folder: Path) -> list[Spot]:
    """What is mounted somewhere in a folder (given without links)."""
    return [mounted.spot for mounted in _table() if folder in mounted.at.parents]


def _table() -> Iterator[_Mounted]:
    """Lines of mountinfo: id, parent's id, major:minor, root within the file system, mount point, …"""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, device, root, at = line.split(" ")[:5]
        yield _Mounted(int(number), Spot(device, Path(_plain(root))), Path(_plain(at)))


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)
