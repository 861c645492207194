"""What is imported is the file that was checked, and what comes of it can be read in containers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.artifacts import gguf
from service.artifacts.registry import Artifacts
from service.contract.errors import Problem
from tests.unit.simulation import World

COPY = 'mkdir "$2" && cat "$1" > "$2/weights" && echo {} > "$2/config.json"'
"""In place of the converter, which needs torch: what it gets and what it leaves are the same."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(gguf, "local_command", lambda: ["sh", "-c", COPY, "sh"])
    before = os.umask(0o077)  # as a control plane has it
    yield World(tmp_path)
    os.umask(before)


def test_a_model_that_was_imported_can_be_read_by_any_account_in_a_container(world: World) -> None:
    file = world.shared / "tiny.gguf"
    file.write_text("weights")
    row = Artifacts(world.database, world.settings).add(str(file))
    made = Path(row.path)
    assert (made / "weights").read_text() == "weights" and row.kind == "model" and row.name == "tiny"
    assert [path.stat().st_mode & 0o777 for path in (made, made / "weights")] == [0o755, 0o644]
    assert [path.name for path in made.parent.iterdir()] == ["tiny"]


def test_a_file_that_a_job_swapped_for_a_link_is_not_imported(world: World, tmp_path: Path) -> None:
    (tmp_path / "private.gguf").write_text("somebody else's")
    (world.shared / "tiny.gguf").symlink_to(tmp_path / "private.gguf")
    with pytest.raises(Problem, match="lies outside the folders"):
        Artifacts(world.database, world.settings).add(str(world.shared / "tiny.gguf"))


def test_conversions_take_turns_and_end_with_the_control_plane(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps one of the threads that answer requests: many of them must not keep all."""
    slow = 'echo $$ >> "$(dirname "$2")/pids"; sleep 300 & wait'
    monkeypatch.setattr(gguf, "local_command", lambda: ["sh", "-c", slow, "sh"])
    artifacts, said = Artifacts(world.database, world.settings), []

    def add(name: str) -> None:
        file = world.shared / f"{name}.gguf"
        file.write_text("weights")
        try:
            artifacts.add(str(file))
        except Problem as problem:
            said.append(problem.detail)

    threads = [threading.Thread(target=add, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    pids = world.settings.data_dir / "artifacts" / "pids"
    deadline = time.monotonic() + 30
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    add("three")
    assert said == ["2 models are being converted just now: three would have to wait."]
    artifacts.stop()
    for thread in threads:
        thread.join(10)
    assert sorted(said[1:]) == [f"The conversion of {name}.gguf was broken off." for name in ("one", "two")]
    for pid in pids.read_text().split():
        assert not Path("/proc", pid).exists()
    assert [path.name for path in pids.parent.iterdir()] == ["pids"]
