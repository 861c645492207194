"""Interrupted runs go on as if nothing had happened; signals, dead ranks, full disks and NaN end with their word."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.making import ROOT, command, environment, events, losses, make_model, make_rows, settings, train
from training import cli

pytestmark = pytest.mark.timeout(900)
"""Every test starts training processes, several one after the other."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    return make_model(folder / "model"), make_rows(folder / "rows.jsonl", "sft", 40)


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = (load_file(path / "model" / "model.safetensors") for path in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(("ranks", "extra"), [(1, ["lora.rank=4", "lora.dropout=0.1"]), (2, ["strategy=ddp"])])
def test_n_plus_m_steps_equal_n_save_reload_m_bit_for_bit(
    ranks: int, extra: list[str], made: tuple[Path, Path], tmp_path: Path
) -> None:
    """Dropout (LoRA's) and NEFTune's noise draw random numbers, so generators must be restored too."""
    options = [*settings("sft", *made, tmp_path / "whole", max_steps=6, neftune=5, tokens_per_batch=128), *extra]
    done = train("sft", [*options, "checkpoint.every=3", "checkpoint.keep=9"], ranks=ranks)
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-3", tmp_path / "half" / "checkpoints" / "step-3")
    again = train("sft", [*options, f"run_dir={tmp_path / 'half'}", "resume=auto"], ranks=ranks)
    assert again.returncode == 0, again.stderr
    assert "resumed from" in again.stdout and "at step 3 of 6" in again.stdout
    assert losses(tmp_path / "half") == losses(tmp_path / "whole")[3:]
    assert_same_weights(tmp_path / "whole", tmp_path / "half")


def started(options: list[str], ranks: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("sft", options, ranks), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], step: int) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(f"step {step}/"):
            return seen
    raise AssertionError(f"ended before step {step}:\n{seen}")


def test_sigterm_saves_a_checkpoint_and_the_run_goes_on_from_it(made: tuple[Path, Path], tmp_path: Path) -> None:
    options = settings("sft", *made, tmp_path / "run", max_steps=4000, tokens_per_batch=128)
    process = started(options)
    wait_for_step(process, 5)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 75, rest
    error = events(tmp_path / "run", "error")[-1]
    assert error["kind"] == "stopped" and "--resume auto" in error["message"]
    stopped_at = int(next((tmp_path / "run" / "checkpoints").glob("step-*")).name.removeprefix("step-"))
    assert cli.main(["sft", *options, "--resume", "auto", f"train.max_steps={stopped_at + 2}"]) == 0
    assert events(tmp_path / "run", "metrics")[-1]["step"] == stopped_at + 2


def test_a_killed_rank_is_named_and_the_other_ends_within_30_seconds(made: tuple[Path, Path], tmp_path: Path) -> None:
    options = [*settings("sft", *made, tmp_path / "run", max_steps=100_000, tokens_per_batch=128), "strategy=ddp"]
    process = started(options, ranks=2)
    wait_for_step(process, 3)
    children = (Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()).split()
    ranks = {}
    for pid in children:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks.update({int(v.split(b"=")[1]): int(pid) for v in variables if v.startswith(b"RANK=")})
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    rest, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode != 0
    error = events(tmp_path / "run", "error")[-1]
    assert error["kind"] == "rank_failed" and "rank 1 died" in error["message"], rest


def test_a_loss_that_is_no_number_stops_with_the_rows_and_the_last_good_checkpoint(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = settings("sft", *made, tmp_path / "run", lr=1e38, max_steps=20, max_grad_norm=0)
    assert cli.main(["sft", *options, "checkpoint.every=1"]) == 76
    error = events(tmp_path / "run", "error")[-1]
    assert error["kind"] == "nan_loss"
    assert "rows.jsonl:" in error["message"] and "checkpoints/step-" in error["message"]


def test_a_full_disk_leaves_the_checkpoint_before(made: tuple[Path, Path], tmp_path: Path) -> None:
    """On a real file system of 3 MB, in a mount namespace of its own."""
    options = settings("sft", *made, tmp_path / "disk" / "run", max_steps=40)
    program = " ".join(command("sft", [*options, "checkpoint.every=2", "checkpoint.keep=50"]))
    (tmp_path / "disk").mkdir()
    (tmp_path / "kept").mkdir()
    script = (
        f"mount -t tmpfs -o size=3m tmpfs {tmp_path}/disk && {program}; code=$?; "
        f"cp -r {tmp_path}/disk/run/checkpoints {tmp_path}/kept; exit $code"
    )
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    done = subprocess.run(
        [*unshare, "bash", "-c", script], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert done.returncode == 74, done.stdout + done.stderr
    assert '"kind":"no_space"' in done.stdout
    kept = tmp_path / "kept" / "checkpoints"
    names = sorted(path.name for path in kept.iterdir())
    assert names and all(name.startswith("step-") for name in names)
    newest = max(kept.iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    shutil.rmtree(tmp_path / "disk")
    again = cli.main(["sft", *options, f"resume={newest}", f"run_dir={tmp_path / 'next'}"])
    assert again == 0
