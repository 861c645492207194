"""What a job says that waits for what others will leave."""

from collections.abc import Iterable, Mapping
from typing import Any

from jobs.states import JobState

NOT_BEFORE_ITS_INPUTS = 1e12
"""`Job.not_before` of a job that waits for inputs: it is not in the queue until they are there."""
_WORDS = {JobState.PROVISIONING: "starting", JobState.STOPPING: "ending"}


def describe_wait(artifact: str, maker: str, state: str, progress: Mapping[str, Any]) -> str:
    """ "artifact sft-model of job sft (running, step 12 of 40)", or without an artifact "job sft (running)"."""
    said = _WORDS.get(JobState(state), state)
    step, total = progress.get("step"), progress.get("total_steps")
    if state == JobState.RUNNING and step is not None:
        said += f", step {step}" + (f" of {total}" if total else "")
    return f"artifact {artifact} of job {maker} ({said})" if artifact else f"job {maker} ({said})"


def wait_sentence(awaited: Iterable[str]) -> str | None:
    """`why` of a job that waits for these; None when there are none."""
    parts = list(dict.fromkeys(awaited))
    return f"waits for {' and '.join(parts)}" if parts else None
