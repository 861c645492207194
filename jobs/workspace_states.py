"""States of workspaces: which moves are legal, and the reasons for them."""

from enum import StrEnum

from jobs.states import IllegalTransition


class WorkspaceState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """It can't run, and says why; it can be started again."""
    REMOVING = "removing"


class Wanted(StrEnum):
    RUN = "run"
    STOP = "stop"
    REMOVE = "remove"


AT_REST = frozenset({WorkspaceState.STOPPED, WorkspaceState.FAILED})
"""States in which it has an address, but neither GPUs nor a container that runs, and nobody works at it."""
AT_WORK = frozenset(WorkspaceState) - AT_REST

_MOVES: dict[WorkspaceState, frozenset[WorkspaceState]] = {
    WorkspaceState.STARTING: frozenset({WorkspaceState.RUNNING, WorkspaceState.STOPPING}),
    WorkspaceState.RUNNING: frozenset({WorkspaceState.STARTING, WorkspaceState.STOPPING}),
    WorkspaceState.STOPPING: frozenset(
        {WorkspaceState.STARTING, WorkspaceState.STOPPED, WorkspaceState.FAILED, WorkspaceState.REMOVING}
    ),
    WorkspaceState.STOPPED: frozenset({WorkspaceState.STARTING, WorkspaceState.REMOVING}),
    WorkspaceState.FAILED: frozenset({WorkspaceState.STARTING, WorkspaceState.STOPPED, WorkspaceState.REMOVING}),
    WorkspaceState.REMOVING: frozenset(),
}


def check_workspace_move(old: WorkspaceState, new: WorkspaceState) -> None:
    """Raises IllegalTransition unless a workspace may go from `old` to `new`."""
    if new not in _MOVES[old]:
        legal = sorted(_MOVES[old])
        raise IllegalTransition(f"a workspace can't go from {old} to {new}; from {old} it can go to {legal}")
