"""What a job may start from: artifacts by their names, each of the kind that its place in the spec takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session

from service.errors import Problem
from service.store.tables import Artifact
from service.versions import find_artifact, newest

_MODELS = frozenset({"model", "reference", "reward.model", "critic.model"})
"""Keys that take a model; `adapter`, `data` and `resume` take others."""


@dataclass(frozen=True)
class Input:
    """One artifact that a spec names."""

    key: str
    """Where in the spec."""
    name: str
    version: int
    artifact_id: str
    path: str
    """Where its files are on the control plane's machine."""
    digest: str | None = None
    """None as long as it hasn't been computed."""
    maker_id: str | None = None
    """The job that left it."""
    maker_name: str | None = None


FindInput = Callable[[str, str], Input]
"""(what stands after `artifact:`, key of the spec) → what it means. Raises Problem."""


def find_inputs(session: Session) -> FindInput:
    """Looks artifacts up for one spec: the same words mean the same version wherever they stand in it."""
    known: dict[str, Artifact] = {}

    def find(reference: str, key: str) -> Input:
        artifact = known.get(reference)
        if artifact is None:
            artifact = known[reference] = _ready(session, reference)
        _check_kind(session, artifact, key)
        return Input(
            key=key,
            name=artifact.name,
            version=artifact.version,
            artifact_id=artifact.id,
            path=artifact.path,
            digest=artifact.digest,
            maker_id=artifact.job_id,
            maker_name=(artifact.source or "").removeprefix("job:") if artifact.job_id else None,
        )

    return find


def _ready(session: Session, reference: str) -> Artifact:
    artifact = find_artifact(session, reference)
    if artifact.state != "ready":
        raise Problem("artifact_not_found", f"Artifact {reference!r} is {artifact.state}, not ready.")
    if not Path(artifact.path).exists():
        exact = f"{artifact.name}@{artifact.version}"
        raise Problem(
            "path_missing",
            f"The files of artifact {exact!r} are gone: {artifact.path} does not exist.",
            f"Put them back, or forget it: `navarch artifact rm {exact}`.",
            path=artifact.path,
        )
    return artifact


def _check_kind(session: Session, artifact: Artifact, key: str) -> None:
    if key not in _MODELS or artifact.kind not in ("adapter", "dataset"):
        return
    merged = artifact.name.removesuffix("-adapter") + "-model"
    there = newest(session, merged) is not None
    raise Problem(
        "invalid_spec",
        f"`{key}` takes a model, but artifact {artifact.name!r} is {_a(artifact.kind)}.",
        f"Use artifact:{merged}, the model with it merged in." if there else "Give a model's artifact.",
    )


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
