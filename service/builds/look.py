"""A look at a job's image when it is submitted, where a host has it: what it can't do is said at once."""

import threading
import time
from collections.abc import Sequence
from functools import partial

from jobs.launch import Asked
from jobs.placement import HostCapacity
from service.backends.engines import Engine, Engines, ImageFacts
from service.backends.errors import EngineError
from service.backends.fitness import LOOKED_FOR, Misfit, misfit
from service.backends.references import find_image
from service.contract.errors import Problem

_PATIENCE_S = 2.0
"""A submit doesn't wait longer for an engine: what wasn't seen now is seen when the job starts."""
_FRESH_S = 1.0
"""How long an answer counts: the jobs of a batch ask once."""
_SILENT_S = 10.0
"""How long an engine that did not answer isn't asked again."""


class ImageLook:
    """Looks at images on the hosts' engines; any thread may use it."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._seen: dict[tuple[str, str], tuple[float, ImageFacts | None]] = {}
        self._silent: dict[str, float] = {}

    def check(self, spec: Asked, hosts: Sequence[HostCapacity]) -> None:
        """Raises Problem `image_unsuitable` when the image is there and can't run the job."""
        for host in hosts:
            if host.unusable or self._silent.get(host.id, 0.0) > time.monotonic():
                continue
            found: list[Misfit | bool] = []
            # Not of a pool: a thread that an engine keeps waiting must keep nobody else, nor the process's end.
            look = threading.Thread(target=self._look, args=(host.id, spec, found), name="image-look", daemon=True)
            look.start()
            look.join(_PATIENCE_S)
            if not found:
                self._silent[host.id] = time.monotonic() + _SILENT_S
                continue
            for answer in found:
                if isinstance(answer, Misfit):
                    raise Problem("image_unsuitable", answer.message, answer.hint)
                if answer:
                    return

    def _look(self, host_id: str, spec: Asked, found: list[Misfit | bool]) -> None:
        """Appends what is wrong with the image of a host, or whether the host has it; nothing without an answer."""
        try:
            engine = self._engines.engine(host_id)
            image = self._facts(engine, host_id, spec.image)
            wrong = image and misfit(spec, image, partial(engine.holding, image.id, LOOKED_FOR))
        except EngineError:
            return
        found.append(wrong or image is not None)

    def _facts(self, engine: Engine, host_id: str, reference: str) -> ImageFacts | None:
        key, now = (host_id, reference), time.monotonic()
        at, known = self._seen.get(key, (0.0, None))
        if at and now - at < _FRESH_S:
            return known
        if len(self._seen) > 1000:
            self._seen.clear()
        image = find_image(engine, reference)
        self._seen[key] = (now, image)
        return image
