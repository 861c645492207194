"""A look at a job's image when it is submitted, where a host has it: what it can't do is said at once."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.launch import Asked
from jobs.placement import HostCapacity
from service.backends.engines import Engines, ImageFacts
from service.backends.errors import EngineError
from service.backends.fitness import LOOKED_FOR, Misfit, Programs, misfit
from service.backends.references import SYSTEM_LABEL, find_image
from service.contract.errors import Problem

_PATIENCE_S = 2.0
"""A submit doesn't wait longer for an engine: what wasn't seen now is seen when the job starts."""
_FRESH_S = 1.0
"""How long an answer counts: submits that come together ask once, and no thread is begun for each."""
_SILENT_S = 10.0
"""How long an engine that did not answer isn't asked again."""


@dataclass
class _Seen:
    """What an engine answered about one image."""

    at: float
    image: ImageFacts | None
    programs: frozenset[str] | None = None
    """Which of LOOKED_FOR it has; None: nobody had to know."""

    def answers(self) -> bool:
        """Whether all that `misfit` may ask is known, and not from long ago."""
        complete = self.image is None or SYSTEM_LABEL in self.image.labels or self.programs is not None
        return complete and time.monotonic() - self.at < _FRESH_S

    def has(self) -> frozenset[str]:
        return self.programs or frozenset()

    def judge(self, spec: Asked, programs: Programs) -> Misfit | bool:
        """What is wrong with the image, or whether it is there."""
        return (self.image and misfit(spec, self.image, programs)) or self.image is not None


class ImageLook:
    """Looks at images on the hosts' engines; any thread may use it."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._silent: dict[str, float] = {}

    def check(self, spec: Asked, hosts: Sequence[HostCapacity]) -> None:
        """Raises Problem `image_unsuitable` when the image is there and can't run the job."""
        for host in hosts:
            if host.unusable or self._silent.get(host.id, 0.0) > time.monotonic():
                continue
            seen = self._seen.get((host.id, spec.image))
            answer = seen.judge(spec, seen.has) if seen is not None and seen.answers() else self._asked(host.id, spec)
            if answer is None:
                self._silent[host.id] = time.monotonic() + _SILENT_S
            elif isinstance(answer, Misfit):
                raise Problem("image_unsuitable", answer.message, answer.hint)
            elif answer:
                return

    def _asked(self, host_id: str, spec: Asked) -> Misfit | bool | None:
        """What the engine of a host says of the job's image; None: it says nothing for as long as a submit waits."""
        found: list[Misfit | bool] = []
        # Not of a pool: a thread that an engine keeps waiting must keep nobody else, nor the process's end.
        look = threading.Thread(target=self._look, args=(host_id, spec, found), name="image-look", daemon=True)
        look.start()
        look.join(_PATIENCE_S)
        return found[0] if found else None

    def _look(self, host_id: str, spec: Asked, found: list[Misfit | bool]) -> None:
        """Appends the answer; nothing when the engine fails."""
        try:
            engine = self._engines.engine(host_id)
            seen = _Seen(time.monotonic(), find_image(engine, spec.image))

            def programs() -> frozenset[str]:
                assert seen.image is not None
                seen.programs = engine.holding(seen.image.id, LOOKED_FOR)
                return seen.programs

            answer = seen.judge(spec, programs)
        except EngineError:
            return
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[host_id, spec.image] = seen
        found.append(answer)
