"""The state table and the reasons: which moves are legal, and what is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.states import (
    MAX_SYSTEM_RETRIES,
    TERMINAL,
    Fault,
    IllegalTransition,
    JobState,
    Reason,
    after_attempt,
    check_move,
)


def legal(old: JobState, new: JobState) -> bool:
    try:
        check_move(old, new)
    except IllegalTransition:
        return False
    return True


def test_nothing_leaves_a_terminal_state() -> None:
    assert {(old, new) for old in TERMINAL for new in JobState if legal(old, new)} == set()


def test_every_state_is_reached_from_queued() -> None:
    reached = {JobState.QUEUED}
    while True:
        more = {new for old in reached for new in JobState if legal(old, new)} - reached
        if not more:
            break
        reached |= more
    assert reached == set(JobState)


def test_a_placed_job_ends_only_through_stopping() -> None:
    for old in (JobState.PROVISIONING, JobState.RUNNING):
        for new in TERMINAL:
            with pytest.raises(IllegalTransition):
                check_move(old, new)


def test_every_live_state_has_a_way_on() -> None:
    for state in frozenset(JobState) - TERMINAL:
        assert any(legal(state, new) for new in JobState)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_sentence_and_an_end(reason: Reason) -> None:
    assert reason.facts.says
    assert reason.facts.outcome in TERMINAL


@given(st.sampled_from(list(Reason)), st.integers(0, 5), st.integers(0, 9), st.integers(0, 9))
def test_retries_end(reason: Reason, retries: int, user: int, system: int) -> None:
    after = after_attempt(reason, retries, user, system)
    if after.state is JobState.QUEUED:
        assert reason.facts.retried
        assert 0 < after.delay_s <= 300
        assert after.user_retry == (reason.facts.fault is Fault.USER)
        assert user < retries if after.user_retry else system < MAX_SYSTEM_RETRIES
    else:
        assert after.state is reason.facts.outcome


def test_the_systems_faults_leave_the_users_retries_alone() -> None:
    assert after_attempt(Reason.ENGINE_RESTARTED, 0, 0, 0).state is JobState.QUEUED
    assert not after_attempt(Reason.ENGINE_RESTARTED, 0, 0, 0).user_retry
    assert after_attempt(Reason.ENGINE_RESTARTED, 3, 0, MAX_SYSTEM_RETRIES).state is JobState.FAILED
    assert after_attempt(Reason.USER_ERROR, 0, 0, 0).state is JobState.FAILED
    assert after_attempt(Reason.BAD_CONFIG, 5, 0, 0).state is JobState.FAILED
