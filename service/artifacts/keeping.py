"""Gives the artifacts of a job that is deleted a folder of their own: its run folder goes with the job.

Files are linked, not copied, and stay in the run folder until that is removed: whenever the control plane dies, the
artifact's row names a place where all its files are.
"""

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from service.access.paths import Opened, files_below, open_below, remove_tree
from service.store.tables import Artifact

_LONGEST = 200
_NO_LINK = {errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP}
_READABLE = 0o755
"""Containers of any account read it; the data folder around it is private."""


@dataclass(frozen=True)
class Kept:
    """Where an artifact's files are now, besides in the run folder."""

    path: Path
    size: int | None


class Shelf:
    """The folder of the artifacts that belong to no job, `artifacts/` in the data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "artifacts"

    def holds(self, row: Artifact) -> bool:
        return self.folder in Path(row.path).parents

    def place(self, row: Artifact) -> Path:
        """The folder of one version; no other one has the same."""
        name = quote(row.name, safe="")
        if len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}@{hashlib.sha256(row.name.encode()).hexdigest()[:12]}"
        return self.folder / (name if row.version == 1 else f"{name}@{row.version}")

    def keep(self, row: Artifact, run_dir: Path) -> Kept | None:
        """Makes the files that a job left at home here, too; None when there are none. Raises OSError."""
        assert row.run_path is not None
        try:
            opened = open_below(run_dir, row.run_path)
        except FileNotFoundError:
            return None
        beside = self.folder / f".{self.place(row).name}"
        with opened:
            remove_tree(beside)  # of a deletion that was cut off
            try:
                beside.mkdir(parents=True)
                beside.chmod(_READABLE)
                size = _fill(beside, opened, run_dir, Path(row.path).name)
                target = self.place(row)
                remove_tree(target)
                beside.rename(target)
            except BaseException:
                remove_tree(beside)
                raise
        return Kept(target if opened.is_dir else target / Path(row.path).name, size)

    def remove(self, row: Artifact) -> None:
        """Removes the files of one that lies here. Raises OSError."""
        top = self.folder / Path(row.path).relative_to(self.folder).parts[0]
        if top.is_dir():
            remove_tree(top)
        else:
            top.unlink(missing_ok=True)


def size_of(opened: Opened, root: Path) -> int:
    """Bytes of a file, or of the files in a folder below `root`; what is behind links is counted where it lies."""
    if not opened.is_dir:
        return opened.size
    return sum(file.size for _, file in files_below(opened, root, links=False))


def _fill(folder: Path, source: Opened, root: Path, name: str) -> int:
    """Makes the files at home in an empty folder, a single one under this name; their bytes."""
    if not source.is_dir:
        _give(source, folder / name)
        return source.size
    total, made = 0, {folder}
    for relative, opened in files_below(source, root):
        target = folder / os.fsdecode(relative)
        for parent in reversed(target.parents):
            if folder in parent.parents and parent not in made:
                parent.mkdir()
                parent.chmod(_READABLE)
                made.add(parent)
        _give(opened, target)
        total += opened.size
    return total


def _give(opened: Opened, target: Path) -> None:
    """Another name for an open file; a copy where there can't be one."""
    if hasattr(os, "O_PATH"):
        folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY)
        try:  # with a folder's descriptor: else Python would link the name below /proc, not the file behind it
            os.link(f"/proc/self/fd/{opened.fd}", target.name, dst_dir_fd=folder, follow_symlinks=True)
            return
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        finally:
            os.close(folder)
    with os.fdopen(opened.readable(), "rb") as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy, 1 << 22)
    target.chmod(0o644)
