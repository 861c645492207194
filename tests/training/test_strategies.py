"""Every strategy trains one tiny model to the same losses on two ranks, resumes exactly, and exports the same names.

Two launches train everything (two gloo ranks with a stand-in accelerator for ColossalAI, then one rank); tests read
what they wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FP32, BF16 = 2e-5, 0.02
"""How far losses and norms may be from one fp32 process: summation order, and bf16's 8 bits over four steps."""

TWO_RANKS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp", "precision": "fp32"},
    "ddp-at-once": {"strategy": "ddp", "precision": "fp32", "accumulate": 1},
    "ddp-bf16": {"strategy": "ddp", "precision": "bf16"},
    "zero1": {"strategy": "colossalai_zero1", "precision": "fp32"},
    "zero1-at-once": {"strategy": "colossalai_zero1", "precision": "fp32", "accumulate": 1},
    "zero1-bf16": {"strategy": "colossalai_zero1", "precision": "bf16", "tie": True},
    "zero2": {"strategy": "colossalai_zero2", "precision": "fp32"},
    "zero2-bf16": {"strategy": "colossalai_zero2", "precision": "bf16"},
    "zero2-cpu": {"strategy": "colossalai_zero2_cpu", "precision": "bf16"},
    "gemini": {"strategy": "colossalai_gemini", "precision": "bf16", "options": {"bucket_mb": 0.0001}},
    "gemini-at-once": {
        "strategy": "colossalai_gemini", "precision": "bf16", "options": {"bucket_mb": 0.0001}, "accumulate": 1,
        "tie": True,
    },
    "gemini-whole": {"strategy": "colossalai_gemini", "precision": "bf16", "options": {"bucket_mb": 64}},
    "gemini-auto": {"strategy": "colossalai_gemini_auto", "precision": "bf16", "options": {"bucket_mb": 0.0001}},
    "gemini-selective": {
        "strategy": "colossalai_gemini", "precision": "bf16", "options": {"bucket_mb": 0.0001},
        "checkpointing": "selective",
    },
    "gemini-compiled": {
        "strategy": "colossalai_gemini", "precision": "bf16", "options": {"bucket_mb": 0.0001}, "compiled": True,
        "checkpointing": "full",
    },
    "3d-zero0": {"strategy": "colossalai_3d", "precision": "fp32", "options": {"zero": 0}},
    "3d-zero1": {"strategy": "colossalai_3d", "precision": "fp32"},
    "3d-zero2-bf16": {"strategy": "colossalai_3d", "precision": "bf16", "options": {"zero": 2}},
    "3d-tp": {"strategy": "colossalai_3d", "precision": "fp32", "options": {"tp": 2}, "tie": True},
    "3d-tp-bf16": {"strategy": "colossalai_3d", "precision": "bf16", "options": {"tp": 2}},
    "3d-sp": {"strategy": "colossalai_3d", "precision": "fp32", "options": {"tp": 2, "sp": "split_gather"}},
    "3d-pp": {"strategy": "colossalai_3d", "precision": "fp32", "options": {"pp": 2}},
    "3d-pp-tied-bf16": {
        "strategy": "colossalai_3d", "precision": "bf16", "options": {"pp": 2, "microbatches": 4}, "accumulate": 1,
        "tie": True,
    },
}  # fmt: skip
ONE_RANK: dict[str, dict[str, Any]] = {
    "naive": {"strategy": "naive", "precision": "fp32"},
    "naive-tied": {"strategy": "naive", "precision": "fp32", "tie": True},
    "naive-bf16": {"strategy": "naive", "precision": "bf16"},
    "zero2-alone": {"strategy": "colossalai_zero2", "precision": "bf16"},
    "gemini-alone": {"strategy": "colossalai_gemini", "precision": "bf16"},
}
ELSEWHERE = {
    "zero2 on one rank": ("zero2", {"strategy": "colossalai_zero2", "precision": "fp32"}),
    "zero2 as naive": ("zero2", {"strategy": "naive", "precision": "fp32"}),
    "ddp as zero1": ("ddp", {"strategy": "colossalai_zero1", "precision": "fp32"}),
    "gemini as naive": ("gemini", {"strategy": "naive", "precision": "bf16"}),
    "zero2-bf16 as gemini": ("zero2-bf16", {"strategy": "colossalai_gemini", "precision": "bf16"}),
}
"""Checkpoints of two ranks that one rank goes on with, under the same strategy or another."""

pytestmark = pytest.mark.timeout(1800)
"""The first test waits for the launches of all."""


def launch(plan: list[dict[str, Any]], ranks: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What each case of the plan wrote, by id."""
    source, out = folder / f"plan-{ranks}.json", folder / f"out-{ranks}.jsonl"
    source.write_text(json.dumps(plan))
    worker = ["-m", "tests.training.strategy_worker", str(source), str(out)]
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *(start if ranks > 1 else []), *worker],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    lines = out.read_text().splitlines() if out.exists() else []
    results = {entry["id"]: entry for entry in map(json.loads, lines)}
    failed = [entry for entry in results.values() if "error" in entry]
    assert done.returncode == 0 and not failed, f"{failed}\n{done.stderr[-6000:]}"
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("strategies")
    two = [{"id": name, "save": str(folder / name), **case} for name, case in TWO_RANKS.items()]
    one = [{"id": name, "save": str(folder / name), **case} for name, case in ONE_RANK.items()]
    moved = [{"id": name, "load": str(folder / source), **case} for name, (source, case) in ELSEWHERE.items()]
    return launch(two, 2, folder) | launch(one + moved, 1, folder)


def near(seen: list[list[float]], expected: list[list[float]], allowed: float) -> None:
    for step, (got, want) in enumerate(zip(seen, expected, strict=True)):
        assert got == pytest.approx(want, rel=allowed), f"step {step}: loss and norm {got}, expected {want}"


@pytest.mark.parametrize("name", [*TWO_RANKS, *ONE_RANK])
def test_same_losses_and_norms_as_one_plain_process(name: str, results: dict[str, dict[str, Any]]) -> None:
    case = {**TWO_RANKS, **ONE_RANK}[name]
    plain = results["naive-tied" if case.get("tie") else "naive"]["trained"]
    assert plain[-1][0] < plain[0][0] - 0.3
    seen = results[name]["trained"]
    if case["precision"] == "fp32":
        near(seen, plain, FP32)
    else:
        near([[loss] for loss, _ in seen], [[loss] for loss, _ in plain], BF16 / 4)
        near([[norm] for _, norm in seen], [[norm] for _, norm in plain], BF16 * 2)


@pytest.mark.parametrize("name", [*TWO_RANKS, *ONE_RANK])
def test_goes_on_bit_for_bit_after_save_and_load(name: str, results: dict[str, dict[str, Any]]) -> None:
    result = results[name]
    assert result["same_weights"]
    assert result["random"][0] == result["random"][1]
    assert result["resumed"] == result["went_on"]
    assert result["same_masters"]


@pytest.mark.parametrize("name", [*TWO_RANKS, *ONE_RANK])
def test_exports_the_names_and_shapes_of_the_model(name: str, results: dict[str, dict[str, Any]]) -> None:
    assert results[name]["names"] == results["naive"]["names"]
    assert results[name]["shapes"] == results["naive"]["shapes"]


@pytest.mark.parametrize("name", [n for n in [*TWO_RANKS, *ONE_RANK] if not n.startswith("3d")])
def test_generation_sees_the_trained_weights(name: str, results: dict[str, dict[str, Any]]) -> None:
    whole, sharded = results[name]["generation"]
    assert whole == pytest.approx(sharded, rel=1e-6)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_number_of_ranks_or_strategy_goes_on(name: str, results: dict[str, dict[str, Any]]) -> None:
    source, case = ELSEWHERE[name]
    assert results[name]["steps"] == 4
    near(results[name]["went_on"], results[source]["went_on"], FP32 if case["precision"] == "fp32" else BF16)
