"""The steps of a workspace: its container is made, started, watched, stopped, started again, and at last removed."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from sqlalchemy import delete
from sqlmodel import Session, col

from jobs.launch import ContainerPlan
from jobs.mistakes import SpecError
from jobs.states import JobState, Reason
from jobs.units import format_duration
from jobs.workspace import WorkspaceSpec, parse_workspace
from jobs.workspace_launch import WorkspaceLaunch, home_volume, plan_workspace
from jobs.workspace_states import AT_REST, Wanted, WorkspaceState
from service.access.host_keys import HostKey, host_key, owner_mark
from service.access.keys import authorized_keys
from service.access.own_secrets import given
from service.backends.base import Backend, Gang, Phase, Sight, Waiting
from service.backends.docker.ssh_ready import WrongHostKey
from service.backends.errors import Cancelled, ContainerGone, EngineError, Refused, Unreachable
from service.control import moves
from service.control.context import NOTHING, Context, Next, Vanished
from service.control.live_keys import gang_of
from service.control.outcome import Outcome
from service.control.refusals import refused
from service.settings import Settings
from service.store.events import move_workspace, record_workspace
from service.store.tables import GpuLease, Holder, Host, Workspace

log = structlog.get_logger("workspaces")
BUDGET = 6
"""How many steps, or starts, may fail one after the other."""
GRACE_S = 10.0
"""What runs in a workspace has so long to end when it is stopped."""
_STEADY_S = 60.0
"""Whoever was ready for so long has started well."""
_KILL_POLL_S, _UNREACHABLE_POLL_S, _PULL_POLL_S, _LONGEST_S = 0.5, 2.0, 15.0, 60.0
_FIRST_POLL_S, _LAST_POLL_S = 0.05, 0.5


@dataclass(frozen=True)
class Make:
    """A container is to be made and started."""


@dataclass(frozen=True)
class Resume:
    """The container that was kept is started again."""


@dataclass(frozen=True)
class Ready:
    """Its sshd answers."""


@dataclass(frozen=True)
class Again:
    """Its container has ended by itself: it is started again."""

    says: str


@dataclass(frozen=True)
class Anew:
    """Its container is gone (or is removed now), and the next one is another."""

    removes: bool


@dataclass(frozen=True)
class Forget:
    """Its last container is gone."""


@dataclass(frozen=True)
class Finish:
    """Nothing of it runs any more."""


Move = Make | Resume | Ready | Again | Anew | Forget | Finish | moves.Wait | moves.Unanswered | moves.Stop | moves.Press


@dataclass
class Desk:
    """A workspace as it was when its step began."""

    row: Workspace
    host: Host
    deployment: str

    @property
    def gang(self) -> Gang:
        return gang_of(self.row, self.deployment)

    @property
    def state(self) -> WorkspaceState:
        return WorkspaceState(self.row.state)


class Overtaken(Exception):
    """Somebody asked for something else since the step began: the next one sees to it."""


def step_workspace(context: Context, key: str) -> Next:
    """Everything that the controller does to a workspace goes through here; one step of it is under way at a time."""
    desk = _load(context, key)
    if desk is None or desk.state in AT_REST:
        return NOTHING
    try:
        result = _step(context, desk)
        if desk.row.failures or desk.row.unreachable_since is not None:
            with _writing(context, desk, whatever=True) as (_, row):
                row.failures, row.unreachable_since = 0, None
        return result
    except Vanished:
        return NOTHING
    except Overtaken:
        return Next(0.0)
    except Unreachable as error:
        return _unanswered(context, desk, str(error))
    except EngineError as error:
        return _failed(context, desk, f"the engine refused: {error}")
    except Exception as error:  # one bad row must never stop the others
        log.exception("step failed", workspace=key)
        return _failed(context, desk, f"Navarch failed at this workspace ({type(error).__name__}: {error})")


def _load(context: Context, key: str) -> Desk | None:
    with context.database.read() as session:
        row = session.get(Workspace, key)
        host = session.get(Host, row.host_id) if row is not None else None
    return Desk(row, host, context.deployment) if row is not None and host is not None else None


def _backend(context: Context) -> Backend:
    """The only one that keeps a container which has ended."""
    return context.backends["docker"]


def _step(context: Context, desk: Desk) -> Next:
    backend = _backend(context)
    sight = backend.observe(desk.gang)[0]
    ready = sight.phase is Phase.RUNNING and desk.state is WorkspaceState.STARTING and _answers(context, desk)
    move = decide(desk.row, sight, ready, context.settings, context.clock())
    match move:
        case moves.Wait():
            return Next(move.after_s)
        case moves.Unanswered():
            return _unanswered(context, desk, move.says)
        case moves.Stop():
            return _end(context, desk, move.outcome)
        case moves.Press():
            backend.signal(desk.gang, move.ranks, move.signal)
            return Next(move.again_s)
        case Finish():
            return _finish(context, desk)
        case Make():
            return _launch(context, desk, _make)
        case Resume():
            return _launch(context, desk, _resume)
        case Ready():
            return _ready(context, desk)
        case Again():
            return _again(context, desk, move.says)
        case Anew():
            return _anew(context, desk, move.removes)
        case Forget():
            return _forget(context, desk)


def decide(row: Workspace, sight: Sight, ready: bool, settings: Settings, now: float) -> Move:
    """What comes next for a workspace at work. Pure."""
    if sight.phase is Phase.UNKNOWN:
        return moves.Unanswered(sight.says)
    match WorkspaceState(row.state):
        case WorkspaceState.STARTING:
            return _decide_start(row, sight, ready, settings, now)
        case WorkspaceState.RUNNING:
            return _decide_run(row, sight, now)
        case WorkspaceState.STOPPING:
            if sight.phase is Phase.RUNNING:
                late = row.stop_deadline is not None and now >= row.stop_deadline
                left = (row.stop_deadline or now) - now
                return moves.Press((0,), "SIGKILL", _KILL_POLL_S) if late else moves.Press((0,), "SIGTERM", left)
            return Finish()
        case WorkspaceState.REMOVING:
            gone = sight.phase in (Phase.ABSENT, Phase.GONE)
            return Forget() if gone else Anew(removes=True)
    return moves.Wait()


def _decide_start(row: Workspace, sight: Sight, ready: bool, settings: Settings, now: float) -> Move:
    known = row.container_id is not None  # else it was made a moment before a crash, and only its name is known
    if ready and known:
        return Ready()
    if sight.phase is Phase.RUNNING and known:
        waited = now - (sight.started_at or now)
        if waited > settings.start_timeout_s:
            says = f"its container runs, but its sshd did not answer within {settings.start_timeout_s:.0f} s"
            return moves.Stop(Outcome(Reason.START_TIMEOUT, says))
        return moves.Wait(min(_LAST_POLL_S, max(_FIRST_POLL_S, waited / 5)))
    if row.remake:
        return Anew(removes=sight.phase in (Phase.CREATED, Phase.ENDED))
    if sight.phase is Phase.GONE:
        says = "its container was removed by somebody else; a start makes a new one, with the same address and home"
        return moves.Stop(Outcome(Reason.CONTAINER_REMOVED, says))
    if row.tries >= BUDGET:
        says = f"its container ended {row.tries} times before it was ready: {_how(sight)}"
        return moves.Stop(Outcome(Reason.START_TIMEOUT, says))
    if now < row.not_before:
        return moves.Wait(row.not_before - now)
    return Resume() if sight.phase is Phase.ENDED and known else Make()


def _decide_run(row: Workspace, sight: Sight, now: float) -> Move:
    if sight.phase in (Phase.GONE, Phase.ABSENT):
        says = "its container was removed by somebody else; a start makes a new one, with the same address and home"
        return moves.Stop(Outcome(Reason.CONTAINER_REMOVED, says))
    if sight.phase is not Phase.RUNNING:
        return Again(f"its container ended ({_how(sight)}); it is started again")
    if row.runs_until is None:
        return moves.Wait()
    if now >= row.runs_until:
        limit = format_duration(row.runs_until - (row.started_at or now))
        return moves.Stop(Outcome(Reason.MAX_DURATION, f"it has run for {limit}, its `max`"))
    return moves.Wait(row.runs_until - now)


def _how(sight: Sight) -> str:
    if sight.interruption is not None:
        return sight.interruption[1]
    if sight.oom_killed:
        return "it ran over its memory limit"
    return sight.error or f"exit code {sight.exit_code}"


# what is done


@contextmanager
def _writing(context: Context, desk: Desk, *, whatever: bool = False) -> Iterator[tuple[Session, Workspace]]:
    """A write transaction on the workspace. Raises Vanished; Overtaken when something else is asked of it now."""
    with context.database.write() as session:
        row = session.get(Workspace, desk.row.id)
        if row is None:
            raise Vanished(desk.row.id)
        same = (row.state, row.wanted, row.made, row.remake)
        if not whatever and same != (desk.row.state, desk.row.wanted, desk.row.made, desk.row.remake):
            raise Overtaken
        yield session, row
    desk.row = row


def _answers(context: Context, desk: Desk) -> bool:
    try:
        return context.handshake(desk.host.address, desk.row.ports["22"], desk.row.host_key or "")
    except WrongHostKey:
        return False


def _launch(context: Context, desk: Desk, how: Callable[[Context, Desk, WorkspaceSpec, HostKey], str | None]) -> Next:
    """Makes or resumes the container. A refusal ends the start; asking again would get the same answer."""
    try:
        spec = parse_workspace(desk.row.document)
    except SpecError as error:  # of an older or newer Navarch
        return _end(context, desk, Outcome(Reason.BAD_CONFIG, f"its stored spec is refused: {error}"))
    key = host_key(context.settings.data_dir, desk.row.owner_id, desk.row.name)
    if desk.row.host_key != key.public:  # first of all: what answers is compared with it
        with _writing(context, desk) as (_, row):
            row.host_key = key.public
    try:
        waits = how(context, desk, spec, key)
    except (Cancelled, ContainerGone):
        return Next(0.0)
    except Refused as error:
        outcome = refused(error, spec)
        return _end(context, desk, outcome)
    if waits is not None:
        if desk.row.message != waits:
            with _writing(context, desk) as (_, row):
                row.message = waits
        return Next(_PULL_POLL_S)
    return Next(0.0)


def _make(context: Context, desk: Desk, spec: WorkspaceSpec, key: HostKey) -> str | None:
    """Makes the container and starts it; or says what that waits for."""
    backend = _backend(context)
    reserved = backend.reserve(desk.gang, spec)
    if isinstance(reserved, Waiting):
        return reserved.says
    plan = _plan(context, desk, spec, key)
    launched = backend.launch(desk.gang, spec, [plan], reserved, lambda: not _wanted(context, desk))
    _launched(context, desk, launched[0].container_id)
    return None


def _resume(context: Context, desk: Desk, spec: WorkspaceSpec, key: HostKey) -> str | None:
    _backend(context).resume(desk.gang, [_plan(context, desk, spec, key)])
    _launched(context, desk, desk.row.container_id)
    return None


def _launched(context: Context, desk: Desk, container_id: str | None) -> None:
    with _writing(context, desk) as (_, row):
        row.container_id = container_id
        row.tries += 1
        row.not_before = context.clock() + 2.0 ** (row.tries - 1)
        row.message = "waits for its container to answer over SSH"


def _wanted(context: Context, desk: Desk) -> bool:
    if context.ending.is_set():
        return False
    with context.database.read() as session:
        row = session.get(Workspace, desk.row.id)
        return row is not None and row.state == WorkspaceState.STARTING


def _plan(context: Context, desk: Desk, spec: WorkspaceSpec, key: HostKey) -> ContainerPlan:
    row = desk.row
    with context.database.read() as session:
        keys = authorized_keys(session, row.owner_id)
        secrets = given(session, context.secrets, row.owner_id, sealed=row.secrets, env=spec.env)
    return plan_workspace(
        spec,
        WorkspaceLaunch(
            deployment=context.deployment,
            id=row.id,
            host_id=row.host_id,
            container=desk.gang.seats[0].container,
            made=row.made,
            ports={int(inside): outside for inside, outside in row.ports.items()},
            gpus=tuple(row.gpus),
            home_volume=_home(context, row),
            pins=str(context.settings.workspace_dir(row.id) / "mounts"),
            authorized_keys=keys + context.own_key(),
            host_key=key.private,
            host_key_public=key.public,
            secrets=secrets,
        ),
    )


def _home(context: Context, row: Workspace) -> str:
    return home_volume(context.deployment, row.name, owner_mark(row.owner_id))


def _ready(context: Context, desk: Desk) -> Next:
    checks = context.look_in(desk.host.address, desk.row.ports["22"], desk.row.host_key or "")
    wrong = "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.ok)
    with _writing(context, desk) as (session, row):
        row.ready_at, row.not_before = context.clock(), 0.0
        says = f"runs, but an IDE won't work: {wrong}" if wrong else "runs"
        move_workspace(session, row, WorkspaceState.RUNNING, says)
    return Next(0.0)


def _again(context: Context, desk: Desk, says: str) -> Next:
    with _writing(context, desk) as (session, row):
        now = context.clock()
        steady = row.ready_at is not None and now - row.ready_at > _STEADY_S
        row.tries = 0 if steady else row.tries
        row.not_before = 0.0 if steady else now + 2.0 ** (row.tries - 1)
        row.ready_at = None
        move_workspace(session, row, WorkspaceState.STARTING, says)
    return Next(0.0)


def _end(context: Context, desk: Desk, outcome: Outcome) -> Next:
    """It stops, and why is written down; the next step does the rest."""
    _backend(context).withdraw(desk.gang)
    with _writing(context, desk) as (session, row):
        row.wanted = Wanted.STOP.value
        row.stop_deadline = context.clock() + GRACE_S
        move_workspace(session, row, WorkspaceState.STOPPING, outcome.message, reason=outcome.reason)
    return Next(0.0)


def _anew(context: Context, desk: Desk, removes: bool) -> Next:
    """Its old container goes; only when that is done is there another number for the next one."""
    if removes and not _backend(context).remove(desk.gang):
        return Next(_UNREACHABLE_POLL_S)
    if desk.state is WorkspaceState.REMOVING:
        return Next(0.0)
    with _writing(context, desk) as (_, row):
        row.made, row.container_id, row.remake = row.made + 1, None, False
    return Next(0.0)


def _finish(context: Context, desk: Desk) -> Next:
    """It doesn't run: it rests, with its address but without GPUs; or it starts again, or goes."""
    with _writing(context, desk) as (session, row):
        row.ready_at = row.stop_deadline = None
        reason = Reason(row.reason) if row.reason is not None else None
        if reason is Reason.CONTAINER_REMOVED:
            row.made, row.container_id, row.remake = row.made + 1, None, False
        if row.wanted == Wanted.REMOVE:
            move_workspace(session, row, WorkspaceState.REMOVING, "is being removed")
        elif row.wanted == Wanted.RUN:
            row.tries, row.not_before = 0, 0.0
            move_workspace(session, row, WorkspaceState.STARTING, "starts again")
        else:
            session.exec(delete(GpuLease).where(col(GpuLease.holder_id) == row.holder))
            failed = reason is not None and reason.facts.outcome is JobState.FAILED
            state = WorkspaceState.FAILED if failed else WorkspaceState.STOPPED
            says = "stopped on request" if reason is Reason.STOPPED_BY_USER else row.message or "stopped"
            move_workspace(session, row, state, says, reason=reason)
    if desk.state in AT_REST:
        context.freed()
        return NOTHING
    return Next(0.0)


def _forget(context: Context, desk: Desk) -> Next:
    """The last thing: rows and leases go in one transaction; what is done before may be done twice."""
    if desk.row.remove_home:
        _backend(context).forget_volumes(desk.gang, [_home(context, desk.row)])
    shutil.rmtree(context.settings.workspace_dir(desk.row.id), ignore_errors=True)
    with _writing(context, desk) as (session, row):
        kept = "" if desk.row.remove_home else "; its home is kept"
        record_workspace(session, row, "workspace.removed", f"{row.name} was removed{kept}")
        session.exec(delete(Holder).where(col(Holder.id) == row.holder))  # and its leases with it
        session.delete(row)
    context.freed()
    return NOTHING


def _unanswered(context: Context, desk: Desk, says: str) -> Next:
    """Its host doesn't answer: it keeps all it has."""
    if desk.row.unreachable_since is None:
        with _writing(context, desk, whatever=True) as (session, row):
            row.unreachable_since = context.clock()
            record_workspace(session, row, "workspace.unreachable", f"the host of {row.name} doesn't answer: {says}")
    return Next(_UNREACHABLE_POLL_S)


def _failed(context: Context, desk: Desk, message: str) -> Next:
    """Shows the error at the workspace and tries again later; a start that fails again and again is given up."""
    try:
        with _writing(context, desk, whatever=True) as (_, row):
            row.failures += 1
            delay = min(_LONGEST_S, 2.0 ** min(row.failures - 1, 10))
            row.message = f"{message}; tries again in {delay:.0f} s"
        if desk.state is WorkspaceState.STARTING and desk.row.failures >= BUDGET:
            says = f"given up after {BUDGET} tries: {message}"
            return _end(context, desk, Outcome(Reason.INTERNAL_ERROR, says))
        return Next(delay)
    except Vanished:
        return NOTHING
