"""Checks the kernels of generation against PyTorch in higher precision (gpu_rollout.py --kernels)."""

from __future__ import annotations

import copy
import json
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from training.rollout import kernels, kernels_linear, kernels_sampling, one_row
from training.rollout.attention import decode_attention_reference, rotate
from training.rollout.cache import LayerCache
from training.rollout.families import alibi_slopes, rms_norm
from training.rollout.linear import Weight, dequantize
from training.rollout.sampling import SamplingRows, draw
from training.rollout.slots import Features, SlotTable
from training.serving.quantize import quantize_weight


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
            passed, facts = (
                False,
                {"error": f"{type(error).__name__}: {error}"[-600:], "at": traceback.format_exc()[-900:]},
            )
        if not passed:
            self.failed.append(name)
        say(check=name, ok=passed, seconds=round(time.perf_counter() - start, 2), **facts)


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
        q,
        k,
        v,
        LayerCache(out_keys, out_values, slots, positions),
        scale=size**-0.5,
        rotary=rotary,
        slopes=slopes,
        splits=splits,
    )
    q, k, v, *wide = [t.double() if dtype == torch.float32 else t.float() for t in (q, k, v, keys, values)]
    table = None if rotary is None else tuple(t.to(q.dtype) for t in rotary)
    expected = decode_attention_reference(
        q,
        k,
        v,
        LayerCache(*wide, slots, positions),
        scale=size**-0.5,
        rotary=table,
        slopes=slopes,  # type: ignore[arg-type]
    )
    error = max(distance(actual, expected), distance(out_keys, wide[0]), distance(out_values, wide[1]))
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
    q1, k1 = kernels.rotate_and_store(q, k, v, LayerCache(*actual, slots, positions), rotary)
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
            q.float(), k.float(), v.float(), LayerCache(*wide, *at), scale=size**-0.5, rotary=rotary
        )
        out = one_row.attention(q, k, v, LayerCache(*caches, *at), scale=size**-0.5, rotary=rotary)
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


def check_draw(device: str, features: Features, unscaled: bool = False) -> Any:
    torch.manual_seed(0)
    n, vocabulary = 6, 5000
    table = SlotTable(_Shape(), 8, 32, torch.float32, torch.device(device), unscaled=unscaled)  # type: ignore[arg-type]
    table.lengths[:] = torch.tensor([4, 9, 5, 7, 8, 3, 2, 6, 1])
    table.limits[:] = 10
    table.finished[:] = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 1])
    table.tokens[:] = torch.randint(0, vocabulary, table.tokens.shape, device=device)
    table.temperature[:] = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 1.0, 0.7, 1.0, 0.0])
    table.top_k[:] = torch.tensor([0, 0, 5, 0, 3, 0, 40, 0, 0])
    table.top_p[:] = torch.tensor([1.0, 1.0, 1.0, 0.3, 0.9, 0.5, 0.8, 1.0, 1.0])
    table.min_p[:] = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.2, 0.0, 0.0])
    table.penalty[:] = 1.3 if features.penalised else 1.0
    table.seeds[:] = torch.randint(-(2**62), 2**62, (9,), device=device)
    slots = torch.tensor([0, 1, 2, 3, 4, 8], device=device)
    logits = torch.randn(n, vocabulary, device=device) * 3
    options = (table.temperature, table.top_k, table.top_p, table.min_p, table.penalty, table.seeds)
    rows = SamplingRows(*(option[slots] for option in options))
    history = table.tokens[slots] if features.penalised else None
    tokens, logprobs = draw(
        logits, rows, table.lengths[slots], history=history, filtered=features.filtered, unscaled=unscaled
    )
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
        for own in (False, True):
            label = f"draw {features}{', log-probs of the model' if own else ''}"
            checks.run(label, lambda f=features, own=own: check_draw(device, f, own))
