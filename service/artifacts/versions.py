"""Artifacts by name: NAME is the newest version, NAME@2 the second one. A number is never given twice."""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from sqlmodel import Session, col, func, select

from service.contract.errors import Problem
from service.store.tables import Artifact, Meta

MAX_REFERENCE = 200
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Reference:
    """What stands after `artifact:` in a spec."""

    name: str
    version: int | None
    """None: the newest."""

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Raises Problem `invalid_request` when what stands behind @ is no number, or the name is none."""
        if len(text) > MAX_REFERENCE:
            raise Problem("invalid_request", f"{text[:40]!r}… is too long for an artifact's name.", "Give its name.")
        name, at, version = text.partition("@")
        if not at:
            return cls(name, None)
        if not _NUMBER.fullmatch(version):
            raise Problem(
                "invalid_request",
                f"{text[:120]!r} names no version of an artifact: {version[:40]!r} is not a number.",
                f"Write {name[:80]}@2 for the second version, {name[:80]} for the newest.",
            )
        return cls(name, int(version))


def find_artifact(session: Session, text: str) -> Artifact:
    """The artifact that NAME, NAME@VERSION or an id means. Raises Problem `artifact_not_found`, `invalid_request`."""
    wanted = Reference.parse(text)
    found = newest(session, wanted.name) if wanted.version is None else _version(session, wanted.name, wanted.version)
    found = found or session.get(Artifact, text)
    if found is not None:
        return found
    versions = versions_of(session, wanted.name)
    if versions:
        there = ", ".join(map(str, versions))
        detail = f"Artifact {wanted.name!r} has no version {wanted.version}; it has {there}."
        raise Problem("artifact_not_found", detail, f"{wanted.name} by itself means the newest.")
    raise Problem("artifact_not_found", f"There is no artifact {wanted.name!r}.", _nearest(session, wanted.name))


def newest(session: Session, name: str) -> Artifact | None:
    query = select(Artifact).where(Artifact.name == name).order_by(col(Artifact.version).desc()).limit(1)
    return session.exec(query).first()


def versions_of(session: Session, name: str) -> list[int]:
    return list(session.exec(select(Artifact.version).where(Artifact.name == name).order_by(col(Artifact.version))))


def next_version(session: Session, name: str) -> int:
    """The number of a new version of `name`, in the transaction that adds it; also of one whose rows were removed."""
    last = session.get(Meta, f"artifact/{name}")
    known = session.exec(select(func.max(Artifact.version)).where(Artifact.name == name)).one() or 0
    number = max(int(last.value) if last is not None else 0, known) + 1
    if last is None:
        session.add(Meta(key=f"artifact/{name}", value=str(number)))
    else:
        last.value = str(number)
    return number


def _version(session: Session, name: str, version: int) -> Artifact | None:
    return session.exec(select(Artifact).where(Artifact.name == name, Artifact.version == version)).first()


def _nearest(session: Session, name: str) -> str:
    """The nearest names: those that begin like it first, as a job's artifacts begin with the job's name."""
    base, _, number = name.rpartition("-")
    if number.isdecimal() and _version(session, base, int(number)) is not None:
        return f"Did you mean {base}@{number}?"
    newest_first = select(Artifact.name).group_by(Artifact.name).order_by(func.max(Artifact.created_at).desc())
    names = list(session.exec(newest_first.limit(500)))
    near = [*(known for known in names if known.startswith(f"{name}-")), *get_close_matches(name, names, n=2)]
    if near:
        return f"Did you mean {' or '.join(dict.fromkeys(near[:3]))}?"
    return "`navarch artifact ls` lists them."
