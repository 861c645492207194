"""Four steps of every stage under every strategy give the recorded losses, on one rank and on two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.making import ROOT, environment, make_model, make_rows, settings

pytestmark = pytest.mark.timeout(1800)
"""The first test waits for three launches, of 30 runs in all; a busy machine takes its time for them."""

GOLDEN = {
    "pt": [5.94158, 5.89621, 5.78508, 5.60268],
    "sft": [5.93196, 5.87932, 5.70434, 5.54221],
    "rm": [0.654131, 0.173587, 0.0181736, 0.000300501],
    "dpo": [0.693147, 0.578174, 0.541795, 0.462649],
}
TOLERANCE = {"fp32": {"rel": 1e-3, "abs": 1e-5}, "bf16": {"rel": 2e-2, "abs": 2e-3}}
STRATEGIES = {
    "ddp": ("fp32", []),
    "colossalai_zero1": ("fp32", []),
    "colossalai_zero2": ("bf16", []),
    "colossalai_zero2_cpu": ("bf16", []),
    "colossalai_gemini": ("bf16", []),
    "colossalai_gemini_auto": ("bf16", []),
    "colossalai_3d": ("fp32", ["strategy.tp=2"]),
}
STAGES = ("pt", "sft", "rm", "dpo")
TENSOR_PARALLEL = ("pt", "sft")
"""Stages that colossalai_3d runs here: dpo is refused, its log-probs need the whole head."""


def plan(folder: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    model = make_model(folder / "model")
    cases = []
    for name in names:
        precision, extra = STRATEGIES.get(name, ("fp32", []))
        for stage in TENSOR_PARALLEL if name == "colossalai_3d" else STAGES:
            rows = make_rows(folder / f"{stage}.jsonl", stage, 24)
            shares = 1 if name in ("naive", "colossalai_3d") else 2
            sizes = {"packing": False, "batch_size": 8 // shares, "max_steps": 4, "lr": 3e-3, "precision": precision}
            options = settings(stage, model, rows, folder / f"{name}-{stage}", **sizes)
            options = [o for o in options if not o.startswith(("train.tokens_per_batch", "strategy="))]
            overrides = [*options, f"strategy={{name: {name}}}", *extra]
            cases.append({"id": f"{name} {stage}", "stage": stage, "overrides": overrides})
    return cases


def run(folder: Path, ranks: int, names: tuple[str, ...]) -> dict[str, Any]:
    """One launch: its ranks run all stages under `names`, one after the other."""
    source, out = folder / "plan.json", folder / "out.json"
    source.write_text(json.dumps(plan(folder, names)))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.training.golden_worker", str(source), str(out)], env=environment(),
        cwd=ROOT, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert out.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    results: dict[str, Any] = json.loads(out.read_text())
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # colossalai_3d makes process groups of its own for every run: it has ranks of its own.
    shared = tuple(name for name in STRATEGIES if name != "colossalai_3d")
    launches = {"one": (1, ("naive",)), "two": (2, shared), "tensor-parallel": (2, ("colossalai_3d",))}
    found: dict[str, Any] = {}
    for folder, (ranks, names) in launches.items():
        found |= run(tmp_path_factory.mktemp(folder), ranks, names)
    return found


CASES = [(name, stage) for name in ("naive", *STRATEGIES) for stage in STAGES]
CASES = [case for case in CASES if case[0] != "colossalai_3d" or case[1] in TENSOR_PARALLEL]


@pytest.mark.parametrize(("strategy", "stage"), CASES)
def test_losses_are_the_recorded_ones(strategy: str, stage: str, results: dict[str, Any]) -> None:
    precision = STRATEGIES[strategy][0] if strategy in STRATEGIES else "fp32"
    assert results[f"{strategy} {stage}"] == pytest.approx(GOLDEN[stage], **TOLERANCE[precision])
