"""What can be done with workspaces: create, start, stop, restart, extend, remove. The API and the tests call these."""

import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from jobs.documents import DocumentError, plain
from jobs.mistakes import SpecError
from jobs.placement import HostCapacity, Placed, Waits
from jobs.spec import redacted
from jobs.states import Reason
from jobs.units import format_duration
from jobs.workspace import WorkspaceSpec, parse_workspace
from jobs.workspace_launch import find_place, find_room, ports_of
from jobs.workspace_states import AT_REST, Wanted, WorkspaceState
from service.access.mounts import MountRules
from service.access.principals import LOCAL, Principal, check_owner
from service.access.quotas import check_quota
from service.access.secrets import SecretBox
from service.builds.look import ImageLook
from service.contract.errors import Problem
from service.settings import Settings
from service.store.capacity import capacities
from service.store.database import Database
from service.store.events import move_workspace, record_workspace
from service.store.ids import WORKSPACE, new_id
from service.store.rows import find_workspace
from service.store.tables import Attempt, GpuLease, Holder, Host, Job, PortLease, Workspace

_TRIES = 3
"""Somebody may take what was found free a moment ago; then it is looked for again."""
_STOP_GRACE_S = 10.0
_FIRST_LOOK_S = 5.0
"""After a start an engine has been asked whether it answers."""


class Workspaces:
    """The application's functions on workspaces."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        clock: Callable[[], float],
        wake: Callable[[str], None] = lambda _: None,
        images: ImageLook | None = None,
    ) -> None:
        """`wake`: told the id of a workspace that has something to do now."""
        self._database, self._settings, self._clock = database, settings, clock
        self._wake, self._images = wake, images
        self._secrets = SecretBox(settings.data_dir)
        self._begun = time.monotonic()

    def create(self, document: Mapping[str, Any], *, actor: Principal = LOCAL) -> Workspace:
        """Makes a workspace and starts it. Raises Problem when the name is taken or there is no room now."""
        spec = parse(document)
        self._check_paths(spec)
        hosts = self._hosts()
        if self._images is not None:
            self._images.check(spec, hosts)
        sealed = self._secrets.seal(spec.secrets)
        stored = {"type": "workspace", **redacted(document)}
        for _ in range(_TRIES):
            try:
                with self._database.write() as session:
                    row = self._add(session, spec, stored, sealed, actor)
            except IntegrityError:
                continue
            self._wake(row.id)
            return row
        raise Problem("no_room", f"Others were quicker {_TRIES} times.", "Try again.")

    def _hosts(self) -> list[HostCapacity]:
        """All hosts. In the first seconds of a control plane's life, once the first of them was looked at."""
        while True:
            with self._database.read() as session:
                hosts = capacities(session)
                new = select(Host.id).where(col(Host.seen_at).is_(None), col(Host.unreachable_since).is_(None))
                unseen = all(host.unusable for host in hosts) and session.exec(new).first() is not None
            if not unseen or time.monotonic() > self._begun + _FIRST_LOOK_S:
                return hosts
            time.sleep(0.1)

    def start(self, ref: str, *, image: str | None = None, switch: bool = False, actor: Principal = LOCAL) -> Workspace:
        """Starts a workspace; `switch` makes its container anew, of another image if one is given. Raises Problem."""
        spec = self._respecified(ref, image, switch, actor)
        for _ in range(_TRIES):
            try:
                with self._database.write() as session:
                    row = self._present(session, ref, actor)
                    if switch:
                        self._switch(row, spec)
                    if row.state in AT_REST:
                        self._begin(session, row, spec, actor)
                    elif row.state == WorkspaceState.STOPPING or switch:
                        self._turn(session, row, Wanted.RUN, "is restarted", actor)
            except IntegrityError:
                continue
            self._wake(row.id)
            return row
        raise Problem("no_room", f"Others were quicker {_TRIES} times.", "Try again.")

    def restart(
        self, ref: str, *, image: str | None = None, switch: bool = False, actor: Principal = LOCAL
    ) -> Workspace:
        """Stops and starts it; it keeps its GPUs meanwhile. One that rests is started. Raises Problem."""
        with self._database.write() as session:
            row = self._present(session, ref, actor)
            if row.state not in AT_REST and not switch:
                self._turn(session, row, Wanted.RUN, "is restarted", actor)
                self._wake(row.id)
                return row
        return self.start(ref, image=image, switch=switch, actor=actor)

    def stop(self, ref: str, *, actor: Principal = LOCAL) -> Workspace:
        """Stops it; its container, address and home stay. Raises Problem."""
        with self._database.write() as session:
            row = self._present(session, ref, actor)
            if row.state not in AT_REST:
                self._turn(session, row, Wanted.STOP, "is being stopped", actor, Reason.STOPPED_BY_USER)
        self._wake(row.id)
        return row

    def remove(self, ref: str, *, home: bool = False, actor: Principal = LOCAL) -> Workspace:
        """Removes it with its container; its home only where that is asked for. Raises Problem."""
        with self._database.write() as session:
            row = _own(session, ref, actor)
            row.remove_home = row.remove_home or home
            if row.state in AT_REST:
                row.wanted = Wanted.REMOVE.value
                move_workspace(session, row, WorkspaceState.REMOVING, "is being removed", actor=actor.id)
            elif row.state != WorkspaceState.REMOVING:
                self._turn(session, row, Wanted.REMOVE, "is being removed", actor)
        self._wake(row.id)
        return row

    def extend(self, ref: str, seconds: float, *, actor: Principal = LOCAL) -> Workspace:
        """Lets it run longer than its `max`. Raises Problem."""
        with self._database.write() as session:
            row = self._present(session, ref, actor)
            if row.runs_until is None:
                raise Problem("no_limit", f"{row.name} may run as long as it likes.", None)
            row.runs_until += seconds
            said = f"{row.name} may run {format_duration(seconds)} longer"
            record_workspace(session, row, "workspace.extended", said, actor=actor.id)
        self._wake(row.id)
        return row

    # the parts

    def _check_paths(self, spec: WorkspaceSpec) -> None:
        rules = MountRules.of(self._settings)
        for mount in spec.mounts:
            rules.check(mount.source, "The mount")
        if spec.home is not None:
            rules.check(spec.home, "The home")

    def _add(
        self, session: Session, spec: WorkspaceSpec, document: dict[str, Any], sealed: bytes | None, actor: Principal
    ) -> Workspace:
        _check_name(session, spec.name, actor)
        identifier, now = WORKSPACE + new_id(), self._clock()
        hosts = capacities(session)
        found = find_place(spec, hosts, zlib.crc32(identifier.encode()))
        if isinstance(found, Waits):
            raise self._no_room(session, f"The workspace {found.why}.", hosts, found)
        check_quota(session, actor.id, workspaces=1, gpus=len(found.gpus))
        row = Workspace(
            id=identifier,
            name=spec.name,
            document=document,
            secrets=sealed,
            owner_id=actor.id,
            message="is being started",
            host_id=found.host_id,
            ports={str(inside): outside for inside, outside in ports_of(spec, found.pool_ports).items()},
            gpus=list(found.gpus),
            created_at=now,
            started_at=now,
            runs_until=now + spec.max if spec.max is not None else None,
        )
        session.add(row)
        session.add(Holder(id=row.holder, kind="workspace", name=row.name))
        session.flush()  # leases refer to it
        for port in row.ports.values():
            session.add(PortLease(host_id=row.host_id, port=port, holder_id=row.holder))
        _lease_gpus(session, row)
        record_workspace(session, row, "workspace.created", f"{row.name} was created", actor=actor.id)
        session.flush()
        return row

    def _begin(self, session: Session, row: Workspace, spec: WorkspaceSpec, actor: Principal) -> None:
        """From rest to starting: room is taken, or refused with who has it."""
        host = next((host for host in capacities(session) if host.id == row.host_id), None)
        if host is None:
            raise Problem("no_room", f"The host of {row.name} was removed.", "Make a new workspace on another host.")
        row.remake = row.remake or row.container_id is None
        found = find_room(spec, host, None if row.remake else row.gpus)
        if isinstance(found, Waits):
            others = not row.remake and isinstance(find_room(spec, host, None), Placed)
            raise self._no_room(session, f"The workspace {found.why}.", [host], found, row if others else None)
        check_quota(session, row.owner_id, gpus=len(found.gpus))
        now = self._clock()
        row.gpus, row.started_at, row.wanted = list(found.gpus), now, Wanted.RUN.value
        row.runs_until = now + spec.max if spec.max is not None else None
        row.tries = row.failures = 0
        row.not_before = 0.0
        _lease_gpus(session, row)
        move_workspace(session, row, WorkspaceState.STARTING, "is being started", actor=actor.id)
        session.flush()

    def _turn(
        self,
        session: Session,
        row: Workspace,
        wanted: Wanted,
        says: str,
        actor: Principal,
        reason: Reason | None = None,
    ) -> None:
        """What is at work stops first, whatever comes after."""
        row.wanted = wanted.value
        if row.state == WorkspaceState.STOPPING:
            row.message = says
            row.reason = reason.value if reason is not None else None
            return
        row.stop_deadline = self._clock() + _STOP_GRACE_S
        move_workspace(session, row, WorkspaceState.STOPPING, says, reason=reason, actor=actor.id)

    def _present(self, session: Session, ref: str, actor: Principal) -> Workspace:
        row = _own(session, ref, actor)
        if row.wanted == Wanted.REMOVE:
            raise Problem("workspace_going", f"{row.name} is being removed.", "Wait a moment, then make a new one.")
        return row

    def _respecified(self, ref: str, image: str | None, switch: bool, actor: Principal) -> WorkspaceSpec:
        """The spec that a start is asked for with; another image needs `switch`."""
        with self._database.read() as session:
            row = self._present(session, ref, actor)
            hosts = [host for host in capacities(session) if host.id == row.host_id]
        if image is None or image == row.document.get("image"):
            return parse(row.document)
        if not switch:
            raise Problem(
                "invalid_request",
                f"{row.name} has a container of another image, {row.document.get('image')}.",
                "Say --switch to have its container made anew: its address and home stay, what was installed "
                "elsewhere goes.",
            )
        spec = parse({**row.document, "image": image})
        if self._images is not None:
            self._images.check(spec, hosts)
        return spec

    def _switch(self, row: Workspace, spec: WorkspaceSpec) -> None:
        row.document = {**row.document, "image": spec.image}
        row.remake = True

    def _no_room(
        self,
        session: Session,
        detail: str,
        hosts: list[HostCapacity],
        waits: Waits,
        remakable: Workspace | None = None,
    ) -> Problem:
        """The refusal, with who holds GPUs there and since when."""
        holders = _holders(session, [host.id for host in hosts]) if waits.for_room else []
        now = self._clock()
        held = "; ".join(
            f"{kind} {name} has {len(gpus)} GPU{'s' if len(gpus) > 1 else ''}"
            + (f" (for {format_duration(max(0.0, now - since))})" if since is not None else "")
            for kind, name, gpus, since in holders
        )
        hint = "Wait until somebody gives some back, or ask for less."
        if not waits.for_room:
            hint = "It does not depend on what others hold: `navarch host ls` shows what there is."
        if remakable is not None:
            hint = (
                f"Its container is made for certain GPUs. `navarch workspace start {remakable.name} --switch` makes it "
                "anew for free ones: its home stays, what was installed elsewhere goes."
            )
        listed = [{"kind": kind, "name": name, "gpus": gpus, "since": since} for kind, name, gpus, since in holders]
        return Problem("no_room", f"{detail} {held[:1].upper()}{held[1:]}." if held else detail, hint, holders=listed)


def _own(session: Session, ref: str, actor: Principal) -> Workspace:
    row = find_workspace(session, ref, actor.id)
    check_owner(session, actor, row.owner_id, f"Workspace {row.name}")
    return row


def parse(document: Mapping[str, Any]) -> WorkspaceSpec:
    """The workspace in a document. Raises Problem `invalid_spec` that names every mistake."""
    try:
        return parse_workspace(plain(dict(document)))
    except DocumentError as error:
        raise Problem("invalid_spec", f"The spec can't be read: {error}.", None) from None
    except SpecError as error:
        raise Problem(
            "invalid_spec",
            " ".join(m.message if m.message.endswith((".", "?")) else f"{m.message}." for m in error.mistakes),
            "`navarch workspace create --help` and docs/workspaces.md say what there is.",
            problems=[{"path": m.path, "message": m.message} for m in error.mistakes],
        ) from None


def _check_name(session: Session, name: str, owner: Principal) -> None:
    if (
        session.exec(select(Workspace).where(Workspace.owner_id == owner.id, Workspace.name == name)).first()
        is not None
    ):
        raise Problem(
            "name_taken",
            f"There is a workspace named {name!r}.",
            f"Choose another name, or remove that one: `navarch workspace rm {name}`.",
        )
    active = select(Job).where(Job.owner_id == owner.id, Job.name == name, col(Job.finished_at).is_(None))
    if session.exec(active).first() is not None:
        raise Problem("name_taken", f"A job named {name!r} is still active.", "Choose another name.")


def _lease_gpus(session: Session, row: Workspace) -> None:
    for gpu in row.gpus:
        session.add(GpuLease(gpu=gpu, host_id=row.host_id, holder_id=row.holder))


def _holders(session: Session, host_ids: list[str]) -> list[tuple[str, str, list[str], float | None]]:
    """Who holds GPUs of these hosts: kind, name, which, since when."""
    held: dict[str, list[str]] = {}
    for lease in session.exec(select(GpuLease).where(col(GpuLease.host_id).in_(host_ids))):
        held.setdefault(lease.holder_id, []).append(lease.gpu)
    found: list[tuple[str, str, list[str], float | None]] = []
    for holder_id, gpus in sorted(held.items()):
        holder = session.get(Holder, holder_id)
        kind, _, identifier = holder_id.partition("/")
        since: float | None = None
        if kind == "workspace":
            workspace = session.get(Workspace, identifier)
            since = workspace.started_at if workspace is not None else None
        else:
            attempt = session.get(Attempt, int(identifier))
            since = attempt.created_at if attempt is not None else None
        found.append((holder.kind if holder else kind, holder.name if holder else identifier, sorted(gpus), since))
    return found
