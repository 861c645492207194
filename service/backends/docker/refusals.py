"""Reads a Docker Engine's refusals: what has to be done about each, and whether asking again makes sense."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import docker.errors
import requests.exceptions
import urllib3.exceptions

from service.backends.errors import (
    BadContainer,
    ContainerGone,
    EngineError,
    GpuUnavailable,
    ImageMissing,
    NoSpace,
    PortTaken,
    Unreachable,
)

_PORT = re.compile(r"port is already allocated|address already in use|bind: permission denied", re.IGNORECASE)
_PORT_NUMBER = re.compile(r"(?:[\d.]+|\[[^\]]*\]|::):(\d+)")
_GPU = re.compile(r"could not select device driver|nvidia-container|nvidia driver|unknown device|cuda", re.IGNORECASE)
_PASSING = re.compile(
    r"resource busy|temporarily unavailable|deadline exceeded|timeout|timed out|connection (refused|reset)|"
    r"cannot allocate memory|too many open files|transport is closing|shutting down|input/output error|\bEOF\b",
    re.IGNORECASE,
)
"""What an engine says when it has too much to do, or ends: the same request may succeed later."""
_LASTING = re.compile(
    r"OCI runtime|cannot unmarshal|cannot mkdir|not a directory|invalid argument|invalid mount|"
    r"error while creating mount|file name too long|too many levels of symbolic links",
    re.IGNORECASE,
)
"""Engines answer 500 to much that is the request's own fault."""


def is_full(words: str) -> bool:
    return "no space left on device" in words or "disk quota exceeded" in words


def is_passing(words: str) -> bool:
    return _PASSING.search(words) is not None


def explained(error: docker.errors.APIError) -> EngineError:
    """The engine's answer as one of service.backends.errors."""
    words = str(error.explanation or error)
    if is_full(words):
        return NoSpace(words)
    if _PORT.search(words):
        found = _PORT_NUMBER.search(words)
        return PortTaken(words, int(found.group(1)) if found else None)
    if _GPU.search(words):
        return GpuUnavailable(words)
    if isinstance(error, docker.errors.ImageNotFound):
        return ImageMissing(words)
    if "No such container" in words:
        return ContainerGone(words)
    if is_passing(words):
        return EngineError(words)
    if error.status_code is not None and 400 <= error.status_code < 500 and error.status_code not in (408, 409, 429):
        return BadContainer(words)
    return BadContainer(words) if _LASTING.search(words) else EngineError(words)


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turns the SDK's and the transport's exceptions into EngineErrors."""
    try:
        yield
    except docker.errors.APIError as error:
        raise explained(error) from error
    except (docker.errors.InvalidArgument, docker.errors.NullResource, docker.errors.InvalidRepository) as error:
        raise BadContainer(f"{what}: {error}") from error
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidHeader,
        requests.exceptions.InvalidJSONError,
        UnicodeError,
    ) as error:
        raise BadContainer(f"{what}: {error}") from error
    except (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        docker.errors.DockerException,
        OSError,
    ) as error:
        raise Unreachable(f"{what}: {error}") from error
    except ValueError as error:
        if "closed" in str(error):  # by another thread
            raise Unreachable(f"{what}: {error}") from error
        raise BadContainer(f"{what}: {error}") from error
