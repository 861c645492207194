"""Images on their way to hosts: each fetched once, however many wait for it, and only as long as one does.

From another host that has it, where there is one; else from its registry.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from service.backends.base import InLane
from service.backends.engines import Engines, Stream
from service.backends.errors import EngineError, NoSpace

log = structlog.get_logger("pulls")
LANE = "pull"
_TELL_EVERY_S = 2.0


@dataclass
class _Pull:
    host_id: str
    reference: str
    owners: set[str] = field(default_factory=set)
    says: str = "waits for its turn"
    stream: Stream[str] | None = None
    error: EngineError | None = None


class Pulls:
    """The pulls under way on all hosts; any thread may use it."""

    def __init__(
        self,
        engines: Engines,
        in_lane: InLane,
        wake: Callable[[str], None],
        copy: Callable[[str, str], Stream[str] | None],
    ) -> None:
        """`copy`: begins to bring an image to a host from another one, by the host's id and the image's name."""
        self._engines, self._in_lane, self._wake, self._copy = engines, in_lane, wake, copy
        self._lock = threading.Lock()
        self._pulls: dict[tuple[str, str], _Pull] = {}

    def want(self, host_id: str, reference: str, owner: str) -> str:
        """How far the image is on its way to the host; its owner is woken when that changes.

        Raises the error with which its pull ended, to each owner that waited for it; who asks again begins anew.
        """
        key = host_id, reference
        with self._lock:
            pull = self._pulls.get(key)
            if pull is not None and pull.error is not None:
                waited = owner in pull.owners
                pull.owners.discard(owner)
                if not pull.owners or not waited:
                    del self._pulls[key]
                if waited:
                    raise pull.error
                pull = None
            is_new = pull is None
            if pull is None:
                pull = self._pulls[key] = _Pull(host_id, reference)
            pull.owners.add(owner)
            says = pull.says
        if is_new:
            self._in_lane(LANE, host_id, lambda: self._run(pull))
        return says

    def leave(self, owner: str) -> None:
        """The owner waits no more; a pull that nobody waits for ends at once."""
        unwanted: list[Stream[str]] = []
        with self._lock:
            for key, pull in list(self._pulls.items()):
                pull.owners.discard(owner)
                if not pull.owners:
                    del self._pulls[key]
                    if pull.stream is not None:
                        unwanted.append(pull.stream)
        for stream in unwanted:
            stream.close()

    def close(self) -> None:
        with self._lock:
            owners = {owner for pull in self._pulls.values() for owner in pull.owners}
        for owner in owners:
            self.leave(owner)

    def _run(self, pull: _Pull) -> None:
        error: EngineError | None = None
        try:
            if self._wanted(pull):
                self._fetch(pull)
        except EngineError as caught:
            error = caught
        except Exception as caught:  # whoever waits must learn of it
            log.exception("pull failed", image=pull.reference, host=pull.host_id)
            error = EngineError(f"{type(caught).__name__}: {caught}")
        with self._lock:
            owners = list(pull.owners)
            if error is not None and owners:
                pull.error = error
            elif self._pulls.get((pull.host_id, pull.reference)) is pull:
                del self._pulls[pull.host_id, pull.reference]
        for owner in owners:
            self._wake(owner)

    def _fetch(self, pull: _Pull) -> None:
        """From another host; if that has it and can't give it, from its registry, which may have it as well."""
        stream = self._copy(pull.host_id, pull.reference)
        if stream is None:
            self._follow(pull, self._engines.engine(pull.host_id).pull(pull.reference))
            return
        try:
            self._follow(pull, stream)
        except NoSpace:
            raise
        except EngineError as error:
            log.warning("image not copied", image=pull.reference, host=pull.host_id, error=str(error))
            try:
                self._follow(pull, self._engines.engine(pull.host_id).pull(pull.reference))
            except EngineError:
                raise error from None

    def _follow(self, pull: _Pull, stream: Stream[str]) -> None:
        with self._lock:
            pull.stream = stream
        if not self._wanted(pull):
            stream.close()
            return
        told = 0.0
        for line in stream:
            if not line or time.monotonic() - told < _TELL_EVERY_S:
                continue
            told = time.monotonic()
            with self._lock:
                pull.says = line
                owners = list(pull.owners)
            for owner in owners:
                self._wake(owner)

    def _wanted(self, pull: _Pull) -> bool:
        with self._lock:
            return bool(pull.owners)
