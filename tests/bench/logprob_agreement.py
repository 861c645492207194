"""Measures how far the engine's log-probs are from the trainer's on a real model: PPO's ratios compare the two.

    python -m tests.bench.logprob_agreement --model DIR --prompts FILE.json     # a GPU if there is one, else the CPU

One JSON line: the mean and the quantiles of |Δ log p| per token, once with the head's product as training has it, once
rounded to the weights' precision as it used to be, and the share of ratios that are off by more than 2 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from training.config.generation import GenerationConfig
from training.data.template import TextCodec
from training.models import chunked_head
from training.models.compile import speed_up_blocks
from training.models.load import load_causal_lm
from training.ppo.experience import Completions
from training.ppo.models import Actor, action_logprobs
from training.rollout import RolloutEngine

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def rounded_product(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, rounded: bool = False) -> Tensor:
    product = hidden @ weight.t()
    return product if bias is None else product + bias


def figures(sampled: Tensor, scored: Tensor, mask: Tensor) -> dict[str, Any]:
    error = (sampled - scored).abs()[mask].float()
    quantiles = torch.quantile(error, torch.tensor([0.5, 0.9, 0.99], device=error.device)).tolist()
    off = (torch.expm1(error) > 0.02).float().mean().item()
    return {
        "mean": round(error.mean().item(), 6),
        "p50, p90, p99": [round(value, 6) for value in quantiles],
        "ratios off by 2 %": round(off, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, help="a JSON list of rows with `instruction`")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--eager", action="store_true", help="blocks as they are, not compiled as training has them")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codec = TextCodec.load(Path(options.model))
    model = load_causal_lm(options.model).to(device=device, dtype=DTYPES[options.precision]).eval()
    compiled = device == "cuda" and not options.eager
    speed_up_blocks(model, compiled=compiled)
    asked = [row["instruction"] for row in json.loads(Path(options.prompts).read_text())[: options.rows]]
    prompts = codec.encode_prompts([[{"role": "user", "content": text}] for text in asked])
    engine = RolloutEngine(model, stop_ids=codec.stop_ids, max_batch=options.rows, max_length=1024, seed=1)
    config = GenerationConfig(max_new_tokens=options.new_tokens, temperature=1.0)
    rollout = engine.generate(prompts, config)
    completions = Completions(
        rollout.tokens, tuple(rollout.prompt_lengths.tolist()), tuple(rollout.response_lengths.tolist()),
        rollout.finished_by_stop, ("",) * len(prompts),
    )  # fmt: skip
    actor = Actor(model, pad_id=codec.pad_id)
    scored = action_logprobs(actor, completions, 8192)
    tokens = int(completions.mask.sum())
    found: dict[str, Any] = {
        "device": device, "precision": options.precision, "compiled": compiled, "tokens": tokens,
    }  # fmt: skip
    with patch.object(chunked_head, "head_product", rounded_product):
        before = action_logprobs(actor, completions, 8192)
    found["now"] = figures(rollout.logprobs, scored, completions.mask)
    found["rounded head"] = figures(rollout.logprobs, before, completions.mask)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
