"""Checkpoints are there whole or not at all, and the right ones are kept."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from training.atomic import atomic_directory
from training.errors import MissingInput, WriteFailed
from training.loop.checkpoint import Checkpoints, find_resume, read_state


def save(checkpoints: Checkpoints, step: int, write: Any = None) -> Path:
    return checkpoints.save(
        step, write or (lambda folder: (folder / "weights").write_text(str(step))), {"stage": "sft"},
        is_main=True, barrier=lambda: None, agree=lambda fine: fine,
    )  # fmt: skip


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4, 5):
        save(checkpoints, step)
        if step == 2:
            checkpoints.mark_best(2, 0.5)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == (2, 0.5)
    assert checkpoints.latest() == tmp_path / "checkpoints" / "step-5"
    assert read_state(checkpoints.path(5))["step"] == 5


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)

    def full(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with pytest.raises(WriteFailed, match="No space left"):
        save(checkpoints, 2, full)
    assert checkpoints.steps() == [1]
    assert (checkpoints.path(1) / "weights").read_text() == "1"
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-1"]


def test_another_ranks_failure_fails_the_save_here_too(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(WriteFailed, match="Another rank"):
        checkpoints.save(
            1, lambda folder: None, {}, is_main=True, barrier=lambda: None, agree=lambda fine: False
        )  # fmt: skip
    assert checkpoints.steps() == []


def test_a_folder_that_was_not_finished_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 3)
    (tmp_path / "checkpoints" / "step-9").mkdir()
    (tmp_path / "checkpoints" / ".step-8.new" / "trainer").mkdir(parents=True)
    assert checkpoints.steps() == [3]
    assert find_resume("auto", tmp_path) == checkpoints.path(3)
    save(checkpoints, 4)
    assert not (tmp_path / "checkpoints" / ".step-8.new").exists()


def test_resume_finds_auto_a_checkpoint_or_a_run_and_refuses_the_rest(tmp_path: Path) -> None:
    assert find_resume(None, tmp_path) is None
    assert find_resume("auto", tmp_path) is None
    path = save(Checkpoints(tmp_path), 3)
    assert find_resume(str(path), tmp_path / "other") == path
    assert find_resume(str(tmp_path), tmp_path / "other") == path
    with pytest.raises(MissingInput, match="no complete checkpoint"):
        find_resume(str(tmp_path / "checkpoints" / "step-77"), tmp_path)


def test_a_directory_is_replaced_at_once_or_stays(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("one", "two"):
        with atomic_directory(target) as folder:
            (folder / "file").write_text(text)
            assert not target.exists() or (target / "file").read_text() == "one"
    assert (target / "file").read_text() == "two"
    with pytest.raises(WriteFailed), atomic_directory(target) as folder:
        (folder / "file").write_text("three")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (target / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
