"""Long answers of a Docker Engine that another thread may end: pulls and events."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import docker.errors
from docker.auth import get_config_header, resolve_repository_name
from docker.types import CancellableStream
from docker.utils import parse_repository_tag

from jobs.launch import owner_of
from service.backends.docker.refusals import engine_errors, is_full, is_passing
from service.backends.engines import EngineEvent, ImageFacts
from service.backends.errors import EngineError, ImageMissing, NoSpace

_CONNECT_S = 60
SILENCE_S = 600
"""A pull of which nothing is heard for so long is given up."""


class PullStream:
    """A pull under way. Iterating gives its progress, and ends when the image is there; `close` ends it at once."""

    def __init__(self, api: Any, reference: str, look: Callable[[], ImageFacts | None]) -> None:
        self._reference, self._look = reference, look
        repository, tag = parse_repository_tag(reference)
        header = get_config_header(api, resolve_repository_name(repository)[0])
        response = api._post(
            api._url("/images/create"),
            params={"fromImage": repository, "tag": tag or "latest"},
            headers={"X-Registry-Auth": header} if header else {},
            stream=True,
            timeout=(_CONNECT_S, SILENCE_S),
        )
        try:
            api._raise_for_status(response)
        except docker.errors.APIError as error:  # no registry, no such name, no way there
            raise _refusal(str(error.explanation or error)) from error
        self._stream = CancellableStream(api._stream_helper(response, decode=True), response)

    def __iter__(self) -> Iterator[str]:
        """Raises ImageMissing, NoSpace with the engine's words; EngineError when it broke off."""
        with engine_errors(f"Image {self._reference} could not be pulled"):
            for line in self._stream:
                if "error" in line:
                    raise _refusal(str(line["error"]))
                yield " ".join(str(line.get(key, "")) for key in ("status", "id", "progress")).strip()
        if self._look() is None:
            raise EngineError(f"The pull of {self._reference} broke off")

    def close(self) -> None:
        _close(self._stream)


class Events:
    """The engine's events about containers."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[EngineEvent]:
        with engine_errors("The engine's events could not be followed"):
            for event in self._stream:
                actor = event.get("Actor", {})
                yield EngineEvent(
                    action=str(event.get("Action", "")),
                    container_id=str(actor.get("ID", "")),
                    owner=owner_of(actor.get("Attributes", {})),
                    time=event.get("timeNano", 0) / 1e9,
                )

    def close(self) -> None:
        _close(self._stream)


def _refusal(words: str) -> EngineError:
    if is_full(words):
        return NoSpace(words)
    return EngineError(words) if is_passing(words) else ImageMissing(words)


def _close(stream: Any) -> None:
    """Ends a stream that another thread reads. Not from here if that can hang: the reader must see its end anyway."""
    try:
        stream.close()
    except (docker.errors.DockerException, OSError, AttributeError):
        threading.Thread(target=stream._response.close, name="stream-end", daemon=True).start()
