"""Measures the time that GRPO takes to a reward, here and in TRL: the same prompts, rule, model, batch and switches.

    python -m tests.bench.gpu_grpo navarch --model DIR --out navarch.jsonl          # in Navarch's environment
    python -m tests.bench.gpu_grpo trl --model DIR --out trl.jsonl                  # in an environment with TRL
    python -m tests.bench.gpu_grpo compare navarch.jsonl trl.jsonl --target 0.8
    python -m tests.bench.gpu_grpo navarch --cpu --out navarch.jsonl                # a tiny random model; trl alike

Prompts are 2,000 sums of two numbers up to 20; the reward is 1 where the answer's last number is right. Each step is
one rollout of `--rollout` answers in groups of `--group` and one update on all of them: token-level loss (DAPO),
deviations of the group, clip 0.2 to 0.28, no KL, constant rate, temperature 1. The clock starts when the first rollout
does, and a step is told when its update is done. One JSON line a step: trainer, step, seconds, reward (of its answers).

TRL generates through transformers, which is its default, or with `--vllm` through vLLM beside the trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.data.synthetic import synthesize
from training.ppo.rules import right_number

PROMPTS = 2000
AROUND = 5
"""Steps over which a reward is averaged before it is compared with the target."""
TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"


def tiny_model(folder: Path) -> Path:
    """A random model of two layers that reads characters, for a machine without a GPU."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = ["<pad>", "<eos>", "<unk>", *"0123456789+?=. Whatis"]
    words = {word: i for i, word in enumerate(dict.fromkeys(characters))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Curve:
    """Writes a line for each step; its clock starts with the first rollout."""

    def __init__(self, trainer: str, out: Path) -> None:
        self.trainer, self.out, self.began = trainer, out, 0.0
        out.write_text("")

    def start(self) -> None:
        self.began = self.began or time.perf_counter()

    def step(self, step: int, reward: float) -> None:
        seconds = round(time.perf_counter() - self.began, 3)
        line = json.dumps({"trainer": self.trainer, "step": step, "seconds": seconds, "reward": reward})
        with self.out.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def navarch(options: argparse.Namespace, sums: Path, curve: Curve) -> None:
    from training.config.load import load_config
    from training.loop.run import open_run
    from training.stages.grpo import GRPO

    class Timed(GRPO):
        def fit(self) -> None:
            curve.start()
            super().fit()

        def report(self, *arguments: Any) -> None:
            super().report(*arguments)
            curve.step(self.step, self.figures["reward"])

    config = load_config("grpo", {
        "model": options.model, "data": str(sums), "strategy": "naive", "run_dir": tempfile.mkdtemp(),
        "reward": {"function": "training.ppo.rules:right_number"},
        "generation": {"max_new_tokens": options.new_tokens},
        "train": {
            "max_steps": options.steps, "epochs": 1000, "rollout_batch_size": options.rollout,
            "minibatch_size": options.rollout, "samples_per_prompt": options.group, "lr": options.lr,
            "lr_schedule": "constant", "sample_every": 0, "max_prompt_length": 96, "seed": options.seed,
        },
        "log": {"every": 1, "tensorboard": False},
    })  # fmt: skip
    with open_run("grpo", config) as run:
        Timed(run).fit()


def trl(options: argparse.Namespace, sums: Path, curve: Curve) -> None:
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    disable_progress_bars()
    gpu = torch.cuda.is_available()
    rows = [json.loads(line) for line in sums.read_text().splitlines()]
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["prompt"]}], "number": row["number"]} for row in rows]
    )

    def rule(completions: Sequence[Any], number: Sequence[int], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return right_number(texts, texts, [{"number": each} for each in number])

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            curve.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "reward" in logs:
                curve.step(state.global_step, float(logs["reward"]))

    micro = min(options.micro_rows, options.rollout)
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=options.steps, learning_rate=options.lr, lr_scheduler_type="constant",
        per_device_train_batch_size=micro, gradient_accumulation_steps=options.rollout // micro,
        num_generations=options.group, max_completion_length=options.new_tokens, temperature=1.0, beta=0.0,
        loss_type="dapo", epsilon=0.2, epsilon_high=0.28, scale_rewards="group", adam_beta1=0.9, adam_beta2=0.95,
        adam_epsilon=1e-5, max_grad_norm=1.0, bf16=gpu, use_cpu=not gpu, gradient_checkpointing=False,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=options.seed,
        use_vllm=options.vllm, **({"vllm_mode": "colocate"} if options.vllm else {}),
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
        reward_funcs=rule, args=arguments, train_dataset=data, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()


def time_to(lines: Sequence[dict[str, Any]], target: float) -> tuple[float, int] | None:
    """(seconds, step) where the mean reward of the last AROUND steps first reaches the target."""
    for i in range(AROUND - 1, len(lines)):
        if sum(line["reward"] for line in lines[i - AROUND + 1 : i + 1]) / AROUND >= target:
            return lines[i]["seconds"], lines[i]["step"]
    return None


def compare(files: Sequence[Path], target: float) -> None:
    for file in files:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        last = lines[-AROUND:]
        reached = time_to(lines, target)
        print(json.dumps({
            "trainer": lines[0]["trainer"], "target": target, "seconds": reached and reached[0],
            "steps": reached and reached[1], "seconds_per_step": round(lines[-1]["seconds"] / len(lines), 3),
            "first": lines[0]["reward"], "last": round(sum(line["reward"] for line in last) / len(last), 3),
        }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["navarch", "trl", "compare"])
    parser.add_argument("files", nargs="*", type=Path, help="compare: curves")
    parser.add_argument("--model", help="a chat model's folder")
    parser.add_argument("--out", type=Path, default=Path("curve.jsonl"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rollout", type=int, default=256, help="answers of a step")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-6)
    parser.add_argument("--micro-rows", type=int, default=64, help="trl: answers of one backward pass")
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="a tiny random model, few short answers")
    options = parser.parse_args()
    if options.what == "compare":
        compare(options.files, options.target)
        return
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    folder = Path(tempfile.mkdtemp())
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        options.model = str(tiny_model(folder / "model"))
        options.rollout, options.new_tokens, options.lr = min(options.rollout, 32), 4, 3e-3
        options.steps = min(options.steps, 5)
    if not options.model:
        sys.exit("give --model DIR, or --cpu")
    sums = folder / "sums.jsonl"
    synthesize(sums, PROMPTS, kind="sums", seed=options.seed)
    trainers: dict[str, Callable[[argparse.Namespace, Path, Curve], None]] = {"navarch": navarch, "trl": trl}
    trainers[options.what](options, sums, Curve(options.what, options.out))


if __name__ == "__main__":
    main()
