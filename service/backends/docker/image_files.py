"""Which files an image has, seen through a container of it that is never started."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import docker.errors

LABEL_PROBE = "navarch.probe"
_LEFT_BEHIND_S = 300


def files_in(api: Any, image_id: str, paths: Sequence[str]) -> frozenset[str]:
    """Those of the paths that are there, links followed."""
    _remove_leftovers(api)
    created = api.create_container(
        image_id,
        entrypoint=["-"],
        labels={LABEL_PROBE: "files"},
        host_config=api.create_host_config(network_mode="none"),
    )
    try:
        return frozenset(path for path in paths if _has(api, created["Id"], path))
    finally:
        with suppress(docker.errors.APIError):  # a later look removes it
            api.remove_container(created["Id"], v=True, force=True)


def _has(api: Any, container: str, path: str) -> bool:
    response = api.head(api._url("/containers/{0}/archive", container), params={"path": path}, timeout=api.timeout)
    return bool(response.status_code == 200)


def _remove_leftovers(api: Any) -> None:
    """Removes what a process left that was killed in the middle of a look."""
    for container in api.containers(all=True, filters={"label": f"{LABEL_PROBE}=files", "status": "created"}):
        if time.time() - container.get("Created", 0) > _LEFT_BEHIND_S:
            with suppress(docker.errors.APIError):
                api.remove_container(container["Id"], v=True, force=True)
