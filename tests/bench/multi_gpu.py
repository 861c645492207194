"""Measures and checks training on several GPUs of one host; one command runs all of it, one JSON line per result.

    python -m tests.bench.multi_gpu                       every part on as many GPUs as there are (2, then all)
    python -m tests.bench.multi_gpu --parts equal,resume --ranks 2
    python -m tests.bench.multi_gpu --cpu                 tiny shapes on two gloo ranks, ColossalAI on a stand-in device

Parts
  equal    every strategy × stage (sft, rm, dpo, ppo) through navarch-train: N ranks give one process's losses
  resume   stopped after half the steps and started again gives the losses of one go; also on one rank instead of N
  scaling  tokens/s of SFT at 1, 2, 4, … ranks, the work per rank fixed (weak) and the whole work fixed (strong)
  large    a 7B shape: gemini and zero2, whole and LoRA, with peak memory
  hybrid   colossalai_3d: tp=2, pp=2, both, against ddp's loss
Each launch has a time limit of its own; a failing one is reported and the next goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "zero1": {"name": "colossalai_zero1"},
    "zero2": {"name": "colossalai_zero2"},
    "zero2_cpu": {"name": "colossalai_zero2_cpu"},
    "gemini": {"name": "colossalai_gemini", "bucket_mb": 8},
    "gemini_auto": {"name": "colossalai_gemini_auto", "bucket_mb": 8},
    "3d": {"name": "colossalai_3d"},
}
STAGES = ("sft", "rm", "dpo", "ppo")
SKIPPED = {("3d", "ppo")}
"""Refused by name: no rank of colossalai_3d holds whole layers to generate with."""
STEPS = 4
SEVEN_B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False, "max_position_embeddings": 2048,
}  # fmt: skip


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# what a launched process does


def worker(arguments: Sequence[str]) -> int:
    """`stage STAGE OVERRIDES…` runs navarch-train; `speed JSON` measures one shape and strategy."""
    if os.environ.get("MULTI_GPU_CPU"):
        from tests.training.colossal_cpu_sim import install

        install()
    if arguments[0] == "stage":
        from training.cli import main

        return main(arguments[1:])
    return speed(json.loads(arguments[1]))


def speed(case: dict[str, Any]) -> int:
    """Steady tokens/s over all ranks, losses and peak memory, for random weights and documents."""
    import torch
    from transformers import LlamaConfig

    from tests.bench.gpu_train import SHAPES, SyntheticLoader
    from training.config import LoraConfig
    from training.models.compile import speed_up_blocks
    from training.models.heads import HeadOptions, LanguageModelLoss
    from training.models.load import from_config
    from training.models.lora import convert_to_lora
    from training.strategies.config import OptimizerConfig, StrategyConfig
    from training.strategies.select import open_strategy

    shape = SEVEN_B if case["shape"] == "7b" else SHAPES[case["shape"]]
    accumulate, steps = case.get("accumulate", 1), case.get("steps", 8)
    strategy = open_strategy(
        StrategyConfig(**case["strategy"]), precision="bf16", lora=bool(case.get("lora")), accumulation=accumulate
    )
    on_gpu = strategy.device.type == "cuda"
    torch.manual_seed(0)
    with torch.device(strategy.device):
        wide = torch.float32 if case["shape"] != "7b" else torch.bfloat16
        model = from_config(LlamaConfig(**shape), dtype=wide)
    if case.get("lora"):
        convert_to_lora(model, LoraConfig(rank=case["lora"]))
    compiled = on_gpu and strategy.capabilities.compile_blocks
    speed_up_blocks(model, compiled=compiled, checkpointing=case.get("checkpointing", "off"))
    head = HeadOptions(compiled=compiled, own_forward=not strategy.capabilities.packed)
    trained = strategy.prepare(LanguageModelLoss(model, head), OptimizerConfig(lr=1e-4), lambda step: 1.0)
    vocabulary, micro = int(shape["vocab_size"]), case["tokens"]
    made = SyntheticLoader("sft", vocabulary, micro, accumulate * strategy.dp_size, 1).made[0].micro_batches
    window = made[strategy.dp_rank :: strategy.dp_size]
    counts = torch.tensor([float(sum(b.num_targets for b in window)), float(sum(b.num_tokens for b in window))])
    targets, tokens = strategy.all_reduce_sum(counts).tolist()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    walls, losses = [], []
    for _ in range(case.get("warmup", 3) + steps):
        strategy.barrier()
        started = time.perf_counter()
        total = torch.zeros((), device=strategy.device)
        for index, batch in enumerate(window):
            with strategy.accumulate(trained, last=index == len(window) - 1):
                loss = trained.module(batch.to(strategy.device, non_blocking=True))
                strategy.backward(trained, loss * strategy.dp_size / targets)
            total = total + loss.detach().float().as_subclass(torch.Tensor)
        strategy.step(trained)
        losses.append(float(strategy.all_reduce_sum(total.clone())) / targets)  # waits for the device
        walls.append(time.perf_counter() - started)
    if strategy.is_main:
        per_second = tokens / statistics.median(walls[-steps:])
        say(
            speed=case["id"], ranks=strategy.world_size, tokens_per_second=round(per_second),
            per_rank=round(per_second / strategy.world_size),
            step_ms=round(1000 * statistics.median(walls[-steps:]), 1),
            losses=[round(loss, 4) for loss in losses[:4]],
            peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
            device=torch.cuda.get_device_name() if on_gpu else "cpu",
        )  # fmt: skip
    strategy.close()
    return 0


# the launcher


class Launcher:
    """Starts processes, each launch under a time limit, and reads the losses that a run told."""

    def __init__(self, *, cpu: bool, limit: float, folder: Path) -> None:
        self.cpu, self.limit, self.folder = cpu, limit, folder

    def run(self, ranks: int, arguments: Sequence[str]) -> tuple[str, str]:
        """("", standard output) or (what went wrong, output)."""
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        environment |= {"OMP_NUM_THREADS": "1", "NCCL_NVLS_ENABLE": "0"}  # no NVLink multicast
        if self.cpu:
            environment["MULTI_GPU_CPU"] = "1"
        elif ranks == 1:
            environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        try:
            done = subprocess.run(
                [*start, "-m", "tests.bench.multi_gpu", "--worker", *arguments], cwd=ROOT, env=environment,
                capture_output=True, text=True, timeout=self.limit, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"took more than {self.limit:g} s", ""
        spoken = (done.stdout + done.stderr).splitlines()
        errors = [line for line in spoken if line.startswith("[rank") and "Error:" in line]
        errors += [line for line in spoken if line.startswith("@navarch") and '"error"' in line]
        wrong = (errors[-1] if errors else done.stderr[-1500:]) if done.returncode else ""
        return wrong, done.stdout

    def stage(self, name: str, ranks: int, stage: str, overrides: Sequence[str]) -> tuple[str, list[float]]:
        """Runs navarch-train in a run folder of this name: (what went wrong, the losses of its steps)."""
        run_dir = self.folder / "runs" / name
        wrong, _ = self.run(ranks, ["stage", stage, *overrides, f"run_dir={run_dir}"])
        log = run_dir / "events.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        key = "critic/loss" if stage == "ppo" else "loss"
        told = {e["step"]: e["values"].get(key, e["values"].get("loss")) for e in lines if e["event"] == "metrics"}
        return wrong, [told[step] for step in sorted(told)]


def prepare_files(folder: Path, shape: str) -> None:
    """A random model with a tokenizer, rows for every stage, and a reward function."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tests.bench.gpu_train import SHAPES
    from tests.training.making import WORDS, make_rows, make_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPES[shape], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32).save_pretrained(folder / "model")
    make_tokenizer(folder / "model")
    for stage in STAGES:
        make_rows(folder / f"{stage}.jsonl", stage if stage != "ppo" else "sft", 64)
    draw = random.Random(0)
    prompts = [{"prompt": " ".join(draw.choices(WORDS, k=draw.randint(2, 8)))} for _ in range(64)]
    (folder / "ppo.jsonl").write_text("\n".join(map(json.dumps, prompts)) + "\n")
    (folder / "reward.py").write_text(
        '"""Share of vowels."""\n\n\ndef vowels(prompts, completions, rows):\n'
        '    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]\n'
    )


def stage_overrides(folder: Path, stage: str, strategy: dict[str, Any], ranks: int, of: int) -> list[str]:
    """The same global batch on `ranks` processes as on `of`: fewer ranks take more micro-batches."""
    sources = "data" if stage == "ppo" else "data.sources"
    common = [
        f"model={folder / 'model'}", f"{sources}=[{folder / f'{stage}.jsonl'}]", f"strategy={json.dumps(strategy)}",
        "log.every=1", "log.tensorboard=false", f"train.max_steps={STEPS}", "train.lr_schedule=constant",
        "train.lr=1e-3", "train.compile=off",
    ]  # fmt: skip
    if "gemini" in strategy["name"]:
        common.append("train.precision=bf16")
    if stage == "ppo":
        return [*common, f"reward.function={folder / 'reward.py'}:vowels", "train.rollout_batch_size=16",
                "train.minibatch_size=8", "generation.max_new_tokens=12", "critic.lr=1e-3"]  # fmt: skip
    return [*common, f"data.cache_dir={folder / 'cache'}", "train.max_length=96", "train.batch_size=4",
            "train.packing=false", f"train.accumulate={of // ranks}", "train.warmup=0"]  # fmt: skip


def apart(losses: list[float], expected: list[float]) -> float:
    """Largest distance of two curves, relative to the loss or, where that is small, to 0.1."""
    return max((abs(a - b) / max(abs(b), 0.1) for a, b in zip(losses, expected, strict=False)), default=float("inf"))


def equal(launcher: Launcher, ranks: int, names: Sequence[str], stages: Sequence[str]) -> None:
    """PPO is compared with ddp on as many ranks, at its first step: each rank draws its own completions, and once
    weights differ in their last bit, other tokens are drawn."""
    for stage in stages:
        plain, few = ("ddp", ranks) if stage == "ppo" else ("naive", 1)
        wrong, reference = launcher.stage(
            f"{stage}-{plain}-{few}-of-{ranks}", few, stage,
            stage_overrides(launcher.folder, stage, {"name": plain}, few, ranks),
        )  # fmt: skip
        say(part="equal", stage=stage, strategy=plain, ranks=few, losses=reference, wrong=wrong)
        for name in names:
            if (name, stage) in SKIPPED:
                continue
            overrides = stage_overrides(launcher.folder, stage, STRATEGIES[name], ranks, ranks)
            wrong, losses = launcher.stage(f"{stage}-{name}-{ranks}", ranks, stage, overrides)
            distance = apart(losses[:1], reference[:1]) if stage == "ppo" else apart(losses, reference)
            fine = not wrong and len(losses) == len(reference) and distance < 0.05
            say(part="equal", stage=stage, strategy=name, ranks=ranks, losses=losses, apart=round(distance, 6),
                ok=fine, wrong=wrong)  # fmt: skip


def resume(launcher: Launcher, ranks: int, names: Sequence[str], stages: Sequence[str]) -> None:
    for stage in stages:
        for name in names:
            if (name, stage) in SKIPPED:
                continue
            base = stage_overrides(launcher.folder, stage, STRATEGIES[name], ranks, ranks)
            wrong, whole = launcher.stage(f"whole-{stage}-{name}-{ranks}", ranks, stage, base)
            saving = [*base, f"checkpoint.every={STEPS // 2}"]
            half = [item for item in saving if not item.startswith("train.max_steps")]
            first, _ = launcher.stage(
                f"half-{stage}-{name}-{ranks}", ranks, stage, [*half, f"train.max_steps={STEPS // 2}"]
            )
            second, both = launcher.stage(f"half-{stage}-{name}-{ranks}", ranks, stage, [*saving, "resume=auto"])
            distance = apart(both, whole)
            failure = wrong or first or second
            say(part="resume", stage=stage, strategy=name, ranks=ranks, whole=whole, resumed=both,
                apart=round(distance, 7), ok=not failure and len(both) == STEPS and distance < 2e-3,
                wrong=failure)  # fmt: skip


def scaling(launcher: Launcher, all_ranks: Sequence[int], shape: str, tokens: int) -> None:
    for name in ("ddp", "zero2", "gemini"):
        for kind in ("weak", "strong"):
            most = max(all_ranks)
            for ranks in all_ranks:
                case = {
                    "id": f"sft-{shape}-{name}-{kind}", "shape": shape, "strategy": STRATEGIES[name], "tokens": tokens,
                    "accumulate": 1 if kind == "weak" else most // ranks,
                }  # fmt: skip
                if name == "gemini":
                    case["strategy"] = {"name": "colossalai_gemini"}
                measure(launcher, "scaling", ranks, case)


def measure(launcher: Launcher, part: str, ranks: int, case: dict[str, Any]) -> None:
    wrong, output = launcher.run(ranks, ["speed", json.dumps(case)])
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"speed"')]
    facts: dict[str, Any] = {"part": part, "id": case["id"], "ranks": ranks, "wrong": wrong}
    say(**(facts | (lines[-1] if lines else {})))


def large(launcher: Launcher, ranks: int, shape: str, tokens: int) -> None:
    for name, strategy, extra in (
        ("gemini", {"name": "colossalai_gemini"}, {}),
        ("gemini-offload", {"name": "colossalai_gemini", "offload_optimizer": 1.0}, {}),
        ("zero2", {"name": "colossalai_zero2"}, {}),
        ("zero2-lora", {"name": "colossalai_zero2"}, {"lora": 16}),
    ):
        case = {"id": f"{shape}-{name}", "shape": shape, "strategy": strategy, "tokens": tokens, "steps": 4,
                "checkpointing": "full", **extra}  # fmt: skip
        measure(launcher, "large", ranks, case)


def hybrid(launcher: Launcher, ranks: int, shape: str, tokens: int) -> None:
    cases = {"ddp": {"name": "ddp"}, "tp2": {"name": "colossalai_3d", "tp": 2},
             "tp2-sp": {"name": "colossalai_3d", "tp": 2, "sp": "split_gather"},
             "pp2": {"name": "colossalai_3d", "pp": 2}, "dp-zero2": {"name": "colossalai_3d", "zero": 2}}  # fmt: skip
    if ranks >= 4:
        cases["tp2-pp2"] = {"name": "colossalai_3d", "tp": 2, "pp": 2}
    for name, strategy in cases.items():
        measure(
            launcher, "hybrid", ranks,
            {"id": f"sft-{shape}-{name}", "shape": shape, "strategy": strategy, "tokens": tokens, "steps": 4},
        )  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="equal,resume,hybrid,scaling,large")
    parser.add_argument("--ranks", type=int, default=0, help="0: 2, then as many as there are GPUs")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--shape", default="", help="of scaling and hybrid: tiny, 135m or 1b")
    parser.add_argument("--tokens", type=int, default=0, help="of one micro-batch")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one launch")
    parser.add_argument("--cpu", action="store_true")
    chosen = parser.parse_args()
    if chosen.cpu:
        available = 2
    else:
        import torch

        available = torch.cuda.device_count()
        if available < 2:
            print(f"multi_gpu needs 2 GPUs or more and sees {available}; --cpu tries the same on host ranks")
            return 66
    counts = [chosen.ranks] if chosen.ranks else sorted({2, available})
    parts, names, stages = chosen.parts.split(","), chosen.strategies.split(","), chosen.stages.split(",")
    tokens = chosen.tokens or (2048 if chosen.cpu else 16384)
    shape = chosen.shape or ("tiny" if chosen.cpu else "1b")
    with tempfile.TemporaryDirectory() as folder:
        launcher = Launcher(cpu=chosen.cpu, limit=chosen.limit, folder=Path(folder))
        if {"equal", "resume"} & set(parts):
            prepare_files(launcher.folder, "tiny" if chosen.cpu else "135m")
        for ranks in counts:
            if "equal" in parts:
                equal(launcher, ranks, names, stages)
            if "resume" in parts:
                resume(launcher, ranks, names, [s for s in stages if s in ("sft", "ppo")])
            if "hybrid" in parts:
                hybrid(launcher, ranks, shape if chosen.cpu else "135m", tokens)
            if "large" in parts:
                large(launcher, ranks, "tiny" if chosen.cpu else "7b", tokens)
        if "scaling" in parts:
            scaling(launcher, [n for n in (1, 2, 4, 8) if n <= max(counts)], shape, tokens)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
