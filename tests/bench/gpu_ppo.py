"""Measures PPO through its stage: samples per second, memory and time by phase; or `--learn`, a reward curve.

    python tests/bench/gpu_ppo.py --shape 135m            # actor, reference, critic, reward model of one shape
    python tests/bench/gpu_ppo.py --shape 1.1b --micro-tokens 8192
    python tests/bench/gpu_ppo.py --learn --model /tmp/models/smollm2-135m --steps 60
    python tests/bench/gpu_ppo.py --shape tiny --prompts 8 --new-tokens 8 --steps 3     # a CPU will do

The workload is 128 prompts a step (mean 83 tokens), 128 new tokens each (no stop token), one PPO epoch. Every result is
one JSON line on stdout; the stage's own log goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

from training.config.load import load_config
from training.errors import Stopped
from training.loop.run import open_run
from training.models.load import from_config
from training.stages.ppo import PPO

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "1.1b": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
             "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False},
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
REWARD = Path(__file__).resolve().parents[2] / "jobs" / "examples" / "rewards" / "letter.py"


def tell(**values: Any) -> None:
    print(json.dumps(values), file=sys.__stdout__, flush=True)


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token per word `w17`: text of a wanted number of tokens is easily made."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_models(folder: Path, shape: str) -> tuple[Path, Path]:
    """Randomly initialised actor and reward model of one shape, as folders."""
    actor, reward = folder / "actor", folder / "reward"
    tokenizer = make_tokenizer(SHAPES[shape]["vocab_size"])
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, eos_token_id=1, pad_token_id=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        from_config(config, dtype=torch.bfloat16).save_pretrained(actor)
        config.num_labels = 1
        scorer = AutoModelForSequenceClassification.from_config(config, torch_dtype=torch.bfloat16)
        scorer.save_pretrained(reward)
        del scorer
    for path in (actor, reward):
        tokenizer.save_pretrained(path)
    if device == "cuda":
        torch.cuda.empty_cache()
    return actor, reward


def make_prompts(path: Path, count: int, words: int, mean: int) -> None:
    """`count` prompts of 8 to 4 × mean tokens, `mean` on average."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(mean) - 0.18, 0.6, count), 8, 4 * mean)
    lengths = np.maximum(1, np.round(lengths * mean / lengths.mean())).astype(int)
    with path.open("w") as file:
        for length in lengths:
            text = " ".join(f"w{i}" for i in generator.integers(3, words, length))
            file.write(json.dumps({"prompt": text}) + "\n")


def drive(tree: dict[str, Any], on_step: Any) -> PPO:
    """The stage as `training.stages.ppo.run` drives it, with a look at each step's figures."""
    with open_run("ppo", load_config("ppo", tree)) as surroundings:
        ppo = PPO(surroundings)
        report = ppo.report

        def look(*arguments: Any) -> None:
            report(*arguments)
            on_step(ppo.step, ppo.figures)

        ppo.report = look  # type: ignore[method-assign]
        ppo.fit()
        return ppo


def speed(args: argparse.Namespace, folder: Path) -> None:
    started = time.perf_counter()
    actor, reward = make_models(folder, args.shape)
    prompts = folder / "prompts.jsonl"
    make_prompts(prompts, args.prompts * 4, SHAPES[args.shape]["vocab_size"], args.prompt_tokens)
    figures: list[dict[str, float]] = []
    drive(
        {
            "model": str(actor), "data": {"sources": [{"path": str(prompts), "format": "prompt"}]},
            "strategy": args.strategy, "run_dir": str(folder / "run"), "reward": {"model": str(reward)},
            "generation": {"max_new_tokens": args.new_tokens, "stop_ids": []},
            "log": {"every": 1, "tensorboard": False},
            "train": {
                "max_steps": args.steps, "epochs": 1000, "rollout_batch_size": args.prompts, "sample_every": 0,
                "minibatch_size": args.minibatch or args.prompts, "micro_batch_tokens": args.micro_tokens or None,
                "score_tokens": args.score_tokens, "rollout_logprobs": args.rollout_logprobs, "compile": args.compile,
                "activation_checkpointing": args.checkpointing,
            },
        },
        lambda step, seen: (figures.append(dict(seen)), tell(step=step, **brief(seen))),
    )  # fmt: skip
    steady = figures[len(figures) // 2 :]  # by then everything is captured and compiled
    middle = {name: statistics.median(each[name] for each in steady) for name in brief(figures[-1])}
    tell(
        result="ppo_speed", shape=args.shape, prompts=args.prompts, new_tokens=args.new_tokens,
        minibatch=args.minibatch or args.prompts, micro_tokens=args.micro_tokens, compile=args.compile,
        **middle, total_seconds=round(time.perf_counter() - started, 1), device=device_name(),
    )  # fmt: skip


def brief(seen: dict[str, float]) -> dict[str, float]:
    names = ("samples_per_second", "generate_seconds", "score_seconds", "train_seconds", "step_seconds", "memory_gib",
             "reward", "kl", "entropy", "ratio_max", "clip_fraction", "response_length")  # fmt: skip
    return {name: float(f"{seen[name]:.5g}") for name in names if name in seen}


def learn(args: argparse.Namespace, folder: Path) -> None:
    prompts = folder / "prompts.jsonl"
    if args.data:
        source = {"path": args.data}
    else:
        topics = ("the sea", "a friend", "bread", "winter", "a train", "music", "a garden", "money", "sleep", "a city")
        asks = ("Write a sentence about {}.", "Tell me something about {}.", "Why do people like {}?", "Describe {}.")
        rows = [{"prompt": ask.format(topic)} for topic in topics for ask in asks]
        prompts.write_text("\n".join(map(json.dumps, rows)) + "\n")
        source = {"path": str(prompts), "format": "prompt"}
    curve: list[float] = []
    run_dir = args.out or folder / "run"
    stop_at = time.monotonic() + args.seconds - 12

    def look(step: int, seen: dict[str, float]) -> None:
        curve.append(seen["reward"])
        tell(step=step, **brief(seen))
        if time.monotonic() > stop_at:
            os.kill(os.getpid(), signal.SIGTERM)  # as from outside: the stage stops at the next step

    tree = {
        "model": args.model, "data": {"sources": [source]}, "strategy": args.strategy, "run_dir": str(run_dir),
        "reward": {"function": f"{REWARD}:fraction", "arguments": {"letter": args.letter}, "normalize": "running"},
        "generation": {"max_new_tokens": args.new_tokens}, "kl": {"coef": args.kl},
        "critic": {"lr": 2e-5}, "log": {"every": 1, "tensorboard": False},
        "train": {
            "max_steps": args.steps, "epochs": 1000, "rollout_batch_size": args.prompts, "lr": args.lr,
            "minibatch_size": args.minibatch or args.prompts, "micro_batch_tokens": args.micro_tokens or None,
            "ppo_epochs": 2, "lr_schedule": "constant", "compile": "off", "max_prompt_length": 256,
            "sample_every": max(args.steps // 4, 1), "sample_rows": 2, "long_prompts": "drop",
        },
    }  # fmt: skip
    with contextlib.suppress(Stopped):
        drive(tree, look)
    first, last = (statistics.mean(part) for part in (curve[:3], curve[-3:]))
    samples = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    tell(result="ppo_learn", model=args.model, letter=args.letter, steps=len(curve), reward_first=first,
         reward_last=last, curve=[round(r, 4) for r in curve], device=device_name(),
         samples=[{k: row[k] for k in ("step", "prompt", "completion", "score")} for row in samples])  # fmt: skip


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--model", default="/tmp/models/smollm2-135m")
    parser.add_argument("--data", default="", help="prompts of --learn; default: forty short requests")
    parser.add_argument("--letter", default="e")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--kl", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=None, help="of --learn: keeps events.jsonl and samples.jsonl here")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=83)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--minibatch", type=int, default=0)
    parser.add_argument("--micro-tokens", type=int, default=0, help="0: what the stage chooses")
    parser.add_argument("--score-tokens", type=int, default=32768)
    parser.add_argument("--rollout-logprobs", default="auto")
    parser.add_argument("--checkpointing", default="off")
    parser.add_argument("--compile", default="on" if torch.cuda.is_available() else "off")
    parser.add_argument("--strategy", default="naive")
    parser.add_argument("--seconds", type=int, default=240, help="give up after this long")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: os._exit(124))
    signal.alarm(args.seconds)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        (learn if args.learn else speed)(args, Path(folder))


if __name__ == "__main__":
    main()
