"""Files and folders that are there whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import as_training_error


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields an empty directory beside `target`; it becomes `target` when the block ends well, else it vanishes.

    What stood at `target` stays whole until the new one is on disk. Raises WriteFailed when the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        yield fresh
        replace_directory(fresh, target)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, Exception):
            raise as_training_error(error) from error
        raise


def replace_directory(fresh: Path, target: Path) -> None:
    """Sync `fresh` to disk and give it the name `target`, putting an older one aside first and removing it last."""
    sync_tree(fresh)
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_tree(directory: Path) -> None:
    """fsync every file and folder below, so that a rename never precedes what it names."""
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """A small file, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
