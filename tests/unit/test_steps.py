"""What a step decides: pure functions of a job, its attempt and what the backend sees of it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.spec import JobSpec, parse_spec
from jobs.states import Reason, ReplicaState
from service.backends.base import Phase, Sight
from service.backends.docker.history import HostHistory, interruption
from service.backends.engines import ContainerFacts
from service.collector.log_end import torchrun_failure
from service.control import moves
from service.control.context import Context, LogEnd, Work
from service.control.ending import grace_of
from service.control.outcome import Outcome, classify, first_bad
from service.control.steps import provision, run, stop
from service.settings import Settings
from service.store.tables import Attempt, Job, Replica

NOW = 1000.0
PENDING, STARTED, READY, EXITED = (
    ReplicaState.PENDING,
    ReplicaState.STARTED,
    ReplicaState.READY,
    ReplicaState.EXITED,
)


def spec(**more: Any) -> JobSpec:
    return parse_spec({"type": "command", "image": "i", "command": "c", "name": "n", **more})


def work(count: int = 1, reason: Reason | None = None, deadline: float = NOW + 5) -> Work:
    replicas = [
        Replica(id=rank, attempt_id=1, job_id="j", node_rank=rank, container_name=f"c{rank}", started_at=NOW - 10)
        for rank in range(count)
    ]
    attempt = Attempt(id=1, job_id="j", number=1, reason=reason, started_at=NOW - 10, stop_deadline=deadline)
    return Work(Job(id="j", name="n", type="command", document={}), attempt, replicas)


def running(rank: int = 0) -> Sight:
    return Sight(rank, Phase.RUNNING, "h1")


def ended(code: int, rank: int = 0, at: float = NOW - 60) -> Sight:
    return Sight(rank, Phase.ENDED, "h1", exit_code=code, started_at=at - 1, finished_at=at)


UNKNOWN = Sight(0, Phase.UNKNOWN, "h1", says="connection refused")
GANG = {"resources": {"nodes": 2}}


@pytest.mark.parametrize(
    ("document", "states", "unknown", "move"),
    [
        ({}, [PENDING], None, moves.Launch()),
        ({}, [STARTED], None, moves.Wait(0.25)),
        ({}, [STARTED], "no answer", moves.Unanswered("no answer")),
        ({}, [READY], None, moves.Run()),
        ({}, [EXITED], None, moves.Run()),
        (GANG, [READY, PENDING], None, moves.Launch()),
        (GANG, [READY, READY], None, moves.OpenBarrier()),
        (GANG, [READY, EXITED], None, moves.Run()),
    ],
)
def test_the_way_to_running(
    document: dict[str, Any], states: list[ReplicaState], unknown: str | None, move: moves.Wait
) -> None:
    asked = spec(**document)
    assert provision.decide(work(len(states)), asked, states, unknown, Settings(), NOW) == move


@pytest.mark.parametrize(("document", "reason"), [({}, Reason.START_TIMEOUT), (GANG, Reason.BARRIER_TIMEOUT)])
def test_what_does_not_become_ready_in_time_is_given_up(document: dict[str, Any], reason: Reason) -> None:
    count = 2 if document else 1
    states = [STARTED] * count
    move = provision.decide(work(count), spec(**document), states, None, Settings(), NOW + 700)
    assert isinstance(move, moves.Stop) and move.outcome.reason is reason


@pytest.mark.parametrize(
    ("sights", "document", "expected"),
    [
        ([running()], {}, moves.Wait()),
        ([running()], {"max_duration": "20s"}, moves.Wait(10.0)),
        ([running()], {"max_duration": "5s"}, Reason.MAX_DURATION),
        ([UNKNOWN], {}, moves.Unanswered("connection refused")),
        ([UNKNOWN], {"max_duration": "5s"}, moves.Unanswered("connection refused")),
        ([ended(0)], {}, Reason.COMPLETED),
        ([ended(3)], {}, Reason.USER_ERROR),
        ([Sight(0, Phase.GONE, "h1")], {}, Reason.CONTAINER_REMOVED),
        ([ended(0, 0), running(1)], {}, moves.Wait()),
        ([running(0), ended(3, 1)], {}, Reason.USER_ERROR),
        ([Sight(0, Phase.CREATED, "h1", error="no such file")], {}, Reason.ENGINE_REFUSED),
    ],
)
def test_whether_a_running_attempt_goes_on(sights: list[Sight], document: dict[str, Any], expected: Any) -> None:
    move = run.decide(work(len(sights)), spec(**document), sights, NOW)
    if isinstance(expected, Reason):
        assert isinstance(move, moves.Stop) and move.outcome.reason is expected
    else:
        assert move == expected


def test_an_end_goes_from_asking_to_insisting_to_done() -> None:
    asked = work(2, Reason.STOPPED_BY_USER)
    both = [running(0), running(1)]
    assert stop.decide(asked, both, NOW) == moves.Press((0, 1), "SIGTERM", 5.0)
    asked.replicas[0].signalled_at = asked.replicas[1].signalled_at = NOW
    assert stop.decide(asked, both, NOW + 1) == moves.Wait(4.0)
    assert stop.decide(asked, [ended(0), running(1)], NOW + 5) == moves.Press((1,), "SIGKILL", 0.5)
    ends = (ended(0), ended(137, 1))
    assert stop.decide(asked, ends, NOW) == moves.Finish(ends)
    assert stop.decide(asked, [UNKNOWN, running(1)], NOW) == moves.Unanswered("connection refused")
    lost = work(1, Reason.HOST_LOST)
    assert stop.decide(lost, [UNKNOWN], NOW) == moves.Finish((UNKNOWN,))
    killed = work(1, Reason.KILLED)
    assert stop.decide(killed, [ended(137, at=NOW - 1)], NOW) == moves.Wait(3.0)
    assert stop.decide(killed, [ended(137)], NOW) == moves.Finish((ended(137),))


def test_the_first_bad_end_is_why() -> None:
    assert first_bad([ended(0), ended(0, 1)]) is None
    assert first_bad([ended(1, 0, NOW - 5), ended(2, 1, NOW - 9), Sight(2, Phase.GONE)]).rank == 1  # type: ignore[union-attr]


def gang_ends(*ends: Sight, **logs: LogEnd) -> Outcome:
    """What becomes of a gang of which one rank was found to have ended badly, once all have ended."""
    broken = work(len(ends), Reason.USER_ERROR)
    context = cast(Context, SimpleNamespace(spec_to_end=lambda _: spec(resources={"nodes": len(ends)})))
    found = {end.rank: logs.get(f"rank{end.rank}", LogEnd()) for end in ends}
    return stop.outcome(context, broken, [replace(end, place=f"h{end.rank}") for end in ends], found)


def test_a_gangs_reason_is_its_first_failure_with_rank_and_host() -> None:
    follows = LogEnd(error_kind="rank_failed", error_message="rank 1 on h1 died. This rank ends because of it.")
    early, late = ended(1, 0, NOW - 70), ended(9, 1, NOW - 60)  # the clock of h0 is behind: it followed
    assert gang_ends(early, late, rank0=follows, rank1=LogEnd("bang")) == Outcome(
        Reason.USER_ERROR, "rank 1 on h1: exit code 9: bang"
    )
    assert gang_ends(ended(1), replace(ended(137, 1), oom_killed=True), rank0=follows).message.startswith(
        "rank 1 on h1 ran over its memory limit"
    )
    nan = LogEnd(error_kind="nan_loss", error_message="The loss is nan")
    assert gang_ends(early, late, rank1=nan).message == "rank 1 on h1: The loss is nan"
    assert gang_ends(early, running(1), rank0=follows).message == follows.error_message  # it names the rank itself


def test_ranks_that_lost_another_one_are_not_waited_for() -> None:
    asked = {"stopped": Reason.STOPPED_BY_USER, "broken": Reason.OUT_OF_MEMORY}
    assert {name: grace_of(work(2), spec(grace=120), reason) for name, reason in asked.items()} == {
        "stopped": 120.0,
        "broken": 10.0,
    }
    assert grace_of(work(1), spec(grace=120), Reason.OUT_OF_MEMORY) == 120.0
    assert grace_of(work(2), spec(grace=3), Reason.OUT_OF_MEMORY) == 3.0


def test_what_took_the_container_down_with_it_is_the_reason() -> None:
    facts = ContainerFacts("c", "c", {}, running=False, started=True, exit_code=137, started_at=10.0, finished_at=90.0)
    assert interruption(facts, HostHistory("h1", engine_started_at=100.0)) == (
        Reason.ENGINE_RESTARTED,
        "the Docker Engine of h1 was restarted under the job",
    )
    assert interruption(facts, HostHistory("h1", engine_started_at=5.0)) is None
    rebooted = interruption(facts, HostHistory("h1", booted_at=95.0))
    assert rebooted is not None
    sight = Sight(0, Phase.ENDED, "h1", exit_code=137, interruption=rebooted)
    assert classify(sight, LogEnd(), spec()).reason is Reason.HOST_REBOOTED


def test_torchruns_account_says_which_rank_was_killed() -> None:
    account = ["===", "Root Cause (first observed failure):", "[0]:", "rank      : 3 (local_rank: 1)"]
    said = torchrun_failure([*account, "exitcode  : -9 (pid: 28)  (SIGKILL)", "error_file: <N/A>", "====="])
    assert said == (3, -9)
    outcome = gang_ends(ended(0), ended(1, 1), rank1=LogEnd("=====", failed_rank=said))
    assert outcome == Outcome(Reason.KILLED, "rank 3 on h1 was killed by SIGKILL (exit code 137), not by Navarch")
    assert torchrun_failure(["Root Cause", "rank : 3 (x)"]) is None
