"""What a step may decide to do. Deciding is pure; `service.control.steps` does it, outside of any transaction."""

from dataclasses import dataclass

from service.backends.base import Sight
from service.control.outcome import Outcome


@dataclass(frozen=True)
class Wait:
    """Nothing to do now. Looked at again after a while; None: when something happens."""

    after_s: float | None = None


@dataclass(frozen=True)
class Unanswered:
    """Its backend can't tell how it is: the job keeps all it has until the grace is over."""

    says: str


@dataclass(frozen=True)
class Stop:
    """The attempt ends: whatever still runs is stopped."""

    outcome: Outcome
    says: str | None = None
    """What the job says meanwhile, where that isn't the outcome's sentence."""


@dataclass(frozen=True)
class Launch:
    """Containers are to be made and started."""


@dataclass(frozen=True)
class OpenBarrier:
    """All ranks are ready: they may start together."""


@dataclass(frozen=True)
class Run:
    """The containers do their work from now on."""


@dataclass(frozen=True)
class Press:
    """What still runs is told to end."""

    ranks: tuple[int, ...]
    signal: str
    again_s: float


@dataclass(frozen=True)
class Finish:
    """Nothing runs any more: the rest of the log is fetched, facts are stored, leases go."""

    ends: tuple[Sight, ...]
