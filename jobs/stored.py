"""Reads specs that were stored, maybe by an older version of Navarch: each carries the number of its kind."""

from collections.abc import Callable, Mapping
from typing import Any

from jobs.mistakes import Mistake, SpecError
from jobs.spec import JobSpec, parse_spec

VERSION = 1
"""Of the documents that are stored now. What makes an older one mean something else raises it."""
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a version to the next: the same job, as it would be written now."""


def read_stored(document: Mapping[str, Any], version: int) -> JobSpec:
    """The spec in a stored document. Raises SpecError when it is newer than this Navarch, or means nothing to it."""
    if version > VERSION:
        said = f"was stored by a newer Navarch (specs of version {version}; this one reads {VERSION})"
        raise SpecError([Mistake("", f"its spec {said}: run that one, or submit the job again")])
    current = dict(document)
    for old in range(version, VERSION):
        current = UPGRADES[old](current)
    return parse_spec(current, stored=True)
