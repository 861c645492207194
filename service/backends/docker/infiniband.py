"""Whether a host has InfiniBand (or RoCE) devices, found out by asking its engine alone."""

from collections.abc import Mapping
from typing import Any

import docker.errors

DEVICES = "/dev/infiniband"


def has_infiniband(api: Any, image: str, labels: Mapping[str, str]) -> bool:
    """An engine refuses a mount of what isn't there. Nothing is started. Raises the engine's errors, but not for that.

    `labels`: by which a sweep finds the container where this process dies here.
    """
    mount = {"Type": "bind", "Source": DEVICES, "Target": DEVICES, "ReadOnly": True}
    try:
        made = api.create_container(
            image, ["true"], entrypoint=["true"], host_config={"Mounts": [mount]}, labels=dict(labels)
        )
    except docker.errors.APIError as error:
        if "does not exist" in str(error.explanation):
            return False
        raise
    api.remove_container(made["Id"], v=True, force=True)
    return True
