"""Artifacts: registers models and data sets under names that jobs can use, and forgets them."""

import re
import shutil
import time
from pathlib import Path

from sqlmodel import col, select

from service.errors import Problem
from service.paths import check_mount
from service.settings import Settings
from service.store.database import Database
from service.store.events import record
from service.store.ids import new_id
from service.store.tables import Artifact, Job

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


class Artifacts:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def add(self, path: str, *, name: str | None = None, kind: str | None = None, actor: str = "") -> Artifact:
        """Registers a folder or file where it lies; a GGUF file is converted into a model folder of its own.

        Raises Problem `path_missing`, `mount_not_allowed`, `artifact_exists`, `invalid_request`, `import_failed`.
        """
        source = Path(path)
        is_gguf = source.suffix == ".gguf"
        if not source.is_absolute():
            raise Problem("invalid_request", f"{path!r} is not an absolute path.", "Give the whole path.")
        if is_gguf and not source.is_file():
            raise Problem("path_missing", f"{source} does not exist.", "Check the path.", path=path)
        if not is_gguf:
            roots = [self._settings.data_dir, *self._settings.mount_roots]
            source = check_mount(source, roots, "The artifact")
        name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem if is_gguf else source.name).strip("-.")
        if not _NAME.match(name):
            raise Problem(
                "invalid_request", f"{name!r} can't be an artifact's name.", "Use letters, digits, dot, _ and -."
            )
        with self._database.read() as session:
            if session.exec(select(Artifact).where(Artifact.name == name)).first() is not None:
                raise _exists(name)
        origin = str(source)
        if is_gguf:
            source = self._convert(source, name)
        row = Artifact(
            id=new_id(),
            name=name,
            kind=kind or _kind(source),
            path=str(source),
            size=_size(source),
            source=origin,
            created_at=time.time(),
        )
        with self._database.write() as session:
            if session.exec(select(Artifact).where(Artifact.name == name)).first() is not None:
                raise _exists(name)
            session.add(row)
            record(session, "artifact.registered", f"artifact/{name}", f"{row.kind} {name} is {row.path}", actor=actor)
        return row

    def delete(self, name: str, *, actor: str = "") -> None:
        """Forgets an artifact; its files go only if Navarch made them. Raises Problem `artifact_in_use`."""
        with self._database.write() as session:
            row = session.exec(select(Artifact).where(Artifact.name == name)).first()
            if row is None:
                raise Problem(
                    "artifact_not_found", f"There is no artifact {name!r}.", "`navarch artifact ls` lists them."
                )
            for job in session.exec(select(Job).where(col(Job.finished_at).is_(None))):
                if any(mount["source"] == row.path for mount in job.resolved.get("mounts", ())):
                    raise Problem(
                        "artifact_in_use", f"Artifact {name} is used by job {job.name}.", f"Wait for {job.name} to end."
                    )
            session.delete(row)
            record(session, "artifact.deleted", f"artifact/{name}", f"{name} was deleted", actor=actor)
        own = self._settings.data_dir / "artifacts"
        if own in Path(row.path).parents:
            shutil.rmtree(row.path, ignore_errors=True)

    def _convert(self, source: Path, name: str) -> Path:
        from service.imports import convert_gguf

        target = self._settings.data_dir / "artifacts" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{name}.{new_id()}")
        try:
            convert_gguf(source, beside, self._settings)
            shutil.rmtree(target, ignore_errors=True)  # of an import that was cut off before its row was written
            beside.replace(target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return target


def _exists(name: str) -> Problem:
    return Problem(
        "artifact_exists",
        f"An artifact named {name!r} exists.",
        f"Choose another name, or `navarch artifact rm {name}` first.",
    )


def _kind(path: Path) -> str:
    """model, adapter, checkpoint or dataset, by what is in it."""
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            return "adapter"
        if (path / "trainer").is_dir():
            return "checkpoint"
        if (path / "config.json").exists():
            return "model"
    return "dataset"


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
