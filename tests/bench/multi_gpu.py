"""Measures and checks training on several GPUs of one host; one command runs all of it, one JSON line per result.

    python -m tests.bench.multi_gpu                       every part on as many GPUs as there are (2, then all)
    python -m tests.bench.multi_gpu --parts equal,resume --ranks 2
    python -m tests.bench.multi_gpu --ranks 1             what one GPU can show of it
    python -m tests.bench.multi_gpu --cpu                 tiny shapes on two gloo ranks, ColossalAI on a stand-in device

Parts
  equal    every strategy × stage (sft, rm, dpo, ppo) through navarch-train: N ranks give one process's losses
  resume   stopped after half the steps and started again gives the losses of one go; sft also on one rank instead of N
  scaling  tokens/s of SFT and samples/s of PPO at 1, 2, 4, … ranks, the work per rank fixed (weak) and the whole work
           fixed (strong), with the efficiency beside one rank
  large    a 7B shape: gemini and zero2, whole and LoRA, with peak memory
  hybrid   colossalai_3d: tp=2, pp=2, both, against ddp's loss
Each launch has a time limit of its own; a failing one is reported and the next goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
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


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# the launcher


class Launcher:
    """Starts processes, each launch under a time limit, and reads the losses that a run told."""

    def __init__(self, *, cpu: bool, limit: float, folder: Path) -> None:
        self.cpu, self.limit, self.folder = cpu, limit, folder

    def run(self, ranks: int, arguments: Sequence[str]) -> tuple[str, str]:
        """("", standard output) or (what went wrong, output)."""
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        environment |= {"OMP_NUM_THREADS": "1", "NAVARCH_EVENTS": "1", "NCCL_NVLS_ENABLE": "0"}  # no NVLink multicast
        if self.cpu:
            environment["MULTI_GPU_CPU"] = "1"
        elif ranks == 1:
            environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        try:
            done = subprocess.run(
                [*start, "-m", "tests.bench.multi_gpu_worker", *arguments], cwd=ROOT, env=environment,
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
            run = f"half-{stage}-{name}-{ranks}"
            first, _ = launcher.stage(run, ranks, stage, [*half, f"train.max_steps={STEPS // 2}"])
            runs = launcher.folder / "runs"
            if not first:
                shutil.copytree(runs / run, runs / f"{run}-on-1")
            second, both = launcher.stage(run, ranks, stage, [*saving, "resume=auto"])
            distance = apart(both, whole)
            failure = wrong or first or second
            say(part="resume", stage=stage, strategy=name, ranks=ranks, whole=whole, resumed=both,
                apart=round(distance, 7), ok=not failure and len(both) == STEPS and distance < 2e-3,
                wrong=failure)  # fmt: skip
            if first or ranks == 1 or stage != "sft":
                continue
            fewer = stage_overrides(launcher.folder, stage, STRATEGIES[name], 1, ranks)
            third, on_one = launcher.stage(f"{run}-on-1", 1, stage, [*fewer, "resume=auto"])
            distance = apart(on_one, whole)
            say(part="resume", stage=stage, strategy=name, ranks=f"{ranks}, then 1", whole=whole, resumed=on_one,
                apart=round(distance, 7), ok=not third and len(on_one) == STEPS and distance < 0.02,
                wrong=third)  # fmt: skip


def scaling(launcher: Launcher, all_ranks: Sequence[int], shape: str, tokens: int) -> None:
    most = max(all_ranks)
    for name in ("ddp", "zero2", "gemini"):
        strategy = {"name": "colossalai_gemini"} if name == "gemini" else STRATEGIES[name]
        for kind in ("weak", "strong"):
            alone = 0.0
            for ranks in all_ranks:
                case = {
                    "id": f"sft-{shape}-{name}-{kind}", "shape": shape, "strategy": strategy, "tokens": tokens,
                    "accumulate": 1 if kind == "weak" else most // ranks,
                }  # fmt: skip
                alone = measure(launcher, "scaling", ranks, case, alone=alone)


def ppo_scaling(launcher: Launcher, all_ranks: Sequence[int], shape: str, tokens: int) -> None:
    """128 prompts a rank (weak) or in all (strong), 128 new tokens; eight and eight on the CPU."""
    from tests.bench.gpu_ppo import SHAPES, make_models, make_prompts

    prompts, new_tokens = (8, 8) if launcher.cpu else (128, 128)
    folder, most = launcher.folder / "ppo_models", max(all_ranks)
    folder.mkdir()
    make_models(folder, shape)
    make_prompts(folder / "prompts.jsonl", prompts * most * 2, SHAPES[shape]["vocab_size"], 8 if launcher.cpu else 83)
    for name in ("ddp", "zero2"):
        for kind in ("weak", "strong"):
            alone = 0.0
            for ranks in all_ranks:
                case = {
                    "id": f"ppo-{shape}-{name}-{kind}", "folder": str(folder), "strategy": STRATEGIES[name],
                    "run_dir": str(launcher.folder / "runs" / f"ppo-{name}-{kind}-{ranks}"), "steps": 6,
                    "tokens": tokens, "new_tokens": new_tokens, "prompts": prompts * (ranks if kind == "weak" else 1),
                }  # fmt: skip
                alone = measure(launcher, "scaling", ranks, case, worker="ppo", alone=alone)


def measure(
    launcher: Launcher, part: str, ranks: int, case: dict[str, Any], *, worker: str = "speed", alone: float = 0.0
) -> float:
    """Tells what the worker measured, and its efficiency beside `alone`, one rank's figure. Returns that figure:
    per rank, the given one or this launch's."""
    wrong, output = launcher.run(ranks, [worker, json.dumps(case)])
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"speed"')]
    facts: dict[str, Any] = {"part": part, "id": case["id"], "ranks": ranks, "wrong": wrong}
    told = lines[-1] if lines else {}
    if alone and told:
        facts["efficiency"] = round(told["per_rank"] / alone, 3)
    say(**(facts | told))
    return alone or float(told.get("per_rank", 0.0))


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
        if available < max(chosen.ranks or 2, 1):
            print(f"{chosen.ranks or 2} GPUs are needed and {available} seen; see --ranks and --cpu")
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
            powers = [n for n in (1, 2, 4, 8) if n <= max(counts)]
            scaling(launcher, powers, shape, tokens)
            ppo_scaling(launcher, powers, "tiny" if chosen.cpu else "1.1b", min(tokens, 8192))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
