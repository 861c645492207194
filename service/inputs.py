"""What a job may start from: artifacts by their names, each of the kind that its place in the spec takes."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from sqlmodel import Session, col, select

from service.errors import Problem
from service.store.tables import Artifact

_MODELS = frozenset({"model", "reference", "reward.model", "critic.model"})
"""Keys that take a model; `adapter`, `data` and `resume` take others."""

ArtifactPath = Callable[[str, str], str]
"""(artifact's name, key of the spec) → its path here. Raises Problem `artifact_not_found`, `invalid_spec`."""


def artifact_paths(session: Session) -> ArtifactPath:
    """Looks artifacts up in one transaction."""

    def path(name: str, where: str) -> str:
        artifact = session.exec(select(Artifact).where(Artifact.name == name)).first()
        if artifact is None:
            raise Problem("artifact_not_found", f"There is no artifact {name!r}.", _hint(session, name))
        if artifact.state != "ready":
            raise Problem("artifact_not_found", f"Artifact {name!r} is {artifact.state}, not ready.")
        if not Path(artifact.path).exists():
            raise Problem(
                "path_missing",
                f"The files of artifact {name!r} are gone: {artifact.path} does not exist.",
                f"Put them back, or forget it: `navarch artifact rm {name}`.",
                path=artifact.path,
            )
        if where in _MODELS and artifact.kind in ("adapter", "dataset"):
            merged = name.removesuffix("-adapter") + "-model"
            there = session.exec(select(Artifact.name).where(Artifact.name == merged)).first()
            hint = f"Use artifact:{merged}, the model with it merged in." if there else "Give a model's artifact."
            raise Problem(
                "invalid_spec", f"`{where}` takes a model, but artifact {name!r} is {_a(artifact.kind)}.", hint
            )
        return artifact.path

    return path


def _hint(session: Session, name: str) -> str:
    """The nearest names: those that begin like it first, as a job's artifacts begin with the job's name."""
    names = list(session.exec(select(Artifact.name).order_by(col(Artifact.created_at).desc()).limit(500)))
    near = [*(known for known in names if known.startswith(f"{name}-")), *get_close_matches(name, names, n=2)]
    if near:
        return f"Did you mean {' or '.join(dict.fromkeys(near[:3]))}?"
    return "`navarch artifact ls` lists them."


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
