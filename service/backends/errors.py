"""What an engine can refuse, told apart by what has to be done about it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import docker.errors
import requests.exceptions
import urllib3.exceptions


class EngineError(Exception):
    """The engine refused something, with its own words."""


class Unreachable(EngineError):
    """The engine doesn't answer: nothing is known about what it runs."""


class ImageMissing(EngineError):
    """The image isn't on the host and couldn't be got."""


class PortTaken(EngineError):
    """A host port is used by something else."""

    def __init__(self, message: str, port: int | None) -> None:
        super().__init__(message)
        self.port = port


class GpuUnavailable(EngineError):
    """The engine can't hand GPUs to containers, or not these."""


class NoSpace(EngineError):
    """The engine's disk is full."""


class BadContainer(EngineError):
    """The engine refuses the container itself: a mount, a limit, a command that isn't there."""


class MountRefused(EngineError):
    """What a mount names may not be mounted now, or is not there (`missing`)."""

    def __init__(self, message: str, hint: str | None, *, missing: bool) -> None:
        super().__init__(f"{message} {hint or ''}".strip())
        self.missing = missing


class ContainerGone(EngineError):
    """The container isn't there any more."""


class NameTaken(EngineError):
    """A container of this name exists and is another one's."""

    def __init__(self, message: str, container_id: str) -> None:
        super().__init__(message)
        self.container_id = container_id


_PORT = re.compile(r"port is already allocated|address already in use|bind: permission denied", re.IGNORECASE)
_PORT_NUMBER = re.compile(r"(?:[\d.]+|\[[^\]]*\]|::):(\d+)")
_GPU = re.compile(r"could not select device driver|nvidia-container|nvidia driver|unknown device|cuda", re.IGNORECASE)


def explained(error: docker.errors.APIError) -> EngineError:
    """The engine's answer as one of the errors above."""
    words = str(error.explanation or error)
    if "no space left on device" in words:
        return NoSpace(words)
    if _PORT.search(words):
        found = _PORT_NUMBER.search(words)
        return PortTaken(words, int(found.group(1)) if found else None)
    if _GPU.search(words):
        return GpuUnavailable(words)
    if isinstance(error, docker.errors.ImageNotFound):
        return ImageMissing(words)
    if error.status_code is not None and 400 <= error.status_code < 500:
        return BadContainer(words)
    if "OCI runtime" in words or "invalid mount" in words or "error while creating mount" in words:
        return BadContainer(words)
    return EngineError(words)


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turns the SDK's and the transport's exceptions into EngineErrors."""
    try:
        yield
    except docker.errors.APIError as error:
        raise explained(error) from error
    except (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        docker.errors.DockerException,
        OSError,
        ValueError,  # a read on a connection that another thread closed
    ) as error:
        raise Unreachable(f"{what}: {error}") from error
