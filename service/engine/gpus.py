"""Finds a host's GPUs: nvidia-smi in a short probe container that asks for all of them."""

import contextlib
from typing import Any

import docker.errors
from docker.types import DeviceRequest

from service.engine.base import Gpu

_QUERY = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
_TIMEOUT_S = 60


def parse(output: str) -> list[Gpu]:
    """GPUs from nvidia-smi's CSV, in the order of their index; anything else is passed over."""
    found = []
    for line in output.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[0].isdigit() and parts[1].startswith("GPU-"):
            memory = int(parts[3]) if parts[3].isdigit() else 0
            found.append(Gpu(uuid=parts[1], name=parts[2], memory_mib=memory, index=int(parts[0])))
    return sorted(found, key=lambda gpu: gpu.index)


def probe(api: Any, image: str | None) -> list[Gpu]:
    """The engine's GPUs. An engine that can't give GPUs to containers has none, which is no error."""
    image = image or _any_image(api)
    if image is None:
        return []
    host = api.create_host_config(
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu", "utility"]])], network_mode="none"
    )
    container = api.create_container(
        image, command=_QUERY[1:], entrypoint=_QUERY[:1], host_config=host, labels={"navarch.probe": "gpus"}
    )["Id"]
    try:
        api.start(container)
        if api.wait(container, timeout=_TIMEOUT_S)["StatusCode"] != 0:
            return []
        return parse(api.logs(container, stdout=True, stderr=False).decode("utf-8", "replace"))
    except docker.errors.APIError as error:
        if (
            error.status_code is not None and error.status_code < 600
        ):  # "could not select device driver", or no such program
            return []
        raise
    finally:
        with contextlib.suppress(docker.errors.APIError):
            api.remove_container(container, v=True, force=True)


def _any_image(api: Any) -> str | None:
    """The smallest image that is there, ours first: any will do, the NVIDIA runtime brings nvidia-smi along."""
    images = [image for image in api.images() if image.get("RepoTags") and image["RepoTags"] != ["<none>:<none>"]]
    ours = [image for image in images if "navarch.recipe" in (image.get("Labels") or {})]
    return min(ours or images, key=lambda image: image["Size"])["Id"] if images else None
