"""Trains the same tiny model with the strategies that a plan names and writes what it saw as JSON lines (one process).

    torchrun --nproc-per-node 2 -m tests.training.strategy_worker PLAN.json OUT.jsonl

A plan is a list of cases: strategy, precision, options, accumulate, tie, checkpointing, compiled, and save or load (a
directory).
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.training.colossal_cpu_sim import install
from tests.training.tiny import packed, tiny_config
from training.config.strategies import OptimizerConfig, StrategyConfig
from training.models.blocks import find_blocks
from training.models.compile import speed_up_blocks
from training.models.heads import HeadOptions, LanguageModelLoss
from training.models.load import from_config
from training.strategies.base import Strategy, Trained
from training.strategies.select import open_strategy

STEPS, MORE = 4, 2
LENGTHS = (5, 29, 12, 17, 30, 8, 22, 11)


def documents() -> list[list[int]]:
    """Eight documents of unequal lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 64, (length,), generator=generator).tolist() for length in LENGTHS]


def prepare(strategy: Strategy, case: dict[str, Any], seed: int) -> Trained:
    torch.manual_seed(seed)
    model = from_config(tiny_config("llama", tie_word_embeddings=case.get("tie", False)))
    speed_up_blocks(model, compiled=False, checkpointing=case.get("checkpointing", "off"))
    if case.get("compiled"):  # the CPU's packed attention loops over documents, so compiled blocks take padded rows
        for part in model.modules():
            if hasattr(part, "config"):
                part.config._attn_implementation = "sdpa"
        for block in find_blocks(model)[0]:
            block.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    module = LanguageModelLoss(model, HeadOptions(own_forward=not strategy.capabilities.packed))
    optimizer = OptimizerConfig(lr=1e-2, weight_decay=0.1, max_grad_norm=0.9)
    return strategy.prepare(module, optimizer, lambda step: 1.0 / (1 + step))


def train(strategy: Strategy, trained: Trained, accumulate: int, steps: int) -> list[list[float]]:
    """[loss, gradient norm] of each step over all documents, whatever the number of ranks and micro-batches."""
    mine = documents()[strategy.dp_rank :: strategy.dp_size]
    count = sum(length - 1 for length in LENGTHS)
    share = len(mine) // accumulate
    seen = []
    for _ in range(steps):
        total = torch.zeros(())
        for index in range(accumulate):
            batch = packed(mine[index * share : (index + 1) * share])
            with strategy.accumulate(trained, last=index == accumulate - 1):
                loss = trained.module(batch)
                strategy.backward(trained, loss * strategy.dp_size / count)
            total = total + loss.detach().float().as_subclass(torch.Tensor)
        norm = strategy.step(trained)
        seen.append([float(strategy.all_reduce_sum(total.clone())) / count, float(norm)])
    return seen


def run(case: dict[str, Any]) -> dict[str, Any]:
    accumulate = case.get("accumulate", 2)
    config = StrategyConfig(name=case["strategy"], **{"bucket_mb": 0.02, **case.get("options", {})})
    strategy = open_strategy(config, precision=case["precision"], accumulation=accumulate)
    result: dict[str, Any] = {"id": case["id"]}
    trained = prepare(strategy, case, seed=0 if "load" not in case else 7)
    if "load" in case:
        strategy.load([trained], Path(case["load"]))
        return result | {"steps": trained.steps, "went_on": train(strategy, trained, accumulate, MORE)}
    result["trained"] = train(strategy, trained, accumulate, STEPS)
    if "save" in case:
        strategy.save([trained], Path(case["save"]))
        weights = strategy.full_state_dict(trained)
        random = torch.rand(1).item()
        again = prepare(strategy, case, seed=7)
        strategy.load([again], Path(case["save"]))
        result["random"] = [random, torch.rand(1).item()]
        loaded = strategy.full_state_dict(again)
        result["same_weights"] = all(torch.equal(weights[key], loaded[key]) for key in weights)
        result["names"] = sorted(weights)
        result["shapes"] = [list(weights[key].shape) for key in sorted(weights)]
        result["went_on"] = train(strategy, trained, accumulate, MORE)
        result["resumed"] = train(strategy, again, accumulate, MORE)
        one = strategy.full_state_dict(trained, masters=True)
        two = strategy.full_state_dict(again, masters=True)
        result["same_masters"] = all(torch.equal(one[key], two[key]) for key in one)
    if strategy.capabilities.rollouts:
        batch = packed(documents())
        with strategy.generation(trained) as module:
            whole = float(module(batch))
        with torch.no_grad():
            trained.module.eval()
            result["generation"] = [whole, float(trained.module(batch))]
    return result


def main() -> None:
    install()
    plan = json.loads(Path(sys.argv[1]).read_text())
    main_rank = True
    with Path(sys.argv[2]).open("a") as out:
        for case in plan:
            try:
                result = run(case)
            except Exception as error:
                traceback.print_exc()
                result = {"id": case["id"], "error": f"{type(error).__name__}: {error}"}
            main_rank = not dist.is_initialized() or dist.get_rank() == 0
            if main_rank:
                out.write(json.dumps(result) + "\n")
                out.flush()
            if "error" in result:  # the other rank may be waiting in a collective: end both
                raise SystemExit(1)
    from training.strategies.world import leave

    leave(0)


if __name__ == "__main__":
    main()
