"""What takes long says what it is and how far: never silence, and no line for what is quick."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.training.making import ROOT, environment, make_rows
from training.report import phases
from training.report.telemetry import Telemetry


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths."""
    monkeypatch.setattr(phases, "AGAIN_S", 0.2)
    monkeypatch.setattr("training.report.telemetry.AGAIN_S", 0.2)


def until(said: list[str], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(said) < count:
        assert time.monotonic() < deadline, said
        time.sleep(0.01)


def test_a_long_phase_tells_what_it_is_how_far_and_how_long_it_took(quick: None) -> None:
    said: list[str] = []
    with phases.phase("reading rows", said.append, first_s=0.05) as now:
        now.at(1200, 3000, "rows")
        until(said, 2)
    assert said[0] == "reading rows … 1,200 of 3,000 rows"
    assert said[1].startswith("reading rows … 1,200 of 3,000 rows, ") and said[1].endswith(" s")
    assert said[-1].startswith("reading rows: took ")


def test_a_quick_phase_says_nothing_and_a_failed_one_ends() -> None:
    said: list[str] = []
    before = threading.active_count()
    with pytest.raises(ValueError), phases.phase("quick", said.append, first_s=30):
        raise ValueError
    assert said == [] and threading.active_count() == before


def test_steps_between_two_reports_tell_how_far_they_are(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry = Telemetry(tmp_path, total_steps=1000, every=1000, tensorboard=False)
    for step in range(1, 8):
        time.sleep(0.1)
        telemetry.step(step, {"loss": 1.0})
    telemetry.close()
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= sum(line.startswith("step ") for line in lines) <= 5, lines
    assert all("left" in line for line in lines if line.startswith("step "))
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])["event"] == "progress"


def people() -> dict[str, str]:
    """What a person's shell holds: nothing that asks for event lines."""
    return {name: value for name, value in environment().items() if not name.startswith("NAVARCH_")}


def check(file: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.cli", "data", "check", str(file)], env={**people(), **more}, cwd=ROOT,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_people_are_spared_the_lines_for_the_control_plane(tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 8)
    rows.write_text(rows.read_text() + "{broken\n")
    missing = tmp_path / "missing.jsonl"
    for file in (rows, missing):
        done = check(file)
        assert done.returncode != 0 and "@navarch" not in done.stdout + done.stderr
    assert "error: " in check(missing).stderr
    assert "@navarch" in check(missing, NAVARCH_JOB="job").stdout, "a job's failure is told to the control plane"
