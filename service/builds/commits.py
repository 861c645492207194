"""Workspaces kept as images: who asked, what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import docker
import structlog
from sqlmodel import Session

from images.cancellation import Cancellation
from images.commit import Committed, commit, forget_copies, preview
from images.engine import engine_for
from images.errors import ImageError
from service.access.host_keys import host_key
from service.access.keys import KeyRing
from service.access.own_secrets import given
from service.access.principals import Principal, check_owner
from service.access.secrets import SecretBox
from service.builds.names import LABELS, check_name, check_tag
from service.contract.errors import Problem
from service.settings import Settings
from service.store.database import Database
from service.store.events import record_workspace
from service.store.ids import new_id
from service.store.rows import find_workspace
from service.store.tables import Host, Workspace

log = structlog.get_logger("commits")


class Commits:
    def __init__(self, database: Database, settings: Settings, own_key: Callable[[], str]) -> None:
        self._database, self._settings, self._own_key = database, settings, own_key
        self._secrets = SecretBox(settings.data_dir)
        self._process = new_id()
        self._deployment = ""

    def start(self, deployment: str) -> None:
        """What commits left that were cut off with an earlier process goes; it has nobody's keys taken out."""
        self._deployment = deployment
        threading.Thread(target=self._tidy, name="commits-tidy", daemon=True).start()

    def _tidy(self) -> None:
        failed = (ImageError, docker.errors.DockerException)  # then the next start does it
        try:
            with engine_for(self._settings.engine_url, Cancellation(), 30) as client:
                forget_copies(client, self._deployment, self._process)
        except failed as error:
            log.warning("images of commits that were cut off stay for now", error=str(error))

    def commit(self, ref: str, tag: str, actor: Principal) -> Committed:
        """Makes an image of a workspace's container, which is paused for a moment. Raises Problem, ImageError."""
        check_tag(tag)
        with self._database.read() as session:
            row = find_workspace(session, ref, actor.id)
            check_owner(session, actor, row.owner_id, f"Workspace {row.name}")
            url = _engine_of(session, row)
        container = _container_of(row)
        labels = {
            f"{LABELS}workspace": row.name,
            f"{LABELS}by": actor.name,
            f"{LABELS}from": str(row.document.get("image") or ""),
            f"{LABELS}at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with engine_for(url, Cancellation()) as client:
            check_name(client, tag, actor)
            mark = f"{self._deployment}/{self._process}"
            made = commit(client, container, tag, mark=mark, secrets=self._never(row), labels=labels)
        with self._database.write() as session:
            kept = session.get(Workspace, row.id)
            if kept is not None:
                said = f"{actor.name} kept {row.name} as the image {made.tag}"
                record_workspace(session, kept, "workspace.committed", said, actor=actor.id, image=made.id)
        return made

    def look(self, ref: str, actor: Principal) -> Committed:
        """How much a commit would add at most, and what is no part of it. Raises Problem, ImageError."""
        with self._database.read() as session:
            row = find_workspace(session, ref, actor.id)
            check_owner(session, actor, row.owner_id, f"Workspace {row.name}")
            url = _engine_of(session, row)
        with engine_for(url, Cancellation()) as client:
            return preview(client, _container_of(row))

    def _never(self, row: Workspace) -> list[str]:
        """What must be in no layer: the secrets' values, every authorised key, the host key."""
        keys = [one.key.body for one in KeyRing(self._database).all()]
        own = self._own_key().split()[1:2]
        private = host_key(self._settings.data_dir, row.owner_id, row.name).private.splitlines()[1:2]
        with self._database.read() as session:
            secrets = given(session, self._secrets, row.owner_id, sealed=row.secrets, env={})
        return [*secrets.values(), *keys, *own, *private]


def _engine_of(session: Session, row: Workspace) -> str:
    host = session.get(Host, row.host_id)
    if host is None:
        raise Problem("host_not_found", f"The host of {row.name} is gone.", None)
    return host.url


def _container_of(row: Workspace) -> str:
    if row.container_id is None:
        hint = f"Start it: navarch workspace start {row.name}"
        raise Problem("no_ssh", f"{row.name} has no container yet.", hint)
    return row.container_id
