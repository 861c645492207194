"""Makes what a stage needs on disk (a tiny model with a tokenizer, rows) and runs navarch-train in its own process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.training.tiny import tiny_config

ROOT = Path(__file__).parents[2]
_WORDS = "red green blue seven eight stone river cloud small large counts sings walks under over bright"
WORDS = _WORDS.split()


def make_tokenizer(folder: Path, size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about `size` tokens with pad and end tokens and no chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return fast


def make_model(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A tiny random model with its tokenizer, as a Hugging Face folder."""
    torch.manual_seed(0)
    config = tiny_config(architecture, **{"vocab_size": 384, "max_position_embeddings": 512, **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_rows(path: Path, stage: str, count: int = 32, seed: int = 0) -> Path:
    """Rows of unequal lengths in the stage's natural format."""
    draw = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    rows: list[dict[str, Any]] = []
    for number in range(count):
        if stage == "pt":
            rows.append({"text": text(3, 20)})
        elif stage == "sft":
            rows.append({"instruction": f"{text(1, 6)} {number}", "input": "", "output": text(1, 12)})
        else:
            good = "bright " * draw.randint(2, 5) + text(1, 3)
            bad = "stone " * draw.randint(1, 6) + text(1, 3)
            rows.append({"prompt": f"{text(1, 5)} {number}", "chosen": good, "rejected": bad, "response": ""})
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def settings(stage: str, model: Path, rows: Path, run_dir: Path, **train: Any) -> list[str]:
    """Overrides for a short run on the CPU."""
    values = {"max_length": 96, "tokens_per_batch": 256, "lr": 1e-2, "max_steps": 6, "lr_schedule": "constant",
              "warmup": 0} | train  # fmt: skip
    return [
        f"model={model}", f"data.sources=[{rows}]", f"data.cache_dir={rows.parent / 'cache'}", f"run_dir={run_dir}",
        "strategy=naive", "log.every=1", "log.tensorboard=false", *(f"train.{k}={v}" for k, v in values.items()),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
            "NAVARCH_EVENTS": "1"}  # fmt: skip


def command(stage: str, overrides: Sequence[str], ranks: int = 1) -> list[str]:
    """The command line, under torchrun when there are several ranks."""
    program = ["-m", "training.cli", stage, *overrides]
    if ranks == 1:
        return [sys.executable, *program]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *program]


def train(
    stage: str, overrides: Sequence[str], *, ranks: int = 1, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run navarch-train to its end."""
    return subprocess.run(
        command(stage, overrides, ranks), env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


def events(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [event for event in found if kind in (None, event["event"])]


def losses(run_dir: Path) -> list[float]:
    return [event["values"]["loss"] for event in events(run_dir, "metrics")]
