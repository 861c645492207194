"""Checks generation as a whole: CPU = eager = graph = transformers, log-probs (gpu_rollout.py --engine)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from tests.bench.gpu_kernels import Checks
from training.config.generation import GenerationConfig
from training.rollout import RolloutEngine, fuse_projections
from training.serving.quantize import quantize_model


def tiny_models() -> dict[str, Any]:
    common: dict[str, Any] = {"vocab_size": 300, "initializer_range": 0.3}
    return {
        "llama": LlamaConfig(
            **common, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512,
        ),
        "qwen2": Qwen2Config(
            **common, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=1, max_position_embeddings=512,
        ),
        "qwen3": Qwen3Config(
            **common, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
        ),
        "phi3": Phi3Config(
            **common, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0,
        ),
        "gpt2": GPT2Config(**common, n_embd=64, n_layer=2, n_head=4, n_positions=512),
        "opt": OPTConfig(
            vocab_size=300, init_std=0.3, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=64, max_position_embeddings=512,
        ),
        "bloom": BloomConfig(**common, hidden_size=64, n_layer=2, n_head=4),
    }  # fmt: skip


def make(config: Any, device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with torch.device(device if config.num_hidden_layers > 8 else "cpu"):  # large ones: random numbers are made there
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval().to(dtype).to(device)
    model.generation_config.eos_token_id = None
    return model


def make_prompts(lengths: list[int], vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def agreement(a: Any, b: Any) -> float:
    """Part of two rollouts' completion tokens that is the same, up to each row's first difference."""
    same = total = 0
    for row in range(a.tokens.shape[0]):
        left, right = a.response(row), b.response(row)
        total += max(len(left), len(right))
        for x, y in zip(left, right, strict=False):
            if x != y:
                break
            same += 1
    return same / max(total, 1)


def check_engine(name: str, rows: int, bits: int, sampled: bool) -> Any:
    config = tiny_models()[name]
    on_cpu, on_gpu = make(config, "cpu", torch.float32), make(config, "cuda", torch.float32)
    if bits < 16:
        quantize_model(on_cpu, bits, 32)
        on_gpu = copy.deepcopy(on_cpu).cuda()
    if sampled:
        generation = GenerationConfig(max_new_tokens=60, temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.2)
    else:
        generation = GenerationConfig(max_new_tokens=60, temperature=0)
    prompts = make_prompts([40, 3, 1, 90, 17, 8, 30][:rows], 300)
    seeds = list(range(rows))
    kinds = {
        "cpu": RolloutEngine(on_cpu, stop_ids=[5], max_batch=4, max_length=300),
        "eager": RolloutEngine(on_gpu, stop_ids=[5], max_batch=4, max_length=300, graphs=False),
        "graph": RolloutEngine(on_gpu, stop_ids=[5], max_batch=4, max_length=300),
    }
    runs = {kind: engine.generate(prompts, generation, seeds=seeds) for kind, engine in kinds.items()}
    again = kinds["graph"].generate(prompts, generation, seeds=seeds)
    exact = bool(torch.equal(runs["graph"].tokens, runs["eager"].tokens)) and bool(
        torch.equal(again.tokens, runs["eager"].tokens)
    )
    cpu = agreement(runs["cpu"], runs["graph"])
    facts: dict[str, Any] = {"graph_is_eager": exact, "same_as_cpu": cpu}
    passed = exact and cpu > 0.97
    if not sampled and bits == 16:
        same = 0
        for row, prompt in enumerate(prompts):
            ids = torch.tensor([prompt], device="cuda")
            out = on_gpu.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=60,
                do_sample=False,
                eos_token_id=5,
                pad_token_id=0,
            )
            same += out[0, len(prompt) :].tolist() == runs["graph"].response(row)
        facts["same_as_transformers"] = f"{same}/{rows}"
        passed = passed and same == rows
    return passed, facts


def check_bf16(name: str, rows: int, bits: int = 16) -> Any:
    """bf16, with prefill in a graph: same tokens as eager, log-probs of a teacher-forced forward."""
    model = make(tiny_models()[name], "cuda", torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.mul_(0.3)
    if bits < 16:
        quantize_model(model, bits, 32)
    fuse_projections(model)
    prompts = make_prompts([40, 3, 1, 90, 17, 8, 30][:rows], 300)
    generation = GenerationConfig(max_new_tokens=60)
    graph = RolloutEngine(model, max_batch=4, max_length=300).generate(prompts, generation, seeds=list(range(rows)))
    eager = RolloutEngine(model, max_batch=4, max_length=300, graphs=False).generate(
        prompts, generation, seeds=list(range(rows))
    )
    worst = 0.0
    for row, prompt in enumerate(prompts):
        tokens = prompt + graph.response(row)
        with torch.no_grad():
            logits = copy.deepcopy(model).float()(torch.tensor([tokens], device="cuda")).logits[0].log_softmax(-1)
        at = torch.arange(len(prompt) - 1, len(tokens) - 1)
        expected = logits[at, torch.tensor(tokens[len(prompt) :])]
        worst = max(worst, (graph.logprobs[row, : len(at)] - expected).abs().max().item())
    same = agreement(graph, eager)
    return worst < 0.15 and same > 0.9, {"logprob_error": worst, "same_as_eager": same}


def engine_checks(checks: Checks) -> None:
    for bits in (16, 8, 4):
        checks.run(f"bf16 llama one row {bits} bits", lambda b=bits: check_bf16("llama", 1, b))
    for name in tiny_models():
        checks.run(f"engine {name} greedy", lambda n=name: check_engine(n, 7, 16, False))
    checks.run("engine llama one row", lambda: check_engine("llama", 1, 16, False))
    checks.run("engine llama sampled", lambda: check_engine("llama", 7, 16, True))
    for bits in (8, 4):
        checks.run(f"engine llama int{bits}", lambda b=bits: check_engine("llama", 7, b, False))
        checks.run(f"engine llama int{bits} one row", lambda b=bits: check_engine("llama", 1, b, False))
    for name in ("llama", "gpt2", "bloom"):
        checks.run(f"bf16 {name}", lambda n=name: check_bf16(n, 7))
