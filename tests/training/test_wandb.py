"""Weights & Biases, with its own client: against a server on loopback, and by reading back what it recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.making import ROOT, command, environment, events, make_model, make_rows, settings, train
from tests.training.wandb_server import KEY, Recording, Server, read_recording, serve_wandb
from training.report.telemetry import Telemetry
from training.report.wandb import STATE_FILE, without_secrets

ATTEMPT = """
import json, sys
from pathlib import Path
from training.report.telemetry import Telemetry
run_dir, project, (first, last, code) = Path(sys.argv[1]), sys.argv[5], map(int, sys.argv[2:5])
telemetry = Telemetry(run_dir, total_steps=99, every=1, tensorboard=False, wandb=project or None, first_step=first)
for step in range(first + 1, last + 1):
    telemetry.step(step, {"loss": 1 / step})
    if sys.argv[6:]:
        sys.stdin.readline()
telemetry.close(code)
"""


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NAVARCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve_wandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    return make_model(folder / "model"), make_rows(folder / "rows.jsonl", "sft", 32)


def attempt(run_dir: Path, first: int, last: int, code: int = 0, project: str = "tests") -> list[str]:
    """One attempt's telemetry in a process of its own; returns what it said about Weights & Biases."""
    arguments = [str(run_dir), str(first), str(last), str(code), project]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPT, *arguments], env=environment(), cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(events(run_dir, "metrics")) >= last - first
    return [line for line in (done.stdout + done.stderr).splitlines() if "eights & B" in line or "andb" in line.lower()]


def recordings(run_dir: Path) -> list[Recording]:
    return [read_recording(path) for path in sorted(run_dir.glob("wandb/*run-*/*.wandb"))]


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["_step"] for row in rows]


def test_a_run_is_recorded_with_its_figures_and_settings_and_without_secrets(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NAVARCH_JOB", "night")
    monkeypatch.setenv("HF_TOKEN", "hf_donottell")
    run_dir = tmp_path / "run"
    asked = ["log.wandb=lab/tests", "data.eval_fraction=0.2", "eval.every=2", "data.system=say hf_donottell"]
    done = train("sft", [*settings("sft", *made, run_dir, max_steps=4), *asked])
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = recordings(run_dir)
    assert (found.name, found.exit_code, found.preempting) == ("night-1", 0, False)
    assert steps(found.history) == [1, 2, 3, 4]
    for kind, prefix in (("metrics", "train/"), ("eval", "")):
        for event in events(run_dir, kind):
            row = found.history[event["step"] - 1]
            for name, value in event["values"].items():
                assert row[prefix + name] == pytest.approx(value, rel=1e-5), (event["step"], name)
    assert sum("eval/loss" in row for row in found.history) == 2
    assert (found.config["stage"], found.config["train"]["lr"], found.config["model"]) == ("sft", 1e-2, str(made[0]))
    assert found.config["data"]["system"] == "********"
    assert KEY.encode() not in found.raw and b"donottell" not in found.raw
    assert f"wandb sync {run_dir}/wandb/offline-run-" in done.stdout


def test_a_stopped_run_is_preempted_there_and_its_next_attempt_goes_on_in_it(
    server: Server, made: tuple[Path, Path], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    asked = [*settings("sft", *made, run_dir, max_steps=400), "log.wandb=tests"]
    names = {"NAVARCH_JOB": "night", "NAVARCH_RESUME": "auto"}
    with subprocess.Popen(
        command("sft", asked), env={**environment(), **names, "NAVARCH_ATTEMPT": "1"}, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    (run_id,) = server.runs
    assert (server.runs[run_id].exit_codes, server.runs[run_id].preempting) == ([75], True)
    stopped = max(steps(server.runs[run_id].rows()))
    again = command("sft", [*asked, f"train.max_steps={stopped + 3}"])
    done = subprocess.run(
        again, env={**environment(), **names, "NAVARCH_ATTEMPT": "2"}, cwd=ROOT, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(server.runs) == [run_id], "the second attempt began another run"
    run = server.runs[run_id]
    assert steps(run.rows()) == list(range(1, stopped + 4))
    assert (run.exit_codes, run.name) == ([75, 0], "night-1")
    assert not any(KEY in text for text in server.text)


def test_a_run_that_fails_is_failed_there(server: Server, made: tuple[Path, Path], tmp_path: Path) -> None:
    asked = [*settings("sft", *made, tmp_path / "run", lr=1e30, max_steps=9), "log.wandb=tests"]
    assert train("sft", asked).returncode == 76
    (run,) = server.runs.values()
    assert (run.exit_codes, run.preempting) == ([76], False)


def test_steps_that_run_again_after_a_crash_are_told_once(server: Server, tmp_path: Path) -> None:
    attempt(tmp_path / "run", 0, 7)
    said = attempt(tmp_path / "run", 4, 9)
    assert any("up to step 7 already" in line for line in said), said
    (run,) = server.runs.values()
    assert [(row["_step"], row["train/loss"]) for row in run.rows()] == [
        (n, pytest.approx(1 / n)) for n in range(1, 10)
    ]
    assert attempt(tmp_path / "run", 0, 2) and len(server.runs) == 2, "a run from the beginning is another run"
    assert attempt(tmp_path / "run", 1, 2, project="other") and len(server.runs) == 3, "as is one in another project"


def test_parts_recorded_offline_become_one_run_when_they_are_uploaded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempt(run_dir, 0, 4, 75)
    time.sleep(1.1)  # wandb names recordings by the second
    monkeypatch.delenv("WANDB_MODE")
    said = attempt(run_dir, 2, 6)
    assert any("is only on disk, so this part is too" in line for line in said), said
    assert not server.runs and [steps(part.history) for part in recordings(run_dir)] == [[1, 2, 3, 4], [5, 6]]
    parts = sorted(str(path) for path in run_dir.glob("wandb/*-run-*"))
    uploaded = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--yes", *parts], env=environment(), cwd=tmp_path, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert uploaded.returncode == 0, uploaded.stdout + uploaded.stderr
    (run,) = server.runs.values()
    assert steps(run.rows()) == [1, 2, 3, 4, 5, 6]
    attempt(run_dir, 6, 8)  # the server has all of it now
    assert steps(run.rows()) == list(range(1, 9))


@pytest.mark.parametrize(
    ("mode", "said"),
    [("hangs", "does not answer within 4 s"), ("401", "refuses the key"), ("503", "out of order (answer 503)"),
     ("closed", "can't be reached (Connection refused); WANDB_BASE_URL")],
)  # fmt: skip
def test_a_server_that_is_no_use_delays_nothing_and_costs_nothing(
    mode: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_wandb(mode) as server:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if mode == "closed" else server.url)
        began = time.monotonic()
        lines = attempt(tmp_path / "run", 0, 3)
        assert time.monotonic() - began < 25  # seconds on an idle machine; wandb by itself takes a hundred
    assert len([line for line in lines if said in line]) == 1 and len(lines) == 2, lines
    assert "wandb sync" in lines[-1]
    (found,) = recordings(tmp_path / "run")
    assert steps(found.history) == [1, 2, 3]


def test_a_server_that_dies_during_the_run_does_not_hold_its_end(server: Server, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "run"), "0", "5", "0", "tests", "wait"]
    with subprocess.Popen(
        [sys.executable, "-c", ATTEMPT, *arguments], env=environment(), cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")  # every step waits for a line
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("step 1/"):
                server.mode = "hangs"
                break
        began = time.monotonic()
        rest, _ = process.communicate("\n" * 5, timeout=60)
        assert process.returncode == 0 and time.monotonic() - began < 25, rest
    assert "not everything arrived in 10 s. The rest is on disk; upload it with `wandb sync" in rest, rest
    (found,) = recordings(tmp_path / "run")
    assert steps(found.history) == [1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "run" / STATE_FILE).read_text())["on_server"] is False


def test_half_of_a_setting_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempt(tmp_path / "a", 0, 2, project="") == [
        "WANDB_API_KEY is set but log.wandb names no project: nothing goes to Weights & Biases."
    ]
    monkeypatch.delenv("WANDB_API_KEY")
    (line,) = attempt(tmp_path / "b", 0, 2)
    assert "there is no WANDB_API_KEY: put it into the job's `secrets`, or set WANDB_MODE=offline" in line
    assert attempt(tmp_path / "c", 0, 2, project="") == []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert attempt(tmp_path / "d", 0, 2) == []
    assert not list(tmp_path.glob("[abcd]/wandb*"))


def test_without_the_package_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    telemetry = Telemetry(tmp_path, total_steps=1, every=1, tensorboard=False, wandb="tests")
    telemetry.step(1, {"loss": 1.0})
    telemetry.close()
    assert capsys.readouterr().out.count("the package is not installed (pip install wandb)") == 1


def test_other_ranks_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    telemetry = Telemetry(tmp_path / "run", total_steps=1, every=1, is_main=False, wandb="tests")
    telemetry.step(1, {"loss": 1.0})
    telemetry.close()
    assert not (tmp_path / "run").exists()


def test_what_sounds_secret_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_PASSWORD", "correct horse")
    config = {
        "model": "https://me:pw@hub.example/m", "reward": {"api_key": "x", "headers": ["Bearer correct horse"]},
        "train": {"max_length": 5, "tokens_per_batch": 64, "packing": True}, "empty": None,
    }  # fmt: skip
    assert without_secrets(config) == {
        **config, "model": "https://hub.example/m", "reward": {"api_key": "********", "headers": ["********"]},
    }  # fmt: skip
