"""Which host paths jobs may use, asked twice: by name when a job is submitted, and by open descriptor when it starts.

What a name means can change in between, and after: a job that may write into a mount root can put a link to
/var/run/docker.sock where a folder was, while the engine is about to resolve that name as root. So the check at start
ends with an open descriptor of a folder that lies below the root (see `paths`), and what is mounted is that
descriptor, never the name; `service.backends.docker.mounting` says how the engine is made to do so.

Two kinds of paths are allowed. A *user's* path must lie below a mount root, and must neither be, nor contain, nor lie
in the data folder (secret.key, database, tokens), nor hold the engine's socket; folders are compared by device and
inode, and by where they are in their file system, so that another spelling or a bind mount makes no difference.
Navarch's *own* are the artifacts that jobs left in their run folders, and the imported ones: those folders lie in the
data folder, which is why they are known by that and not by a root. A run folder is writable by its job, so what lies
in it is opened with the same care.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.access.mount_table import Spot, below, spot_of
from service.access.paths import Opened, Outside, open_below
from service.access.principals import Kind, Principal
from service.contract.errors import Problem
from service.settings import Settings

_ABOUT_THE_PATH = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EAGAIN, errno.EXDEV),
}


@dataclass(frozen=True)
class Checked:
    """A path that may be mounted: what it is, held open, and the trusted folder below which it was found."""

    opened: Opened
    anchor: Path
    """Nobody but an administrator can put something else in its place."""

    def below(self, folder: Path) -> str:
        """The path below the anchor or another folder above it; "." for that itself."""
        return str(self.opened.path.relative_to(folder))

    def close(self) -> None:
        self.opened.close()


class MountRules:
    """The paths that the jobs of one control plane may use."""

    def __init__(self, data_dir: Path, roots: Sequence[Path], engine_url: str = "") -> None:
        self._data_dir, self._roots = data_dir, tuple(roots)
        self._socket = Path(engine_url.removeprefix("unix://")) if engine_url.startswith("unix://") else None

    @classmethod
    def of(cls, settings: Settings) -> MountRules:
        return cls(settings.data_dir, settings.mount_roots, settings.engine_url)

    def check(self, path: str | Path, what: str) -> Path:
        """Where a user's path leads now. Raises Problem `mount_not_allowed`, `path_missing`."""
        with self.open(path, what).opened as opened:
            return opened.path

    def open(self, path: str | Path, what: str) -> Checked:
        """A user's path, held open; a file's folder must be allowed, too, since it is mounted with it.

        Raises Problem `mount_not_allowed`, `path_missing`.
        """
        source = _absolute(path, what)
        try:
            real = Path(os.path.realpath(source))
        except OSError as error:
            raise _missing(source, what, error) from error
        anchor = self._root_of(real)
        if anchor is None:
            raise self._outside(source, real, what)
        checked = _open(source, anchor, real.relative_to(anchor), what)
        try:
            self._guard(source, checked.opened, what)
            if checked.opened.is_file:
                self.open(checked.opened.path.parent, f"{what} {source} comes with its folder, and").close()
        except BaseException:
            checked.close()
            raise
        return checked

    def open_any(self, path: str | Path, what: str) -> Checked:
        """A user's path or one of Navarch's own artifacts, held open: what a job's stored mounts name."""
        source = _absolute(path, what)
        anchor = self._own_anchor(source)
        return self.open(path, what) if anchor is None else _open(source, anchor, source.relative_to(anchor), what)

    def open_given(self, path: str | Path, what: str, by: Principal) -> Checked:
        """A path of this machine that somebody wants to have read, held open.

        The local account may name any: it reads what the control plane reads. Everybody else's must be a user's path,
        as must be what lies in a mount root, where jobs write.
        """
        source = _absolute(path, what)
        if by.kind is not Kind.LOCAL or any(
            folder == source or folder in source.parents
            for root in self._roots
            for folder in (root, Path(os.path.realpath(root)))
        ):
            return self.open(path, what)
        top = Path("/")
        return _open(source, top, source.relative_to(top), what)

    def _root_of(self, real: Path) -> Path | None:
        """The outermost root above a path; an inner one may itself be swapped by jobs that mount the outer one."""
        roots = sorted({Path(os.path.realpath(root)) for root in self._roots}, key=lambda root: len(root.parts))
        return next((root for root in roots if real == root or root in real.parents), None)

    def _own_anchor(self, source: Path) -> Path | None:
        """The folder of Navarch's own artifacts that a path names, if it names one."""
        for data_dir in (self._data_dir, Path(os.path.realpath(self._data_dir))):
            if data_dir not in source.parents:
                continue
            parts = source.relative_to(data_dir).parts
            if len(parts) > 1 and parts[0] == "artifacts":
                return data_dir.joinpath(*parts[:2])
            if len(parts) > 2 and parts[0] == "jobs" and parts[2] == "run":
                return data_dir.joinpath(*parts[:3])
        return None

    def _guard(self, source: Path, opened: Opened, what: str) -> None:
        """Keeps the data folder and the engine's socket out. Raises Problem `mount_not_allowed`."""
        if not opened.is_dir and not opened.is_file:
            raise _refused(source, f"{what} {source} is neither a folder nor a file.", "Mount a folder or a file.")
        spot = spot_of(opened)
        for protected, name in ((self._data_dir, "Navarch's data folder"), (self._socket, "the engine's socket")):
            if protected is None or not protected.exists():
                continue
            if _touches(opened, spot, Path(os.path.realpath(protected))):
                raise _refused(
                    source,
                    f"{what} {source} can't be given to jobs: {name} ({protected}) is in it, or it in that.",
                    "Mount a folder that has nothing to do with it.",
                )

    def _outside(self, source: Path, real: Path, what: str) -> Problem:
        shown = ", ".join(str(root) for root in self._roots)
        allowed = f" ({shown})" if shown else ""
        leads = f" (it leads to {real})" if real != source else ""
        return _refused(
            source,
            f"{what} {source}{leads} lies outside the folders that jobs may mount{allowed}.",
            f"Move it there, or start the control plane with `navarch up --mount-root {real.parent}`.",
        )


def _open(source: Path, anchor: Path, inside: Path, what: str) -> Checked:
    try:
        real_anchor = Path(os.path.realpath(anchor, strict=True))
        return Checked(open_below(real_anchor, str(inside)), real_anchor)
    except Outside as error:
        raise Problem(
            "mount_not_allowed",
            f"{what} {source} leads out of {anchor} through a link.",
            "Links may lead to other places in the same folder only: copy the files there, or name their own place.",
            path=str(source),
        ) from error
    except OSError as error:
        if error.errno not in _ABOUT_THE_PATH:
            raise
        raise _missing(source, what, error) from error


def _touches(opened: Opened, spot: Spot | None, protected: Path) -> bool:
    """Whether a folder is, contains or lies in a protected one, under whatever name."""
    chain = [_identity(path) for path in (protected, *protected.parents)]
    if opened.identity in chain:
        return True
    if any(_identity(path) == chain[0] for path in opened.path.parents):
        return True
    if spot is None:
        return False
    with open_below(protected.parent, protected.name) as held:
        there = spot_of(held)
    return there is not None and any(_related(one, there) for one in (spot, *below(opened.path)))


def _related(one: Spot, other: Spot) -> bool:
    return one.device == other.device and (
        one.path == other.path or one.path in other.path.parents or other.path in one.path.parents
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _absolute(path: str | Path, what: str) -> Path:
    source = Path(os.path.normpath(path))
    text = "/" + str(source).lstrip("/")
    if "\0" in text or not source.is_absolute():
        raise Problem("mount_not_allowed", f"{what} {str(path)!r} is no absolute path.", "Give the whole path.")
    return Path(text)


def _missing(source: Path, what: str, error: OSError) -> Problem:
    if isinstance(error, FileNotFoundError):
        said, hint = "does not exist", "Check the path, or make it first."
    else:
        said, hint = f"can't be opened: {error.strerror}", "See that the control plane's account may enter its folders."
    return Problem("path_missing", f"{what} {source} {said}.", hint, path=str(source))


def _refused(source: Path, detail: str, hint: str) -> Problem:
    return Problem("mount_not_allowed", detail, hint, path=str(source))
