"""Measures generation on one GPU: first that kernels and graphs are right (--selftest), then how fast (--bench).

python tests/bench/gpu_rollout.py --selftest
python tests/bench/gpu_rollout.py --bench [--cases 135m-b128,…] [--limit 40]
Prints one JSON line per result. On a machine without a GPU, `TRITON_INTERPRET=1 … --kernels --device cpu` runs the
kernels' checks in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

from training.generation_config import GenerationConfig
from training.rollout import RolloutEngine, fuse_projections, kernels, kernels_linear, kernels_sampling, one_row
from training.rollout.attention import decode_attention_reference, rotate
from training.rollout.families import alibi_slopes, rms_norm
from training.rollout.linear import Weight, dequantize
from training.rollout.sampling import SamplingRows, draw
from training.rollout.slots import Features, SlotTable
from training.serving.quantize import quantize_model, quantize_weight

SHAPES = {
    "135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
    "1.1b": LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, max_position_embeddings=2048,
    ),
    "tiny": LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    ),
}  # fmt: skip


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; NaN counts as infinite."""
    value = ((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-9)).item()
    return value if value == value else float("inf")


class Checks:
    """Runs checks, prints each, remembers failures."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def run(self, name: str, check: Callable[[], tuple[bool, dict[str, Any]]]) -> None:
        start = time.perf_counter()
        try:
            passed, facts = check()
        except Exception as error:  # the next check may still tell something
            import traceback

            passed, facts = (
                False,
                {"error": f"{type(error).__name__}: {error}"[-600:], "at": traceback.format_exc()[-900:]},
            )
        if not passed:
            self.failed.append(name)
        say(check=name, ok=passed, seconds=round(time.perf_counter() - start, 2), **facts)


# --- kernels against their PyTorch counterparts


def check_attention(device: str, dtype: torch.dtype, size: int, heads: int, kv: int, splits: int, alibi: bool) -> Any:
    torch.manual_seed(size + splits)
    n, slots_count, length = 5, 7, 300
    fused = torch.randn(n, heads + 2 * kv, size, device=device, dtype=dtype)
    q, k, v = fused[:, :heads], fused[:, heads : heads + kv], fused[:, heads + kv :]
    keys = torch.randn(slots_count, kv, length, size, device=device, dtype=dtype)
    values = torch.randn_like(keys)
    slots = torch.tensor([3, 0, 6, 1, 5], device=device)
    positions = torch.tensor([0, 1, 63, 130, 299], device=device)
    angle = torch.rand(length, size // 2, device=device) * 6
    rotary = None if alibi else (angle.cos().contiguous(), angle.sin().contiguous())
    slopes = alibi_slopes(heads).to(device) if alibi else None
    out_keys, out_values = keys.clone(), values.clone()
    actual = kernels.decode_attention(
        q, k, v, out_keys, out_values, slots, positions, scale=size**-0.5, rotary=rotary, slopes=slopes, splits=splits
    )
    wide = [t.double() if dtype == torch.float32 else t.float() for t in (q, k, v, keys, values)]
    table = None if rotary is None else tuple(t.to(wide[0].dtype) for t in rotary)
    expected = decode_attention_reference(
        *wide,
        slots,
        positions,
        scale=size**-0.5,
        rotary=table,
        slopes=slopes,  # type: ignore[arg-type]
    )
    error = max(distance(actual, expected), distance(out_keys, wide[3]), distance(out_values, wide[4]))
    return error < (1e-5 if dtype == torch.float32 else 1e-2), {"error": error}


def check_store(device: str, dtype: torch.dtype, size: int, heads: int, kv: int) -> Any:
    torch.manual_seed(size)
    t = 37
    fused = torch.randn(t, (heads + 2 * kv) * size, device=device, dtype=dtype)
    q, k, v = (part.view(t, -1, size) for part in fused.split([heads * size, kv * size, kv * size], dim=1))
    keys = torch.randn(5, kv, 64, size, device=device, dtype=dtype)
    caches = (keys, torch.randn_like(keys))
    slots = torch.tensor([i % 4 for i in range(t)], device=device)
    positions = torch.tensor([63 - i for i in range(t)], device=device)
    angle = torch.rand(64, size // 2, device=device) * 6
    rotary = (angle.cos().contiguous(), angle.sin().contiguous())
    actual = [cache.clone() for cache in caches]
    expected = [cache.clone() for cache in caches]
    q1, k1 = kernels.rotate_and_store(q, k, v, *actual, slots, positions, rotary)
    q2, k2 = (
        rotate(q, rotary[0][positions], rotary[1][positions]),
        rotate(k, rotary[0][positions], rotary[1][positions]),
    )
    expected[0][slots, :, positions], expected[1][slots, :, positions] = k2, v
    pairs = ((q1, q2), (k1, k2), (actual[0], expected[0]), (actual[1], expected[1]))
    error = max(distance(a, b) for a, b in pairs)
    return error < (1e-6 if dtype == torch.float32 else 4e-3), {"error": error}


def check_norm(device: str, dtype: torch.dtype, size: int, delta: bool) -> Any:
    torch.manual_seed(size)
    x, d = torch.randn(6, size, device=device, dtype=dtype), torch.randn(6, size, device=device, dtype=dtype)
    weight = torch.randn(size, device=device, dtype=dtype)
    total, out = kernels.add_rms_norm(x, d if delta else None, weight, 1e-5)
    expected = (x.float() + d.float()).to(dtype) if delta else x
    error = max(distance(total, expected), distance(out, rms_norm(expected, weight, 1e-5)))
    return error < (1e-5 if dtype == torch.float32 else 1e-2), {"error": error}


def check_silu(device: str, dtype: torch.dtype) -> Any:
    both = torch.randn(5, 2 * 1500, device=device, dtype=dtype)
    gate, up = both.split(1500, dim=1)
    error = distance(kernels.silu_mul(gate, up), torch.nn.functional.silu(gate.float()) * up.float())
    return error < (1e-5 if dtype == torch.float32 else 1e-2), {"error": error}


def check_gemv(bits: int, outputs: int, inputs: int, around: str) -> Any:
    torch.manual_seed(outputs + bits)
    rows = outputs * (2 if around == "gated" else 1)
    matrix = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16) / inputs**0.5
    bias = torch.randn(rows, device="cuda", dtype=torch.bfloat16)
    weight = Weight(16, matrix, bias) if bits == 16 else quantize_weight(matrix, bits, 128, bias)
    x = torch.randn(1, inputs, device="cuda", dtype=torch.bfloat16)
    norm = (torch.rand(inputs, device="cuda").bfloat16() + 0.5, 1e-5) if around in ("norm", "gated") else None
    residual = torch.randn(1, outputs, device="cuda", dtype=torch.bfloat16) if around == "residual" else None
    wide = x.double() if norm is None else rms_norm(x.double(), norm[0].double(), norm[1])
    expected = wide @ dequantize(weight, torch.float64).t() + bias.double()
    if around == "gated":
        expected = torch.nn.functional.silu(expected[:, :outputs]) * expected[:, outputs:]
    if residual is not None:
        expected += residual.double()
    errors = []
    for tile in one_row.TILES:
        out = one_row.gemv(
            x, weight, norm=norm, gated=around == "gated", residual=residual, out_dtype=torch.float32, tile=tile
        )
        errors.append(distance(out, expected))
    return max(errors) < (1e-4 if norm is None else 5e-3), {"error": max(errors)}


def check_one_row_attention(size: int, heads: int, kv: int) -> Any:
    torch.manual_seed(size)
    errors = []
    for position in (0, 7, 300, 1023):
        fused = torch.randn(1, heads + 2 * kv, size, device="cuda", dtype=torch.bfloat16)
        q, k, v = fused.split([heads, kv, kv], dim=1)
        caches = torch.randn(2, 3, kv, 1024, size, device="cuda", dtype=torch.bfloat16)
        wide = caches.float()
        angle = torch.rand(1024, size // 2, device="cuda") * 6
        rotary = (angle.cos().contiguous(), angle.sin().contiguous())
        at = (torch.tensor([1], device="cuda"), torch.tensor([position], device="cuda"))
        expected = decode_attention_reference(
            q.float(), k.float(), v.float(), wide[0], wide[1], *at, scale=size**-0.5, rotary=rotary
        )
        out = one_row.attention(q, k, v, caches[0], caches[1], *at, scale=size**-0.5, rotary=rotary)
        errors += [distance(out, expected), distance(caches, wide)]
    return max(errors) < 1e-2, {"error": max(errors)}


def check_matmul(device: str, dtype: torch.dtype, bits: int, rows: int, outputs: int, inputs: int) -> Any:
    torch.manual_seed(rows + bits)
    matrix = torch.randn(outputs, inputs, device=device, dtype=dtype) / inputs**0.5
    weight = quantize_weight(matrix, bits, 64, torch.randn(outputs, device=device, dtype=dtype))
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    assert weight.bias is not None
    expected = x.double() @ dequantize(weight, torch.float32).double().t() + weight.bias.double()
    error = distance(kernels_linear.quantized_matmul(x, weight), expected)
    return error < (1e-5 if dtype == torch.float32 else 1e-2), {"error": error}


class _Shape:
    blocks: tuple[()] = ()
    kv_heads = head_size = 1


def check_draw(device: str, features: Features) -> Any:
    torch.manual_seed(0)
    n, vocabulary = 6, 5000
    table = SlotTable(_Shape(), 8, 32, torch.float32, torch.device(device))  # type: ignore[arg-type]
    table.lengths[:] = torch.tensor([4, 9, 5, 7, 8, 3, 2, 6, 1])
    table.limits[:] = 10
    table.finished[:] = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 1])
    table.tokens[:] = torch.randint(0, vocabulary, table.tokens.shape, device=device)
    table.temperature[:] = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 1.0, 0.7, 1.0, 0.0])
    table.top_k[:] = torch.tensor([0, 0, 5, 0, 3, 0, 40, 0, 0])
    table.top_p[:] = torch.tensor([1.0, 1.0, 1.0, 0.3, 0.9, 0.5, 0.8, 1.0, 1.0])
    table.penalty[:] = 1.3 if features.penalised else 1.0
    table.seeds[:] = torch.randint(-(2**62), 2**62, (9,), device=device)
    slots = torch.tensor([0, 1, 2, 3, 4, 8], device=device)
    logits = torch.randn(n, vocabulary, device=device) * 3
    rows = SamplingRows(*(t[slots] for t in (table.temperature, table.top_k, table.top_p, table.penalty, table.seeds)))
    history = table.tokens[slots] if features.penalised else None
    tokens, logprobs = draw(logits, rows, table.lengths[slots], history=history, filtered=features.filtered)
    table.stop_ids[2, 3] = tokens[2]  # this row shall stop
    expected = copy.deepcopy(table)
    expected.commit(slots, expected.lengths[slots], tokens, logprobs)
    choice = table.choice(logits, slots, features) if features != Features() else None
    kernels_sampling.draw_and_commit(logits, choice, slots, table)
    alike = {
        name: bool(torch.equal(getattr(table, name)[:8], getattr(expected, name)[:8]))
        for name in ("lengths", "finished", "stopped")
    }
    alike["tokens"] = bool(torch.equal(table.tokens[:8, :32], expected.tokens[:8, :32]))
    error = (table.logprobs[:8, :32] - expected.logprobs[:8, :32]).abs().max().item()
    return all(alike.values()) and error < 1e-4, {"error": error, **alike}


def kernel_checks(checks: Checks, device: str) -> None:
    # Triton's interpreter has no bf16 arithmetic
    types = {"fp32": torch.float32, "half": torch.bfloat16 if device == "cuda" else torch.float16}
    for name, dtype in types.items():
        for size, heads, kv, splits, alibi in (
            (64, 9, 3, 1, False), (64, 32, 4, 8, False), (128, 8, 8, 2, False), (80, 4, 4, 4, False),
            (96, 6, 6, 1, True),
        ):  # fmt: skip
            label = f"attention {name} D{size} {heads}/{kv} splits {splits}{' alibi' if alibi else ''}"
            checks.run(label, lambda d=dtype, a=(size, heads, kv, splits, alibi): check_attention(device, d, *a))
        for size, heads, kv in ((64, 9, 3), (80, 4, 4)):
            checks.run(f"store {name} D{size}", lambda d=dtype, a=(size, heads, kv): check_store(device, d, *a))
        for size, delta in ((576, True), (2048, True), (100, False)):
            checks.run(f"norm {name} {size} {delta}", lambda d=dtype, a=(size, delta): check_norm(device, d, *a))
        checks.run(f"silu {name}", lambda d=dtype: check_silu(device, d))
        for bits in (8, 4):
            for rows, outputs, inputs in ((2, 960, 576), (48, 130, 256), (100, 64, 1536)):
                checks.run(
                    f"matmul {name} {bits} bits {rows}x{outputs}x{inputs}",
                    lambda d=dtype, a=(bits, rows, outputs, inputs): check_matmul(device, d, *a),
                )
    if device == "cuda":
        for bits in (16, 8, 4):
            for outputs, inputs, around in ((960, 576, "norm"), (70, 2048, "plain"), (576, 1536, "residual"),
                                            (1408, 2048, "gated")):  # fmt: skip
                checks.run(
                    f"one-row product {bits} bits {outputs}x{inputs} {around}",
                    lambda a=(bits, outputs, inputs, around): check_gemv(*a),
                )
        for size, heads, kv in ((64, 32, 4), (128, 8, 8), (64, 9, 3)):
            checks.run(
                f"one-row attention D{size} {heads}/{kv}", lambda a=(size, heads, kv): check_one_row_attention(*a)
            )
    for features in (Features(), Features(filtered=True), Features(filtered=True, penalised=True)):
        checks.run(f"draw {features}", lambda f=features: check_draw(device, f))


# --- the engine: CPU = eager = graph = transformers


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


# --- figures


def workload(batch: int, vocabulary: int) -> list[list[int]]:
    """Prompts of 40 to 126 tokens, mean 83 (one of 83 for a batch of one)."""
    lengths = [83] if batch == 1 else [40 + (i * 37) % 87 for i in range(batch)]
    return make_prompts(lengths, vocabulary)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    torch.cuda.synchronize()
    return result, time.perf_counter() - start


def bench_engine(shape: str, batch: int, bits: int, fuse: bool, new: int = 128) -> dict[str, Any]:
    torch.cuda.reset_peak_memory_stats()
    model = make(SHAPES[shape], "cuda", torch.bfloat16)
    if bits < 16:
        quantize_model(model, bits, 128)
    if fuse:
        fuse_projections(model)
    engine = RolloutEngine(model, max_batch=batch, max_length=512)
    tune_seconds = timed(engine.decoder().tune)[1] if batch == 1 else 0.0
    prompts, generation = workload(batch, SHAPES[shape].vocab_size), GenerationConfig(max_new_tokens=new)
    _, first = timed(lambda: engine.generate(prompts, generation))
    engine.generate(prompts, generation)
    times = [timed(lambda: engine.generate(prompts, generation))[1] for _ in range(3)]
    seconds = sorted(times)[1]
    decoder = engine.decoder()
    slots = list(range(batch))
    from training.rollout.slots import Request

    decoder.admit([Request(s, prompts[s], GenerationConfig(max_new_tokens=400), (), s) for s in slots])
    decoder.steps(slots, 8)
    _, steps = timed(lambda: decoder.steps(slots, 100))
    memory = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    return {
        "tokens_per_second": round(batch * new / seconds), "generate_s": round(seconds, 4), "first_s": round(first, 2),
        "step_ms": round(steps * 10, 4), "decode_tokens_per_second": round(batch * 100 / steps),
        "floor_ms_at_3TBps": round(memory / 3.0e9, 4), "weights_mib": round(memory / 2**20),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "tune_s": round(tune_seconds, 2),
        "tiles": [[*k[:4], *tile] for k, tile in one_row._best.items() if k[0] == bits][: 5 * (batch == 1)],
    }  # fmt: skip


def bench_transformers(shape: str, batch: int, cache: str, new: int = 64) -> dict[str, Any]:
    model = make(SHAPES[shape], "cuda", torch.bfloat16)
    prompts = workload(batch, SHAPES[shape].vocab_size)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device="cuda")
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device="cuda")
    options: dict[str, Any] = {"max_new_tokens": new, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    if cache == "static":
        options["cache_implementation"] = "static"
    first = timed(lambda: model.generate(ids, attention_mask=mask, **options))[1]
    seconds = timed(lambda: model.generate(ids, attention_mask=mask, **options))[1]
    return {"tokens_per_second": round(batch * new / seconds), "first_s": round(first, 2), "new_tokens": new}


def bench_steps_profile(shape: str, batch: int, bits: int) -> dict[str, Any]:
    """Where a decode step's device time goes (eager, so that kernels have names)."""
    from torch.profiler import ProfilerActivity, profile

    from training.rollout.slots import Request

    model = make(SHAPES[shape], "cuda", torch.bfloat16)
    if bits < 16:
        quantize_model(model, bits, 128)
    fuse_projections(model)
    decoder = RolloutEngine(model, max_batch=batch, max_length=512, graphs=False).decoder()
    prompts = workload(batch, SHAPES[shape].vocab_size)
    decoder.admit([Request(s, prompts[s], GenerationConfig(max_new_tokens=400), (), s) for s in range(batch)])
    decoder.steps(list(range(batch)), 4)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        decoder.steps(list(range(batch)), 10)
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    return {
        "device_us_per_step": round(sum(e.self_device_time_total for e in events) / 10, 1),
        "kernels": [[e.key[:60], e.count // 10, round(e.self_device_time_total / e.count, 2)] for e in events[:14]],
    }


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "135m-b128": lambda: bench_engine("135m", 128, 16, True),
    "135m-b128-unfused": lambda: bench_engine("135m", 128, 16, False),
    "135m-b1": lambda: bench_engine("135m", 1, 16, True),
    "1.1b-b128": lambda: bench_engine("1.1b", 128, 16, True),
    "1.1b-b1": lambda: bench_engine("1.1b", 1, 16, True),
    "1.1b-b1-int8": lambda: bench_engine("1.1b", 1, 8, True),
    "1.1b-b1-int4": lambda: bench_engine("1.1b", 1, 4, True),
    "1.1b-b64": lambda: bench_engine("1.1b", 64, 16, True),
    "1.1b-b64-int8": lambda: bench_engine("1.1b", 64, 8, True),
    "1.1b-b64-int4": lambda: bench_engine("1.1b", 64, 4, True),
    "135m-b64": lambda: bench_engine("135m", 64, 16, True),
    "hf-135m-b128-dynamic": lambda: bench_transformers("135m", 128, "dynamic"),
    "hf-135m-b1-dynamic": lambda: bench_transformers("135m", 1, "dynamic"),
    "hf-1.1b-b128-dynamic": lambda: bench_transformers("1.1b", 128, "dynamic"),
    "hf-1.1b-b1-dynamic": lambda: bench_transformers("1.1b", 1, "dynamic"),
    "hf-135m-b128-static": lambda: bench_transformers("135m", 128, "static"),
    "profile-135m-b128": lambda: bench_steps_profile("135m", 128, 16),
    "profile-1.1b-b128": lambda: bench_steps_profile("1.1b", 128, 16),
    "profile-1.1b-b1": lambda: bench_steps_profile("1.1b", 1, 16),
    "profile-1.1b-b1-int4": lambda: bench_steps_profile("1.1b", 1, 4),
    "tiny-b4": lambda: bench_engine("tiny", 4, 16, True, new=16),
}  # fmt: skip
DEFAULT_CASES = (
    "135m-b128,135m-b1,1.1b-b128,1.1b-b1,1.1b-b1-int8,1.1b-b1-int4,hf-135m-b128-dynamic,hf-135m-b1-dynamic,"
    "hf-1.1b-b128-dynamic,135m-b128-unfused,1.1b-b64-int4,profile-135m-b128,profile-1.1b-b1,profile-1.1b-b1-int4"
)


class Late(Exception):
    """A case ran past its limit."""


def bench(names: list[str], limit: int) -> None:
    def late(*_: object) -> None:
        raise Late(f"over {limit} s")

    signal.signal(signal.SIGALRM, late)
    for name in names:
        signal.alarm(limit)
        try:
            say(case=name, device=torch.cuda.get_device_name(), **CASES[name]())
        except Exception as error:  # the other cases still count
            say(case=name, error=f"{type(error).__name__}: {error}"[-500:])
        finally:
            signal.alarm(0)
        gc.collect()
        torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--selftest", action="store_true")
    parser.add_argument("--kernels", action="store_true", help="only the kernels' part of the self-test")
    parser.add_argument("--engine", action="store_true", help="only the engine's part of the self-test")
    parser.add_argument("--bench", action="store_true")
    parser.add_argument("--cases", default=DEFAULT_CASES, help=f"comma-separated: {', '.join(CASES)}")
    parser.add_argument("--limit", type=int, default=45, help="seconds a case")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    checks = Checks()
    if options.selftest or options.kernels:
        kernel_checks(checks, options.device)
    if options.selftest or options.engine:
        engine_checks(checks)
    if options.selftest or options.kernels or options.engine:
        say(summary="selftest", failed=checks.failed)
    if options.bench:
        bench(options.cases.split(","), options.limit)
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
