"""Trains the real SmolLM2-135M-Instruct on real data: SFT on instructions, then RM (4 folds) and DPO on pairs.

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
from pathlib import Path
from typing import Any


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--limit", type=float, default=120, help="seconds for one run")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--rm-lr", default="2e-5")
    parser.add_argument("--rm-epochs", default="2")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp())
    common = ["eval.at_start=true", "log.every=1", "log.tensorboard=false"]
    packed = ["train.max_length=1024", "train.tokens_per_batch=16384"]

    alpaca = arguments.data / "alpaca_en_demo.json"
    sft = train(
        "sft", out / "sft", arguments.limit, f"model={arguments.model}", f"data.sources=[{alpaca}]",
        "data.eval_fraction=0.1", "train.epochs=3", "train.lr=3e-5", "eval.every=10", "checkpoint.keep_best=false",
        *packed, *common,
    )  # fmt: skip
    say("sft alpaca_en_demo", sft)
    base = str(out / "sft" / "model") if "error" not in sft else arguments.model

    pairs = json.loads((arguments.data / "dpo_en_demo.json").read_text())
    folder = Path(tempfile.mkdtemp())
    accuracies = []
    for fold in range(arguments.folds):
        learn = [row for number, row in enumerate(pairs) if number % arguments.folds != fold]
        held = [row for number, row in enumerate(pairs) if number % arguments.folds == fold]
        files = folder / f"learn{fold}.json", folder / f"held{fold}.json"
        for path, rows in zip(files, (learn, held), strict=True):
            path.write_text(json.dumps(rows))
        result = train(
            "rm", out / f"rm{fold}", arguments.limit, f"model={base}", f"data.sources=[{files[0]}]",
            f"data.eval=[{files[1]}]", f"train.epochs={arguments.rm_epochs}", f"train.lr={arguments.rm_lr}", *packed,
            *common,
        )  # fmt: skip
        say(f"rm dpo_en_demo fold {fold}", result)
        if "error" not in result:
            accuracies.append((result["last"]["eval/accuracy"], len(held)))
    if accuracies:
        total = sum(count for _, count in accuracies)
        mean = sum(accuracy * count for accuracy, count in accuracies) / total
        error = (mean * (1 - mean) / total) ** 0.5
        say("rm held-out accuracy over all folds", {"accuracy": mean, "standard_error": error, "pairs": total})
    if accuracies:
        result = train(
            "dpo", out / "dpo", arguments.limit, f"model={base}", f"data.sources=[{folder / 'learn0.json'}]",
            f"data.eval=[{folder / 'held0.json'}]", "train.epochs=2", "train.lr=5e-6", *packed, *common,
        )  # fmt: skip
        say("dpo dpo_en_demo fold 0", result)


if __name__ == "__main__":
    main()
