"""PPO and GRPO on two processes: DDP walks the same path as one process, and ZeRO-2 and Gemini stay beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_ppo_stage import events, make_model, metrics, settings, write_files

CONFIG: dict[str, Any] = {
    # one minibatch a rollout: then which rank holds which completion can't matter
    "train": {"max_steps": 4, "rollout_batch_size": 8, "minibatch_size": 8, "lr": 3e-3, "ppo_epochs": 2, "epochs": 10},
    "critic": {"lr": 3e-3},
    "reward": {"normalize": "rollout"},
}
COMPARED = ("reward", "shaped_reward", "kl", "policy_loss", "value_loss", "entropy", "value", "response_length")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_model(folder / "actor")
    write_files(folder)
    return folder


def launch(place: Path, strategy: str, processes: int, **changes: Any) -> list[dict[str, Any]]:
    run_dir = place / f"{strategy}-{processes}"
    common = {"train": CONFIG["train"]} if changes.get("type") == "grpo" else CONFIG
    tree = settings(place / "actor", place, **{**common, "strategy": strategy, "run_dir": str(run_dir), **changes})
    config = place / f"{strategy}-{processes}.json"
    config.write_text(json.dumps(tree))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__,
         str(config)],
        timeout=120, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return events(Path(tree["run_dir"]))


@pytest.fixture(scope="module")
def alone(place: Path) -> list[dict[str, Any]]:
    return launch(place, "naive", 1)


def test_two_ranks_walk_the_path_of_one(place: Path, alone: list[dict[str, Any]]) -> None:
    together = launch(place, "ddp", 2)
    for name in COMPARED:
        assert metrics(together, name) == pytest.approx(metrics(alone, name), rel=2e-3, abs=2e-4), name


def test_two_ranks_of_groups_in_micro_batches_walk_the_path_of_one(place: Path) -> None:
    changes: dict[str, Any] = {
        "type": "grpo", "train": {**CONFIG["train"], "samples_per_prompt": 2, "max_steps": 3},
        "grpo": {"loss_type": "grpo", "importance_sampling_level": "sequence"}, "kl": {"coef": 0.1},
    }  # fmt: skip
    alone = launch(place, "naive", 1, run_dir=str(place / "groups"), **changes)
    changes["train"]["micro_batch_tokens"] = 12
    together = launch(place, "ddp", 2, run_dir=str(place / "groups-2"), **changes)
    for name in ("reward", "kl", "policy_loss", "entropy", "clip_fraction", "actor_grad_norm"):
        assert metrics(together, name) == pytest.approx(metrics(alone, name), rel=2e-3, abs=2e-4), name
    assert abs(metrics(alone, "kl")[-1]) > 1e-4  # it moved


@pytest.mark.parametrize("strategy", ["colossalai_zero2", "colossalai_gemini"])
def test_sharded_strategies_stay_beside_it(place: Path, alone: list[dict[str, Any]], strategy: str) -> None:
    precision = "bf16" if strategy == "colossalai_gemini" else "fp32"
    sharded = launch(place, strategy, 2, train={**CONFIG["train"], "precision": precision, "logprob_tolerance": 0.1})
    wide = 0.02 if precision == "bf16" else 2e-3
    assert metrics(sharded, "entropy")[0] == pytest.approx(metrics(alone, "entropy")[0], rel=wide)
    assert metrics(sharded, "kl")[0] == pytest.approx(0, abs=wide)
    assert abs(metrics(sharded, "kl")[-1]) > 1e-3  # it moved
    if precision == "fp32":
        for name in COMPARED:
            assert metrics(sharded, name) == pytest.approx(metrics(alone, name), rel=2e-2, abs=2e-3), name
    assert (place / f"{strategy}-2" / "model" / "model.safetensors").exists()


def worker(path: Path) -> None:
    """One rank of the runs above."""
    tree = json.loads(path.read_text())
    if tree["strategy"].startswith("colossalai"):
        from tests.training import colossal_cpu_sim

        colossal_cpu_sim.install()
    from training.config.load import load_config
    from training.stages import grpo, ppo
    from training.strategies.world import leave

    stage = tree.get("type", "ppo")
    (grpo if stage == "grpo" else ppo).run(load_config(stage, tree))
    leave(0)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
