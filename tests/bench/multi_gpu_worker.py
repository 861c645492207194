"""What one launched process of `tests.bench.multi_gpu` does: a stage, or the speed of SFT or of PPO.

torchrun … -m tests.bench.multi_gpu_worker stage sft model=… strategy=…     navarch-train, as it is
torchrun … -m tests.bench.multi_gpu_worker speed '{"id": …, "shape": …}'    SFT on random documents
torchrun … -m tests.bench.multi_gpu_worker ppo '{"id": …, "folder": …}'     PPO on random models
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

SEVEN_B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False, "max_position_embeddings": 2048,
}  # fmt: skip


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main(arguments: Sequence[str]) -> int:
    if os.environ.get("MULTI_GPU_CPU"):
        from tests.training.colossal_cpu_sim import install

        install()
    kind, *rest = arguments
    if kind == "stage":
        from training.cli import main as navarch_train

        return navarch_train(rest)
    return {"speed": speed, "ppo": ppo}[kind](json.loads(rest[0]))


def speed(case: dict[str, Any]) -> int:
    """Steady tokens/s over all ranks, losses and peak memory, for random weights and documents."""
    import torch
    from transformers import LlamaConfig

    from tests.bench.gpu_train import SHAPES, SyntheticLoader
    from training.config.stages import LoraConfig
    from training.config.strategies import OptimizerConfig, StrategyConfig
    from training.models.compile import speed_up_blocks
    from training.models.heads import HeadOptions, LanguageModelLoss
    from training.models.load import from_config
    from training.models.lora import convert_to_lora
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


def ppo(case: dict[str, Any]) -> int:
    """Samples a second of PPO over all ranks; `folder` holds actor, reward model and prompts made beforehand."""
    import torch

    from tests.bench.gpu_ppo import drive

    figures: list[dict[str, float]] = []
    ranks = int(os.environ["WORLD_SIZE"])
    made = drive(
        {
            "model": f"{case['folder']}/actor", "strategy": case["strategy"], "run_dir": case["run_dir"],
            "data": {"sources": [{"path": f"{case['folder']}/prompts.jsonl", "format": "prompt"}]},
            "reward": {"model": f"{case['folder']}/reward"}, "log": {"every": 1, "tensorboard": False},
            "generation": {"max_new_tokens": case["new_tokens"], "stop_ids": []},
            "train": {
                "max_steps": case["steps"], "epochs": 1000, "rollout_batch_size": case["prompts"], "sample_every": 0,
                "minibatch_size": case["prompts"], "micro_batch_tokens": case["tokens"],
                "compile": "on" if torch.cuda.is_available() else "off",
            },
        },
        lambda step, seen: figures.append(dict(seen)),
    )  # fmt: skip
    if made.strategy.is_main:
        steady = figures[len(figures) // 2 :]
        middle = {
            name: round(statistics.median(each[name] for each in steady), 3)
            for name in ("samples_per_second", "generate_seconds", "score_seconds", "train_seconds", "memory_gib")
            if name in steady[-1]
        }
        say(speed=case["id"], ranks=ranks, per_rank=round(middle["samples_per_second"] / ranks, 3), **middle)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
