"""The running control plane: opens the store, and starts and ends everything that works on it."""

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from service.access.keys import KeyRing
from service.access.mounts import MountRules
from service.access.own_secrets import OwnSecrets
from service.access.people import People
from service.access.private import forget_old_files, private_folder
from service.access.registries import Registries
from service.access.secrets import SecretBox
from service.access.tokens import Tokens
from service.artifacts.digests import Digests
from service.artifacts.registry import Artifacts
from service.backends.base import Backend, Gang
from service.backends.docker.backend import DockerBackend
from service.backends.docker.hosts import LOCAL, DockerHosts, ensure_local_host
from service.backends.docker.ssh_ready import handshake
from service.builds.commits import Commits
from service.builds.look import ImageLook
from service.builds.queue import Builds
from service.builds.transfers import Transfers
from service.collector.collector import Collector
from service.collector.hub import Hub
from service.collector.reader import LogReader
from service.contract.schemas import Check
from service.control.context import Context, latest_attempt
from service.control.figures import Figures
from service.control.invariants import examine
from service.control.loop import Controller
from service.intake.commands import Jobs
from service.intake.hosts import Hosts
from service.intake.plans import Plans
from service.intake.workspaces import Workspaces
from service.settings import Settings
from service.store.database import Database
from service.store.soundness import Heartbeat, check, mark
from service.store.tables import Host, Job, Meta
from service.workspaces.ide_check import check_workspace
from service.workspaces.own_key import OwnKey

_REMOVAL_PATIENCE_S = 10.0
"""Docker removes an ended container in a fraction of a second, on a busy machine in a few."""


_TOPICS = {
    **{"job": "jobs", "host": "hosts", "event": "events", "image_build": "builds", "artifact": "artifacts"},
    "workspace": "workspaces",
}
"""What followers of lists are told when rows of these tables change."""


class Runtime:
    """Everything of one control plane process, which holds its data folder alone. `start` and `stop` once each."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        private_folder(settings.data_dir)
        self.hub = Hub()
        self.database = Database(settings.url)
        self.tokens = Tokens(self.database, settings.data_dir, settings.token)
        self.people = People(self.database, self.tokens, self._people_changed)
        self.secrets = OwnSecrets(self.database, SecretBox(settings.data_dir))
        self.keys = KeyRing(self.database, self._keys_changed)
        self.own_key = OwnKey(settings.data_dir)
        self.engines = DockerHosts(self.database, settings)
        docker = DockerBackend(self.engines, self.database, settings, time.time)
        self.backends: Mapping[str, Backend] = {docker.name: docker}
        self.collector = Collector(docker, self.database, settings, self.hub, self._woken)
        self.figures = Figures()
        look = ImageLook(self.engines)
        self.jobs = Jobs(
            database=self.database,
            settings=settings,
            submitted=self._submitted,
            stopping=self._stopping,
            patience_s=_REMOVAL_PATIENCE_S,
            images=look,
            hand_over=self._hand_over,
            elsewhere=self.engines.files,
        )
        self.hosts = Hosts(
            self.database, settings, self.engines, lambda: self.own_key.line, self._hosts_changed, docker.check
        )
        self.workspaces = Workspaces(self.database, settings, time.time, self._woken, look)
        self.logs = LogReader(lambda job_id: settings.job_dir(job_id) / "logs", self.hub)
        self.artifacts = Artifacts(self.database, settings, self.engines.files)
        self.digests = Digests(self.database, MountRules.of(settings), self.engines.files)
        self.plans = Plans(self.database, settings, self.engines)
        self.builds = Builds(self.database, settings, self.hub)
        self.registries_of_images = Registries(self.database, SecretBox(settings.data_dir))
        self.transfers = Transfers(self.database, settings, self.registries_of_images)
        self.commits = Commits(self.database, settings, lambda: self.own_key.line)
        self.heartbeat = Heartbeat(self.database.path.parent, self._beat)
        self.deployment = ""
        self.controller: Controller | None = None

        self.database.committed = self._committed

    def open(self) -> None:
        """Brings the data folder up to date. Raises Problem `disk_full` or `database_unavailable` when it can't be."""
        check(self.database.path)
        self.database.migrate()
        forget_old_files(self.settings.data_dir)

    def start(self) -> None:
        """Begins to work on the data folder that `open` has made ready."""
        self.deployment = _deployment(self.database)
        mark(self.database.path, self.deployment)
        ensure_local_host(self.database, self.settings, os.cpu_count() or 1)
        context = Context(
            database=self.database,
            settings=self.settings,
            backends=self.backends,
            collector=self.collector,
            figures=self.figures,
            deployment=self.deployment,
            clock=time.time,
            secrets=SecretBox(self.settings.data_dir),
            handshake=handshake,
            own_key=lambda: self.own_key.line,
            look_in=self.look_in,
            changed=self.hub.notify,
        )
        self.controller = Controller(context)
        self.controller.start()
        self.builds.start()
        self.commits.start(self.deployment)
        self.digests.start()

    def stop(self) -> None:
        """Ends this process's work; containers and builds go on in the engine."""
        if self.controller is not None:
            self.controller.stop()
            self.builds.stop()
            self.digests.stop()
        self.artifacts.stop()
        self.collector.stop()
        self.engines.close()
        self.database.close()

    def look_in(self, address: str, port: int, host_key: str) -> list[Check]:
        """What an IDE finds in a workspace."""
        return check_workspace(address, port, host_key, self.own_key.private())

    def health(self) -> dict[str, tuple[bool, str]]:
        """What Navarch stands on: name → (is well, in words). Well is a database that can be written just now."""
        checks: dict[str, tuple[bool, str]] = {}
        trouble = self.heartbeat.trouble()
        checks["database"] = (trouble is None, trouble or "can be written")
        try:
            with self.database.read() as session:
                host = session.get(Host, LOCAL)
        except Exception as error:
            host = None
            checks["database"] = (False, f"it can't be read: {error}")
        alive = self.controller is not None and self.controller.alive
        checks["controller"] = (alive, "works" if alive else "its dispatcher has ended")
        reachable = host is not None and host.reachable
        checks["engine"] = (reachable, (host.message if host and not reachable else None) or self.settings.engine_url)
        return checks

    def _people_changed(self) -> None:
        """Somebody may have more from now on, or is gone with their keys."""
        if self.controller is not None:
            self.controller.room()
            self.controller.keys_changed()

    def _keys_changed(self) -> None:
        if self.controller is not None:
            self.controller.keys_changed()

    def _beat(self) -> None:
        with self.database.write() as session:
            session.merge(Meta(key="heartbeat", value=str(int(time.time()))))
        self.tokens.write_uses()

    @property
    def registries(self) -> list[CollectorRegistry]:
        """The figures of the parts that keep their own."""
        return [self.collector.figures.registry, self.figures.registry]

    def consistency(self) -> list[Check]:
        """The database against the real containers."""
        return examine(self.database, self.backends.values())

    def _submitted(self, job_id: str) -> None:
        self.hub.notify(job_id)
        if self.controller is not None:
            self.controller.room()

    def _committed(self, tables: set[str]) -> None:
        for table in tables & _TOPICS.keys():
            self.hub.notify(_TOPICS[table])

    def _hand_over(self, job: Job, folder: Path) -> None:
        """What its containers wrote, by the backend that ran them. Raises EngineError."""
        with self.database.read() as session:
            attempt, replicas = latest_attempt(session, job)
        if attempt is not None:
            image = str(job.document.get("image", ""))
            self.backends[attempt.backend].run_folder(Gang.of(attempt, replicas)).hand_over(image, folder)

    def _hosts_changed(self) -> None:
        if self.controller is not None:
            self.controller.look_at_hosts()

    def _stopping(self, job_id: str) -> None:
        self.hub.notify(job_id)
        self._woken(job_id)

    def _woken(self, job_id: str) -> None:
        if self.controller is not None:
            self.controller.wake(job_id)


def _deployment(database: Database) -> str:
    """This deployment's id, made at the first start; containers carry it as a label."""
    with database.write() as session:
        row = session.get(Meta, "deployment")
        if row is None:
            row = Meta(key="deployment", value=uuid.uuid4().hex)
            session.add(row)
        return row.value
