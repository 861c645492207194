"""Opens what lies below a folder and nothing else: links are followed as long as they stay inside, never out of it.

Jobs write into folders that the control plane reads, hashes, copies, mounts and deletes. A path that was good a moment
ago may be a link to /etc now. So nothing here goes by a path twice: each component is opened relative to the folder
before it, without following it; a link is read and walked by the same rules; what comes back is an open descriptor,
which stays the same file whatever happens to its name.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_PIN = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK) | os.O_CLOEXEC
"""Opens a name without touching what it names: no device wakes up, no FIFO blocks."""
_MAX_LINKS = 40
_MAX_SWAPS = 8
_DEEPEST = 64
"""Folders in folders that are looked into: deeper ones are nobody's model, and take a descriptor each."""


class Outside(OSError):
    """A link leads out of the folder."""

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(errno.EXDEV, f"it leads out of {root}", str(path))


class Opened:
    """A file or folder held open; `path` is where it was found, free of links."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd, self.path = fd, path
        status = os.fstat(fd)
        self.is_dir, self.is_file = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode)
        self.identity = (status.st_dev, status.st_ino)
        self.size = status.st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def readable(self) -> int:
        """A descriptor of its content, the caller's to close. Raises OSError for what is no file or folder."""
        return reopened(self.fd, str(self.path))


def open_below(root: Path, relative: str) -> Opened:
    """What lies at `relative` below `root`, followed through links that stay inside.

    `root` itself is trusted: whoever may swap it or its parents needs no trick. Raises Outside; other OSErrors as the
    system has them (ENOENT, ELOOP, …).
    """
    real = Path(os.path.realpath(root, strict=True))
    spellings = {str(real), os.path.normpath(root)}
    wanted = Path(root, relative)
    stack = [os.open(real, _PIN | os.O_DIRECTORY)]
    names: list[str] = []
    todo = _parts(relative)[::-1]
    links = swaps = 0
    try:
        while todo:
            name = todo.pop()
            if name == "..":
                if not names:
                    raise Outside(wanted, root)
                names.pop()
                os.close(stack.pop())
                continue
            target = _link(name, stack[-1])
            if target is None:
                opened = os.open(name, _PIN | os.O_NOFOLLOW, dir_fd=stack[-1])
                stack.append(opened)
                names.append(name)
                if stat.S_ISLNK(os.fstat(opened).st_mode):  # swapped between the look and the opening
                    os.close(stack.pop())
                    todo.append(names.pop())
                    swaps += 1
                    if swaps > _MAX_SWAPS:
                        raise OSError(errno.EAGAIN, "it changes while it is being opened", str(wanted))
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(wanted))
            if target.startswith("/"):
                inside = _inside(target, spellings)
                if inside is None:
                    raise Outside(wanted, root)
                target = inside
                while names:
                    names.pop()
                    os.close(stack.pop())
            todo += _parts(target)[::-1]
        return Opened(stack.pop(), real.joinpath(*names))
    except OSError as error:
        error.filename = error.filename if isinstance(error, Outside) else str(wanted)
        raise
    finally:
        for fd in stack:
            os.close(fd)


def files_below(folder: Opened, root: Path, *, links: bool = True) -> Iterator[tuple[bytes, Opened]]:
    """The regular files in a folder with their relative paths, in the order of these; each is open until the next.

    Files behind links count (unless `links` is off) when they lie below `root`, folders behind links don't; sockets,
    devices and FIFOs are passed over. Raises OSError for what can't be read, Outside for a link to a file elsewhere.
    """
    found: list[bytes] = []

    def fail(error: OSError) -> None:
        raise error

    top = folder.readable()
    try:
        for parent, _, names, fd in os.fwalk(b".", dir_fd=top, onerror=fail):
            inside = parent[2:] + b"/" if parent != b"." else b""
            if inside.count(b"/") > _DEEPEST:
                raise OSError(errno.ELOOP, "its folders are nested too deeply", str(folder.path))
            for name in names:
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) or (links and stat.S_ISLNK(mode)):
                    found.append(inside + name)
    finally:
        os.close(top)
    real = Path(os.path.realpath(root, strict=True))
    base = folder.path.relative_to(real)
    for name in sorted(found):
        try:
            opened = open_below(real, str(base / os.fsdecode(name)))
        except FileNotFoundError:
            continue  # a link to nothing, or gone since
        with opened:
            if opened.is_file:
                yield name, opened


def remove_tree(folder: Path) -> None:
    """Removes a folder with all that is in it: links as such, and nothing of another file system.

    The folder's own path is trusted. Folders below it are moved up into it before they are emptied, so that their depth
    does not matter. Goes on when something can't be removed, and raises the first OSError at the end.
    """
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    failed: dict[str, OSError] = {}
    try:
        while names := [name for name in _names(top) if name not in failed]:
            for name in names:
                try:
                    _remove_entry(name, top)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    failed[name] = error
    finally:
        os.close(top)
    if failed:
        raise next(iter(failed.values()))
    folder.rmdir()


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _remove_entry(name: str, top: int) -> None:
    """Removes a file or an emptied folder; what folders are in the folder come to lie beside it."""
    status = os.stat(name, dir_fd=top, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=top)
        return
    inside = _opened_for_removal(name, top)
    try:
        if os.fstat(inside).st_dev != os.fstat(top).st_dev:
            raise OSError(errno.EXDEV, "another file system is mounted there", name)
        for child in _names(inside):
            if stat.S_ISDIR(os.stat(child, dir_fd=inside, follow_symlinks=False).st_mode):
                os.close(_opened_for_removal(child, inside))  # to be moved, a folder itself must be writable
                os.rename(child, f".{secrets.token_hex(16)}", src_dir_fd=inside, dst_dir_fd=top)
            else:
                os.unlink(child, dir_fd=inside)
    finally:
        os.close(inside)
    os.rmdir(name, dir_fd=top)


def _opened_for_removal(name: str, parent: int) -> int:
    """A folder of which things can be taken out, if its owner may decide that."""
    pinned = os.open(name, _PIN | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        status = os.fstat(pinned)
        if hasattr(os, "O_PATH") and status.st_uid == os.geteuid() and status.st_mode & 0o700 != 0o700:
            Path(f"/proc/self/fd/{pinned}").chmod(0o700)
        return reopened(pinned, name)
    finally:
        os.close(pinned)


def reopened(fd: int, name: str = "") -> int:
    """A readable descriptor of what `fd` (maybe opened with O_PATH) is, if that is a file or a folder."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a folder", name)
    if not hasattr(os, "O_PATH"):
        return os.dup(fd)
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _link(name: str, folder: int) -> str | None:
    """Where a link points to; None when the name is no link."""
    if not stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return None
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.EINVAL:  # no link any more
            return None
        raise


def _inside(target: str, spellings: set[str]) -> str | None:
    """The rest of an absolute path behind the root's own path."""
    for spelling in spellings:
        if target == spelling or target.startswith(spelling.rstrip("/") + "/"):
            return target[len(spelling) :]
    return None
