"""SSH keys that were added or revoked reach the containers that run: at once, and whatever was missed at each sweep."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import structlog
from sqlmodel import Session, col, select

from jobs.states import PLACED
from jobs.workspace_launch import workspace_container
from jobs.workspace_states import WorkspaceState
from service.access.host_keys import gang_keys
from service.access.keys import authorized_keys
from service.backends.base import Gang, InLane, Seat
from service.backends.errors import EngineError
from service.control.context import Context
from service.store.tables import Attempt, Job, Replica, Workspace

log = structlog.get_logger("keys")
AUTHORIZED_KEYS = "authorized_keys"
_LANE = "keys"


@dataclass(frozen=True)
class _Held:
    """The containers of one holder, and the keys that they are to authorise."""

    gang: Gang
    backend: str
    keys: str


class LiveKeys:
    """What each container was last given is remembered; one that this process does not know of is given it again."""

    def __init__(self, context: Context, in_lane: InLane) -> None:
        self._context, self._in_lane = context, in_lane
        self._given: dict[str, str] = {}

    def look(self) -> None:
        """Has every container that authorises other keys than it should be given the right ones."""
        with self._context.database.read() as session:
            held = [*_of_jobs(session, self._context), *_of_workspaces(session, self._context)]
        present = {seat.key for one in held for seat in one.gang.seats}
        self._given = {key: keys for key, keys in self._given.items() if key in present}
        for one in held:
            stale = [seat for seat in one.gang.seats if self._given.get(seat.key) != one.keys]
            for seat in stale:
                give = partial(self._give, Gang(one.gang.holder, one.gang.owner, (seat,)), one)
                self._in_lane(_LANE, seat.host_id or "", give)

    def _give(self, gang: Gang, one: _Held) -> None:
        try:
            self._context.backends[one.backend].put(gang, {AUTHORIZED_KEYS: one.keys.encode()})
        except EngineError as error:  # gone, or out of reach: the next sweep sees
            log.info("keys not given", container=gang.seats[0].container, error=str(error))
            return
        self._given[gang.seats[0].key] = one.keys


def _of_jobs(session: Session, context: Context) -> list[_Held]:
    query = (
        select(Replica, Attempt, Job)
        .join(Attempt, col(Attempt.id) == col(Replica.attempt_id))
        .join(Job, (col(Job.id) == col(Attempt.job_id)) & (col(Job.attempts) == col(Attempt.number)))
        .where(
            col(Job.state).in_([state.value for state in PLACED]),
            col(Replica.container_id).is_not(None),
            col(Replica.finished_at).is_(None),
            col(Replica.removed_at).is_(None),
        )
    )
    replicas: dict[int, list[Replica]] = defaultdict(list)
    attempts: dict[int, tuple[Attempt, Job]] = {}
    for replica, attempt, job in session.exec(query):
        if job.document.get("ssh", True):
            replicas[replica.attempt_id].append(replica)
            attempts[replica.attempt_id] = (attempt, job)
    keys = _Keys(session)
    return [
        _Held(Gang.of(attempt, replicas[number]), attempt.backend, keys.of(job.owner_id) + _of_members(job, context))
        for number, (attempt, job) in attempts.items()
    ]


def _of_members(job: Job, context: Context) -> str:
    """The keys by which the members of a gang know each other."""
    public = gang_keys(context.settings.job_dir(job.id)).public if job.nodes > 1 else ()
    return "".join(f"{line}\n" for line in public)


def _of_workspaces(session: Session, context: Context) -> list[_Held]:
    at = (WorkspaceState.STARTING.value, WorkspaceState.RUNNING.value)
    query = select(Workspace).where(col(Workspace.state).in_(at), col(Workspace.container_id).is_not(None))
    keys = _Keys(session)
    return [
        _Held(gang_of(row, context.deployment), "docker", keys.of(row.owner_id) + context.own_key())
        for row in session.exec(query)
    ]


def gang_of(row: Workspace, deployment: str) -> Gang:
    """The one container of a workspace."""
    container = workspace_container(deployment, row.name, row.made, row.namespace)
    return Gang(row.holder, row.id, (Seat(0, container, row.host_id, row.container_id),))


class _Keys:
    """Each owner's keys, read once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[str, str] = {}

    def of(self, owner_id: str) -> str:
        if owner_id not in self._known:
            self._known[owner_id] = authorized_keys(self._session, owner_id)
        return self._known[owner_id]
