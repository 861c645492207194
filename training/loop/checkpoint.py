"""Checkpoints that are there whole or not at all: written beside, synced, renamed; the newest and the best are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.atomic import replace_directory, write_atomically
from training.errors import MissingInput, WriteFailed, as_training_error

STATE = "state.json"
"""The stage's own state inside checkpoints/step-N/trainer/; its presence marks a checkpoint as complete."""
FORMAT = 1


class Checkpoints:
    """The `checkpoints/` folder of a run: step-N folders, of which the newest `keep` and the best one stay."""

    def __init__(self, run_dir: Path, *, keep: int = 2, keep_best: bool = True) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep, self.keep_best = keep, keep_best

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        found = []
        for path in self.folder.glob("step-*"):
            number = path.name.removeprefix("step-")
            if number.isdigit() and (path / "trainer" / STATE).exists():
                found.append(int(number))
        return sorted(found)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def latest(self) -> Path | None:
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        state: Mapping[str, Any],
        *,
        is_main: bool,
        barrier: Callable[[], None],
        agree: Callable[[bool], bool],
    ) -> Path:
        """Write a checkpoint on all ranks: `write(folder)` is called on each, then rank 0 adds `state` and renames.

        `agree(ok)` returns whether every rank is fine, so that one rank's full disk fails the save on all of them. The
        checkpoints before it are removed only after the new one is in place.
        """
        target, fresh = self.path(step), self.folder / f".step-{step}.new"
        failure: Exception | None = None
        try:
            if is_main:
                shutil.rmtree(fresh, ignore_errors=True)
                (fresh / "trainer").mkdir(parents=True)
        except Exception as error:
            failure = error
        barrier()
        try:
            if failure is None:
                write(fresh)
        except Exception as error:
            failure = error
        if agree(failure is None):
            try:
                if is_main:
                    facts = {"format": FORMAT, "step": step, **state}
                    (fresh / "trainer" / STATE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
                    replace_directory(fresh, target)
                    self._prune()
            except Exception as error:
                failure = error
            if agree(failure is None):
                return target
        if is_main:
            shutil.rmtree(fresh, ignore_errors=True)
        barrier()
        raise as_training_error(failure or WriteFailed("Another rank could not write its part of the checkpoint."))

    def mark_best(self, step: int, loss: float) -> None:
        """Remember which checkpoint had the lowest held-out loss."""
        write_atomically(self.folder / "best.json", json.dumps({"step": step, "loss": loss}) + "\n")

    def best(self) -> tuple[int, float] | None:
        try:
            facts = json.loads((self.folder / "best.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return int(facts["step"]), float(facts["loss"])

    def _prune(self) -> None:
        best = self.best() if self.keep_best else None
        for step in self.steps()[: -self.keep]:
            if best is None or step != best[0]:
                shutil.rmtree(self.path(step), ignore_errors=True)
        for leftover in self.folder.glob(".*.new*"):
            shutil.rmtree(leftover, ignore_errors=True)


def find_resume(choice: str | None, run_dir: Path) -> Path | None:
    """The checkpoint folder that `resume` names: none, the newest of the run (auto), or a path.

    Raises MissingInput when a path holds no complete checkpoint.
    """
    if not choice or choice == "none":
        return None
    if choice == "auto":
        return Checkpoints(run_dir).latest()
    path = Path(choice).expanduser()
    if (path / "trainer" / STATE).exists():
        return path
    newest = Checkpoints(path).latest() if (path / "checkpoints").is_dir() else None
    if newest is None:
        raise MissingInput(f"{choice} holds no complete checkpoint to resume from (no trainer/{STATE}).")
    return newest


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The stage's own state from a checkpoint."""
    path = checkpoint / "trainer" / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingInput(f"{path} can't be read: {error}.") from error
    if state.get("format") != FORMAT:
        raise MissingInput(f"{checkpoint} was written in format {state.get('format')}; this version reads {FORMAT}.")
    return state
