"""Trains the real SmolLM2-135M-Instruct on real data: SFT on instructions, then RM and DPO on pairs (4 folds).

Prints one JSON line per run with held-out figures before and after; the events of each run go to --out for curves.

    python -m tests.bench.gpu_real --model DIR --data DIR_WITH_DEMO_FILES --out DIR
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Runs = dict[str, list[str]]


def train(stage: str, run_dir: Path, limit: float, *overrides: str) -> dict[str, Any]:
    """One navarch-train run in a process of its own; its first and last held-out figures."""
    started = time.monotonic()
    command = [sys.executable, "-m", "training.cli", stage, f"run_dir={run_dir}", "strategy=naive", *overrides]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {limit:g} s"}
    if done.returncode:
        return {"error": (done.stderr or done.stdout)[-1200:]}
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    held_out = [event["values"] for event in events if event["event"] == "eval"]
    steps = [event for event in events if event["event"] == "metrics"]
    return {
        "steps": steps[-1]["step"], "first": held_out[0], "last": held_out[-1],
        "train_loss": [steps[0]["values"]["loss"], steps[-1]["values"]["loss"]],
        "tokens_per_second": steps[-1]["values"].get("tokens_per_second"),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def say(name: str, result: dict[str, Any]) -> None:
    print(json.dumps({"run": name, **result}), flush=True)


COMMON = ["eval.at_start=true", "log.every=1", "log.tensorboard=false", "train.compile=off"]
REWARD: Runs = {
    "head": [
        "reward.trunk=frozen",
        "train.lr=1e-3",
        "train.epochs=10",
        "train.tokens_per_batch=16384",
        "eval.every=42",
        "checkpoint.keep_best=false",
    ],
    "full": ["train.lr=5e-6", "train.epochs=3", "train.tokens_per_batch=8192"],
    "lora": ["lora.rank=8", "train.lr=2e-4", "train.epochs=2", "train.tokens_per_batch=8192"],
}
"""Settings of the reward model: 300 pairs are few, so what matters is how little is fitted."""
PREFERENCE: Runs = {
    "full": [
        "train.lr=2e-5",
        "train.epochs=1",
        "train.tokens_per_batch=4096",
        "eval.every=20",
        "checkpoint.keep_best=false",
    ],
}
"""One epoch of some 60 steps; with lr 5e-6 they move nothing, and later epochs learn the pairs by heart."""


def sft(model: str, data: Path, out: Path, limit: float) -> None:
    result = train(
        "sft", out / "sft", limit, f"model={model}", f"data.sources=[{data / 'alpaca_en_demo.json'}]",
        "data.eval_fraction=0.1", "train.epochs=3", "train.lr=3e-5", "eval.every=10", "checkpoint.keep_best=false",
        "train.max_length=1024", "train.tokens_per_batch=16384", *COMMON,
    )  # fmt: skip
    say("sft alpaca_en_demo", result)


def folds(stage: str, data: Path, out: Path, limit: float, count: int, parallel: int, runs: Runs) -> None:
    """Held-out figures on every pair of dpo_en_demo, each of a model that didn't see it; `runs` are named overrides."""
    pairs = json.loads((data / "dpo_en_demo.json").read_text())
    folder = Path(tempfile.mkdtemp())
    jobs = []
    for fold in range(count):
        learn = [row for number, row in enumerate(pairs) if number % count != fold]
        held = [row for number, row in enumerate(pairs) if number % count == fold]
        for name, rows in (("learn", learn), ("held", held)):
            (folder / f"{name}{fold}.json").write_text(json.dumps(rows))
        jobs += [(setting, fold, len(held)) for setting in runs]

    def one(job: tuple[str, int, int]) -> dict[str, Any]:
        setting, fold, _ = job
        return train(
            stage, out / f"{stage}-{setting}-{fold}", limit, f"data.sources=[{folder / f'learn{fold}.json'}]",
            f"data.eval=[{folder / f'held{fold}.json'}]", "train.max_length=2048", *runs[setting], *COMMON,
        )  # fmt: skip

    with ThreadPoolExecutor(parallel) as pool:
        results = list(pool.map(one, jobs))
    for (setting, fold, _), result in zip(jobs, results, strict=True):
        say(f"{stage} dpo_en_demo {setting}, fold {fold}", result)
    for setting in runs:
        scored = [
            (result["last"], held)
            for (name, _, held), result in zip(jobs, results, strict=True)
            if name == setting and "error" not in result
        ]
        if scored:
            total = sum(held for _, held in scored)
            mean = {key: sum(last[key] * held for last, held in scored) / total for key in scored[0][0]}
            error = (mean["eval/accuracy"] * (1 - mean["eval/accuracy"]) / total) ** 0.5
            say(f"{stage} {setting}: all folds", {**mean, "standard_error": error, "pairs": total})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--limit", type=float, default=120, help="seconds for one run")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--parallel", type=int, default=6, help="folds trained at the same time")
    parser.add_argument("--settings", nargs="*", default=["head"], choices=list(REWARD), help="of the reward model")
    parser.add_argument("--only", nargs="*", default=["sft", "rm", "dpo"])
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp())
    if "sft" in arguments.only:
        sft(arguments.model, arguments.data, out, arguments.limit)
    pairs = arguments.data, out, arguments.limit, arguments.folds, arguments.parallel
    if "rm" in arguments.only:
        model = [f"model={arguments.model}", "reward.head_init=zero"]
        folds("rm", *pairs, {name: [*model, *REWARD[name]] for name in arguments.settings})
    if "dpo" in arguments.only:
        folds("dpo", *pairs, {name: [f"model={arguments.model}", *chosen] for name, chosen in PREFERENCE.items()})


if __name__ == "__main__":
    main()
