"""What a job may start from: artifacts that are there, and those that a job in the queue or under way will leave."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import case
from sqlmodel import Session, col, select

from jobs.awaited import describe_wait
from jobs.mistakes import SpecError
from jobs.outputs import leaves, maker_of
from jobs.states import TERMINAL, Desired, JobState
from jobs.stored import read_stored
from service.artifacts.versions import Reference, find_artifact, newest
from service.contract.errors import Problem
from service.store.rows import find_job
from service.store.tables import Artifact, Job

_MODELS = frozenset({"model", "reference", "reward.model", "critic.model"})
"""Keys that take a model; `adapter`, `data` and `resume` take others."""


@dataclass(frozen=True)
class Input:
    """One artifact that a spec names; without a version it is still to be made.

    Without a name it is no artifact, but the end of a job that `after` names.
    """

    key: str
    """Where in the spec."""
    name: str
    version: int | None = None
    artifact_id: str | None = None
    path: str | None = None
    """Where its files are, on its host."""
    host_id: str | None = None
    """The remote host on which they are; None: the control plane's machine."""
    digest: str | None = None
    """None as long as it hasn't been computed."""
    maker_id: str | None = None
    """The job that left it, or will."""
    maker_name: str | None = None
    awaited: str | None = None
    """What is waited for, in words."""


FindInput = Callable[[str, str], Input]
"""(what stands after `artifact:`, key of the spec) → what it means. Raises Problem."""


def find_inputs(session: Session, by: str) -> FindInput:
    """Looks artifacts up for one spec: the same words mean the same version wherever they stand in it.

    A name means the newest version, and that is the one that a live job is about to leave, first of all one of the
    principal `by`.
    """
    known: dict[str, Artifact | Job] = {}

    def find(reference: str, key: str) -> Input:
        found = known.get(reference)
        if found is None:
            found = known[reference] = _maker(session, reference, by) or _ready(session, reference)
        if isinstance(found, Job):
            _check_kind(session, reference, (maker_of(reference) or ("", ""))[1], key, by)
            awaited = describe_wait(reference, found.name, found.state, found.progress)
            return Input(key=key, name=reference, maker_id=found.id, maker_name=found.name, awaited=awaited)
        _check_kind(session, found.name, found.kind, key, by)
        return Input(
            key=key,
            name=found.name,
            version=found.version,
            artifact_id=found.id,
            path=found.path,
            host_id=found.host_id,
            digest=found.digest,
            maker_id=found.job_id,
            maker_name=source.removeprefix("job:") if (source := found.source or "").startswith("job:") else None,
        )

    return find


def find_predecessors(session: Session, names: Iterable[str], by: str) -> list[Input]:
    """The jobs under `after` that haven't ended yet. Raises Problem for one that is unknown or has not succeeded."""
    waits = []
    for index, name in enumerate(names):
        job = find_job(session, name, by)
        state = JobState(job.state)
        if state is JobState.SUCCEEDED:
            continue
        if state in TERMINAL or job.desired == Desired.STOP:
            said = state if state in TERMINAL else "being stopped"
            raise Problem(
                "invalid_spec",
                f"`after` names job {name}, which is {said}: this job would never start.",
                f"Submit {job.name} again first, or leave it out of `after`.",
            )
        awaited = describe_wait("", job.name, job.state, job.progress)
        waits.append(Input(key=f"after[{index}]", name="", maker_id=job.id, maker_name=job.name, awaited=awaited))
    return waits


def _maker(session: Session, reference: str, by: str) -> Job | None:
    """The live job that will leave the newest version."""
    made = maker_of(Reference.parse(reference).name) if "@" not in reference else None
    if made is None:
        return None
    name, kind = made
    live = select(Job).where(Job.name == name, col(Job.finished_at).is_(None), Job.desired == Desired.RUN)
    job = session.exec(live.order_by(case((col(Job.owner_id) == by, 0), else_=1))).first()
    if job is None:
        return None
    try:
        return job if kind in leaves(read_stored(job.document, job.spec_version)) else None
    except SpecError:  # it will fail, and leave nothing
        return None


def _ready(session: Session, reference: str) -> Artifact:
    artifact = find_artifact(session, reference)
    if artifact.state != "ready":
        raise Problem("artifact_not_found", f"Artifact {reference!r} is {artifact.state}, not ready.")
    if artifact.host_id is None and not os.path.lexists(artifact.path):
        exact = f"{artifact.name}@{artifact.version}"
        raise Problem(
            "path_missing",
            f"The files of artifact {exact!r} are gone: {artifact.path} does not exist.",
            f"Put them back, or forget it: `navarch artifact rm {exact}`.",
            path=artifact.path,
        )
    return artifact


def _check_kind(session: Session, name: str, kind: str, key: str, by: str) -> None:
    if key not in _MODELS or kind not in ("adapter", "dataset"):
        return
    merged = name.removesuffix("-adapter") + "-model"
    there = newest(session, merged) is not None or _maker(session, merged, by) is not None
    raise Problem(
        "invalid_spec",
        f"`{key}` takes a model, but artifact {name!r} is {_a(kind)}.",
        f"Use artifact:{merged}, the model with it merged in." if there else "Give a model's artifact.",
    )


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
