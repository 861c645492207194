"""Finds a host's GPUs: nvidia-smi in a short probe container that asks for all of them."""

import time
from collections.abc import Sequence
from typing import Any

import docker.errors
from docker.types import DeviceRequest

from jobs.launch import LABEL_DEPLOYMENT
from service.backends.engines import Gpu

LABEL_PROBE = "navarch.probe"
_QUERY = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
REPORT = ["nvidia-smi", "-q", "-x"]
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


def probe(api: Any, deployment: str, image: str | None) -> list[Gpu]:
    """The engine's GPUs. An engine that can't give GPUs to containers has none, which is no error."""
    said = ask(api, deployment, image, _QUERY)
    return parse(said) if said is not None else []


def ask(api: Any, deployment: str, image: str | None, command: Sequence[str]) -> str | None:
    """What a command (nvidia-smi) prints in a container that gets all GPUs; None where containers get none."""
    remove_leftovers(api, deployment)
    image = image or any_image(api)
    if image is None:
        return None
    host = api.create_host_config(
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu", "utility"]])], network_mode="none"
    )
    labels = {LABEL_PROBE: "gpus", LABEL_DEPLOYMENT: deployment}
    container = api.create_container(
        image, command=list(command[1:]), entrypoint=list(command[:1]), host_config=host, labels=labels
    )["Id"]
    try:
        api.start(container)
        if api.wait(container, timeout=_TIMEOUT_S)["StatusCode"] != 0:
            return None
        return str(api.logs(container, stdout=True, stderr=False).decode("utf-8", "replace"))
    except docker.errors.APIError as error:
        if "No such container" in str(error.explanation):  # somebody removed it: the answer isn't known
            raise
        if error.status_code is not None:  # "could not select device driver", or no such program
            return None
        raise
    finally:
        _remove(api, container)


def remove_leftovers(api: Any, deployment: str) -> None:
    """Removes the probes of a process that was killed in between; one at a time works on a deployment's engine."""
    labels = [f"{LABEL_PROBE}=gpus", f"{LABEL_DEPLOYMENT}={deployment}"]
    for container in api.containers(all=True, filters={"label": labels}):
        _remove(api, container["Id"])


def _remove(api: Any, container: str) -> None:
    """A removal that fails is tried again: the engine may be busy with the start that has just failed."""
    for pause in (0.2, 1.0, None):
        try:
            api.remove_container(container, v=True, force=True)
            return
        except docker.errors.NotFound:
            return
        except docker.errors.APIError:
            if pause is None:
                return  # the next start of the control plane removes it
            time.sleep(pause)


def any_image(api: Any) -> str | None:
    """The smallest image that is there, ours first: any will do, the NVIDIA runtime brings nvidia-smi along."""
    images = [image for image in api.images() if image.get("RepoTags") and image["RepoTags"] != ["<none>:<none>"]]
    ours = [image for image in images if "navarch.recipe" in (image.get("Labels") or {})]
    return min(ours or images, key=lambda image: image["Size"])["Id"] if images else None
