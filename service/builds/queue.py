"""Image builds as rows: asked for, waiting for their turn, logged, cancelled, and taken up again after a restart."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import docker
import structlog
from sqlmodel import Session, col, select

from images.build import BuildEvent, BuildOptions, Built, build, with_network
from images.cancellation import Cancellation
from images.catalog import remove_leftovers
from images.engine import engine_for
from images.errors import ImageError
from service.access import principals
from service.access.mounts import MountRules
from service.access.principals import LOCAL, Principal, check_owner
from service.access.registries import Registries
from service.access.secrets import SecretBox
from service.builds import inputs
from service.builds.turns import Turns
from service.collector.hub import Hub
from service.contract.errors import Problem
from service.settings import Settings
from service.store.database import Database
from service.store.events import record
from service.store.ids import new_id
from service.store.tables import ImageBuild

log = structlog.get_logger("builds")
_UNFINISHED = ("queued", "running")
_AT_ONCE = 32
"""Builds that may be under way, most of which pull; the engine builds one after another."""
_RETRY_S = 1.0
_SAY_EVERY_S = 1.0
_STOP_PATIENCE_S = 5.0


@dataclass
class _Running:
    """A build that a thread works on."""

    row: ImageBuild
    cancellation: Cancellation = field(default_factory=Cancellation)
    canceller: Principal | None = None
    """Who wants it ended; None with a wanted cancellation: this process ends, and the next one takes it up again."""
    thread: threading.Thread | None = None
    said_at: float = 0.0


class Builds:
    """The builds of the local engine: those of one recipe one after another; others wait to build, but not to pull."""

    def __init__(self, database: Database, settings: Settings, hub: Hub) -> None:
        self._database, self._settings, self._hub = database, settings, hub
        self._rules = MountRules.of(settings)
        self._registries = Registries(database, SecretBox(settings.data_dir))
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._turns = Turns()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="builds", daemon=True)

    def submit(
        self, recipe: str, tag: str = "", options: dict[str, Any] | None = None, actor: Principal = LOCAL
    ) -> ImageBuild:
        """Asks for a build, by default under the recipe's own tag; it starts when those of its recipe have ended.

        Raises Problem, and ImageError for a recipe that is none.
        """
        options = options or {}
        found = inputs.check(recipe, options, actor, self._rules)
        if not tag:
            tag = found.system_tag if options.get("target") == "system" else found.default_tag
        row = ImageBuild(id=new_id(), recipe=recipe, tag=tag, options=options, owner_id=actor.id)
        with self._database.write() as session:
            before = _before(session, row)
            row.message = _waits(len(before))
            session.add(row)
            record(
                session, "image.build_requested", f"image/{tag}", f"{tag} is to be built from {recipe}", actor=actor.id
            )
        if before:
            self._write(row.id, _waits(len(before)).capitalize())
        self._wake.set()
        return row

    def cancel(self, build_id: str, actor: Principal = LOCAL) -> ImageBuild:
        """Ends a build, waiting or under way. Raises Problem `build_not_found`, `build_finished`."""
        with self._lock:
            running = self._running.get(build_id)
            with self._database.write() as session:
                row = session.get(ImageBuild, build_id)
                if row is None:
                    raise Problem("build_not_found", f"There is no build {build_id!r}.", "`navarch image builds`")
                check_owner(session, actor, row.owner_id, f"The build of {row.tag}")
                if row.state not in _UNFINISHED:
                    raise Problem("build_finished", f"The build of {row.tag} has ended: {row.state}.")
                if running is None:
                    said = f"cancelled by {actor.name} before it started"
                    _end(session, row, None, said, state="stopped", actor=actor.id)
                else:
                    running.canceller = actor
                    row.message = f"is being cancelled by {actor.name}"
        if running is not None:
            running.cancellation.cancel()
        self._hub.notify(build_id)
        return row

    def ahead(self, session: Session, row: ImageBuild) -> int:
        """How many builds have to end before this one goes on: those of its recipe, or those that build."""
        if row.state == "queued":
            return len(_before(session, row))
        return self._turns.ahead(row.id) if row.state == "running" else 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Builds under way are broken off: their rows say `running`, and the next start takes them up."""
        self._stopping = True
        self._wake.set()
        with self._lock:
            under_way = list(self._running.values())
        for running in under_way:
            running.cancellation.cancel()
        deadline = time.monotonic() + _STOP_PATIENCE_S
        for thread in (self._thread, *(running.thread for running in under_way)):
            if thread is not None and thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def log_path(self, build_id: str) -> Path:
        return self._settings.data_dir / "builds" / f"{build_id}.log"

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                while self._take() is not None:
                    pass
            except Exception:  # the next look may succeed: a full disk was emptied
                log.exception("looking for builds failed")
                self._wake.wait(_RETRY_S)
                continue
            self._wake.wait()

    def _take(self) -> ImageBuild | None:
        """Starts the oldest build that may start; one that was under way before a restart is one of them."""
        with self._lock, self._database.write() as session:
            if self._stopping or len(self._running) >= _AT_ONCE:
                return None
            busy = {running.row.recipe for running in self._running.values()}
            waiting = select(ImageBuild).where(
                col(ImageBuild.state).in_(_UNFINISHED),
                col(ImageBuild.id).not_in(self._running),
                col(ImageBuild.recipe).not_in(busy),
            )
            row = session.exec(waiting.order_by(*_OLDEST_FIRST).limit(1)).first()
            if row is None:
                return None
            row.state, row.started_at = "running", row.started_at or time.time()
            row.starts += 1
            row.message = "starts" if row.starts == 1 else "starts again after an interruption"
            running = self._running[row.id] = _Running(row)
        running.thread = threading.Thread(target=self._work, args=(running,), name=f"build-{row.tag}", daemon=True)
        running.thread.start()
        self._hub.notify(row.id)
        return row

    def _work(self, running: _Running) -> None:
        built, failure = None, None
        try:
            built = self._build(running)
        except ImageError as error:
            failure = f"{error.message} {error.hint}".strip()
        except Problem as problem:
            failure = f"{problem.detail} {problem.hint or ''}".strip()
        except Exception as error:
            log.exception("build failed", build=running.row.id)
            failure = f"Navarch failed at this build ({type(error).__name__}: {error})"
        state = "failed"
        if built is None and running.canceller is not None:
            state, failure = "stopped", f"cancelled by {running.canceller.name}"
        if built is not None or running.canceller is not None or not running.cancellation.wanted:
            self._finish(running, built, failure, state)
        with self._lock:
            self._running.pop(running.row.id, None)
        self._wake.set()

    def _build(self, running: _Running) -> Built | None:
        row, built = running.row, None
        if row.starts > 1:
            self._write(row.id, "Starts again: the control plane was restarted during this build.")
        with self._database.read() as session:
            owner = principals.find(session, row.owner_id)
        beside = self.log_path(row.id).parent
        with (
            inputs.opened(row.recipe, row.options, owner, self._rules, beside) as given,
            engine_for(self._settings.engine_url, running.cancellation) as client,
        ):
            self._registries.tell(client.api)
            options = replace(_options(row, given), cancellation=running.cancellation, turn=lambda: self._turn(running))
            events = build(client, given.recipe, options, training=row.options.get("target") != "system")
            try:
                for event in events:
                    self._tell(running, event)
                    built = event.built or built
                    running.cancellation.check()
            finally:
                events.close()  # type: ignore[attr-defined]
        return built

    @contextmanager
    def _turn(self, running: _Running) -> Iterator[None]:
        """Held while the engine builds: one at a time, first come. Leaves no container of a step behind."""

        def waits(ahead: int) -> None:
            self._say(running, _waits(ahead))
            self._write(running.row.id, _waits(ahead).capitalize())

        with self._turns.turn(running.row.id, running.cancellation, waits):
            if running.row.starts > 1:
                self._tidy()
            try:
                yield
            finally:
                if running.canceller is not None:
                    self._tidy()

    def _tidy(self) -> None:
        failed = (ImageError, docker.errors.DockerException)  # then the next build does it
        with suppress(*failed), engine_for(self._settings.engine_url, Cancellation(), 30) as client:
            remove_leftovers(client)

    def _tell(self, running: _Running, event: BuildEvent) -> None:
        self._write(running.row.id, event.text.rstrip("\n"))
        now = time.monotonic()
        if event.kind == "step" or (event.kind == "note" and now - running.said_at > _SAY_EVERY_S):
            running.said_at = now
            self._say(running, event.text)

    def _write(self, build_id: str, line: str) -> None:
        path = self.log_path(build_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line + "\n")
        self._hub.notify(build_id)

    def _say(self, running: _Running, message: str) -> None:
        with self._database.write() as session:
            now = session.get(ImageBuild, running.row.id)
            if now is not None and running.canceller is None:
                now.message = message[:300]

    def _finish(self, running: _Running, built: Built | None, failure: str | None, state: str) -> None:
        """Writes how it ended, however long the database can't be written."""
        while True:
            try:
                if failure is not None:
                    self._write(running.row.id, failure)
                with self._database.write() as session:
                    row = session.get(ImageBuild, running.row.id)
                    if row is not None:
                        actor = running.canceller or principals.CONTROLLER
                        _end(session, row, built, failure, state, actor=actor.id)
                self._hub.notify(running.row.id)
                return
            except Exception:
                log.exception("the end of a build could not be written", build=running.row.id)
                if self._stopping:
                    return  # the next start builds it again, which is quick
                time.sleep(_RETRY_S)


_OLDEST_FIRST = (col(ImageBuild.created_at), col(ImageBuild.id))


def _before(session: Session, row: ImageBuild) -> list[ImageBuild]:
    """The builds of the same recipe that were asked for earlier and have not ended."""
    query = select(ImageBuild).where(
        col(ImageBuild.state).in_(_UNFINISHED),
        ImageBuild.recipe == row.recipe,
        ImageBuild.id != row.id,
        ImageBuild.created_at <= row.created_at,
    )
    return list(session.exec(query))


def _waits(ahead: int) -> str:
    if not ahead:
        return "is about to start"
    return f"waits for {ahead} build{'s' if ahead > 1 else ''} before it"


def _end(
    session: Session, row: ImageBuild, built: Built | None, failure: str | None, state: str, *, actor: str
) -> None:
    row.state = state if built is None else "succeeded"
    row.image_id = built.image_id if built else None
    row.message = failure if built is None else f"{built.tag} is ready"
    row.finished_at = time.time()
    kind = {"succeeded": "image.built", "stopped": "image.build_cancelled"}.get(row.state, "image.build_failed")
    record(session, kind, f"image/{row.tag}", row.message or "the build ended without an image", actor=actor)


def _options(row: ImageBuild, files: inputs.Inputs) -> BuildOptions:
    given = row.options
    options = BuildOptions(
        tag=row.tag,
        base=given.get("base"),
        wheelhouse=files.wheelhouse,
        torch_index_url=given.get("torch_index_url"),
        rebuild=bool(given.get("no_cache")),
    )
    network = {
        "index_url": given.get("index_url"),
        "extra_index_urls": tuple(given.get("extra_index_urls", ())),
        "trusted_hosts": tuple(given.get("trusted_hosts", ())),
        "apt_mirror": given.get("apt_mirror"),
        "ca_bundle": files.ca_bundle,
    }
    return with_network(options, **network)
