"""Artifacts: registers models and data sets under names that jobs can use, and forgets them."""

import re
import threading
import time
from pathlib import Path

from sqlmodel import Session

from service.access.mounts import Checked, MountRules
from service.access.paths import Opened, open_below, remove_tree
from service.access.principals import LOCAL, Principal, check_owner
from service.artifacts.elsewhere import Elsewhere
from service.artifacts.keeping import Shelf, size_of
from service.artifacts.users import check_unused
from service.artifacts.versions import find_artifact, newest, next_version, versions_of
from service.contract.errors import Problem
from service.settings import Settings
from service.store.database import Database
from service.store.events import record
from service.store.ids import new_id
from service.store.tables import Artifact

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CONVERSIONS = 2
"""At once: each keeps a processor busy for minutes, and a thread that answers requests."""
_GOING = "deleting"
"""State of an artifact whose files are being removed."""


class Artifacts:
    def __init__(self, database: Database, settings: Settings, elsewhere: Elsewhere | None = None) -> None:
        self._database = database
        self._settings = settings
        self._rules = MountRules.of(settings)
        self._shelf = Shelf(settings.data_dir)
        self._elsewhere = elsewhere
        self._conversions = threading.BoundedSemaphore(_CONVERSIONS)
        self._ending = threading.Event()

    def stop(self) -> None:
        """Breaks off the conversions under way, and those that would come."""
        self._ending.set()

    def add(
        self,
        path: str,
        *,
        name: str | None = None,
        kind: str | None = None,
        new_version: bool = False,
        actor: Principal = LOCAL,
    ) -> Artifact:
        """Registers a folder or file where it lies; a GGUF file is converted into a model folder of its own.

        Under a name that exists only with `new_version`. Raises Problem `path_missing`, `mount_not_allowed`,
        `artifact_exists`, `invalid_request`, `import_failed`.
        """
        if not Path(path).is_absolute():
            raise Problem("invalid_request", f"{path!r} is not an absolute path.", "Give the whole path.")
        is_gguf = Path(path).suffix == ".gguf"
        found = self._rules.open_given(path, "The file", actor) if is_gguf else self._rules.open(path, "The artifact")
        with found.opened:
            source = found.opened.path
            name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem if is_gguf else source.name).strip("-.")
            if not _NAME.fullmatch(name):
                raise Problem(
                    "invalid_request", f"{name!r} can't be an artifact's name.", "Use letters, digits, dot, _ and -."
                )
            with self._database.read() as session:
                _check_free(session, name, new_version)
            row = Artifact(id=new_id(), name=name, kind="", path=str(source), owner_id=actor.id, source=str(source))
            if not is_gguf:
                return self._register(row, found, kind, new_version, actor)
            converted = self._convert(found.opened, name, row.id)
        row.path = str(converted)
        try:
            with (made := self._rules.open_any(converted, "The model")).opened:
                return self._register(row, made, kind, new_version, actor, converted)
        finally:
            remove_tree(converted)  # it has another name when all went well

    def _register(
        self,
        row: Artifact,
        files: Checked,
        kind: str | None,
        new_version: bool,
        actor: Principal,
        converted: Path | None = None,
    ) -> Artifact:
        row.kind, row.size, row.created_at = kind or _kind(files), size_of(files.opened, files.anchor), time.time()
        with self._database.write() as session:
            _check_free(session, row.name, new_version)
            row.version = next_version(session, row.name)
            if converted is not None:
                row.path = str(self._settle(converted, row))
            session.add(row)
            said = f"{row.kind} {row.name}@{row.version} is {row.path}"
            record(session, "artifact.registered", f"artifact/{row.name}", said, actor=actor.id)
        return row

    def delete(self, ref: str, *, actor: Principal = LOCAL) -> None:
        """Forgets one version of an artifact; its files go only if Navarch made them.

        Raises Problem `artifact_not_found`, `artifact_in_use`, and `artifact_ambiguous` for a mere name that has
        several versions.
        """
        with self._database.write() as session:
            row = find_artifact(session, ref)
            versions = versions_of(session, row.name)
            if ref == row.name and len(versions) > 1:
                raise Problem(
                    "artifact_ambiguous",
                    f"Artifact {ref} has the versions {', '.join(map(str, versions))}.",
                    f"Say which one: `navarch artifact rm {ref}@{versions[0]}`.",
                )
            check_owner(session, actor, row.owner_id, f"Artifact {row.name}@{row.version}")
            check_unused(session, row)
            kept_elsewhere = row.host_id is not None and row.run_path is None
            if not kept_elsewhere and not self._shelf.holds(row):
                _forget(session, row, actor)
                return
            row.state = _GOING  # nothing may begin to use it
        try:
            if row.host_id is None or self._elsewhere is None:
                self._shelf.remove(row)
            else:
                self._elsewhere(row.host_id).remove(row)
        except OSError as error:
            name = f"{row.name}@{row.version}"
            raise Problem(
                "files_left",
                f"The files of {name} can't be removed: {error.strerror} ({row.path}).",
                f"Remove them, then try again: `navarch artifact rm {name}`.",
            ) from error
        with self._database.write() as session:
            gone = session.get(Artifact, row.id)
            if gone is not None:
                _forget(session, gone, actor)

    def _convert(self, source: Opened, name: str, row_id: str) -> Path:
        """The converted model in a hidden folder, which gets its name when its version has a number."""
        from service.artifacts.gguf import convert_gguf

        if not self._conversions.acquire(blocking=False):
            said = f"{_CONVERSIONS} models are being converted just now: {name} would have to wait."
            raise Problem("import_failed", said, "Import it again when one of them is there.")
        beside = self._settings.data_dir / "artifacts" / f".{name}.{row_id}"
        beside.parent.mkdir(parents=True, exist_ok=True)
        try:
            convert_gguf(source, beside, self._settings, self._ending)
        except BaseException:
            remove_tree(beside)
            raise
        finally:
            self._conversions.release()
        return beside

    def _settle(self, converted: Path, row: Artifact) -> Path:
        target = self._shelf.place(row)
        remove_tree(target)  # of an import that was cut off before its row was written
        return converted.replace(target)


def _forget(session: Session, row: Artifact, actor: Principal) -> None:
    session.delete(row)
    said = f"{row.name}@{row.version} was deleted"
    record(session, "artifact.deleted", f"artifact/{row.name}", said, actor=actor.id)


def _check_free(session: Session, name: str, new_version: bool) -> None:
    if new_version or newest(session, name) is None:
        return
    raise Problem(
        "artifact_exists",
        f"An artifact named {name!r} exists.",
        "Choose another name, or make it the next version of this one: `navarch artifact import … --new-version`.",
    )


def _kind(files: Checked) -> str:
    """model, adapter, checkpoint or dataset, by what is in it."""
    if files.opened.is_dir:
        for marker, kind in (("adapter_config.json", "adapter"), ("trainer", "checkpoint"), ("config.json", "model")):
            try:
                open_below(files.anchor, str(files.opened.path.relative_to(files.anchor) / marker)).close()
            except OSError:
                continue
            return kind
    return "dataset"
