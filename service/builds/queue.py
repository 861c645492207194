"""Image builds as rows: asked for, run one at a time, logged, and started again when a restart interrupted them."""

import threading
import time
from pathlib import Path
from typing import Any

import docker
import structlog
from sqlmodel import col, select

from images.build import BuildOptions, Built, build, with_network
from images.catalog import remove_leftovers
from images.errors import ImageError
from service.collector.hub import Hub
from service.settings import Settings
from service.store.database import Database
from service.store.events import record
from service.store.ids import new_id
from service.store.tables import ImageBuild

log = structlog.get_logger("builds")
_ENGINE_TIMEOUT_S = 1800


class Builds:
    """The queue of image builds of the local engine."""

    def __init__(self, database: Database, settings: Settings, hub: Hub) -> None:
        self._database, self._settings, self._hub = database, settings, hub
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="builds", daemon=True)

    def submit(self, recipe: str, tag: str, options: dict[str, Any] | None = None, actor: str = "") -> ImageBuild:
        """Asks for a build; it starts when those before it have ended."""
        row = ImageBuild(id=new_id(), recipe=recipe, tag=tag, options=options or {}, owner=actor)
        with self._database.write() as session:
            session.add(row)
            record(session, "image.build_requested", f"image/{tag}", f"{tag} is to be built from {recipe}", actor=actor)
        self._wake.set()
        return row

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A build under way is left: its row says `running`, and the next start takes it up."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=5)

    def log_path(self, build_id: str) -> Path:
        return self._settings.data_dir / "builds" / f"{build_id}.log"

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            row = self._take()
            if row is None:
                self._wake.wait()
                continue
            try:
                self._build(row)
            except Exception as error:  # one bad build must not stop the next
                log.exception("build failed", build=row.id)
                self._end(row, None, f"Navarch failed at this build ({type(error).__name__}: {error})")

    def _take(self) -> ImageBuild | None:
        """The oldest build; one that was under way before a restart is one of them."""
        now = time.time()
        with self._database.write() as session:
            query = (
                select(ImageBuild)
                .where(col(ImageBuild.state).in_(["queued", "running"]))
                .order_by(col(ImageBuild.created_at))
                .limit(1)
            )
            row = session.exec(query).first()
            if row is None:
                return None
            row.state, row.started_at = "running", row.started_at or now
            row.starts += 1
            row.message = "builds" if row.starts == 1 else "starts again after an interruption"
        self._hub.notify(row.id)
        return row

    def _build(self, row: ImageBuild) -> None:
        path = self.log_path(row.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        built = None
        events = None
        try:
            client = docker.DockerClient(base_url=self._settings.engine_url, timeout=_ENGINE_TIMEOUT_S)
            with path.open("a") as file:
                if row.starts > 1:
                    file.write("Starts again: the control plane was restarted during this build.\n")
                    remove_leftovers(client)
                whole = row.options.get("target") != "system"
                events = build(client, row.recipe, _options(row), training=whole)
                for event in events:
                    file.write(event.text.rstrip("\n") + "\n")
                    file.flush()
                    self._hub.notify(row.id)
                    built = event.built or built
                    if self._stopping:
                        return
                    if event.kind == "step":
                        self._say(row, event.text)
            self._end(row, built, None)
        except (ImageError, docker.errors.DockerException) as error:
            hint = getattr(error, "hint", None)
            message = f"{error} {hint}" if hint and hint not in str(error) else str(error)
            with path.open("a") as file:
                file.write(message + "\n")
            self._end(row, None, message)
        finally:
            if events is not None:
                events.close()  # type: ignore[attr-defined]

    def _say(self, row: ImageBuild, message: str) -> None:
        with self._database.write() as session:
            now = session.get(ImageBuild, row.id)
            if now is not None:
                now.message = message

    def _end(self, row: ImageBuild, built: Built | None, error: str | None) -> None:
        with self._database.write() as session:
            now = session.get(ImageBuild, row.id)
            if now is None:
                return
            now.state = "failed" if built is None else "succeeded"
            now.image_id = built.image_id if built else None
            now.message = error if built is None else f"{built.tag} is ready"
            now.finished_at = time.time()
            kind = "image.build_failed" if built is None else "image.built"
            record(session, kind, f"image/{row.tag}", now.message or "the build ended without an image")
        self._hub.notify(row.id)


def _options(row: ImageBuild) -> BuildOptions:
    given = row.options
    options = BuildOptions(
        tag=row.tag,
        base=given.get("base"),
        wheelhouse=Path(given["wheelhouse"]) if given.get("wheelhouse") else None,
        torch_index_url=given.get("torch_index_url"),
        rebuild=bool(given.get("no_cache")),
    )
    network = {
        "index_url": given.get("index_url"),
        "extra_index_urls": tuple(given.get("extra_index_urls", ())),
        "trusted_hosts": tuple(given.get("trusted_hosts", ())),
        "apt_mirror": given.get("apt_mirror"),
        "ca_bundle": Path(given["ca_bundle"]) if given.get("ca_bundle") else None,
    }
    return with_network(options, **network)
