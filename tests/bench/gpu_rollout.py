"""Measures generation on one GPU: first that kernels and graphs are right (--selftest), then how fast (--bench).

python tests/bench/gpu_rollout.py --selftest
python tests/bench/gpu_rollout.py --bench [--cases 135m-b128,…] [--limit 40]
Prints one JSON line per result. On a machine without a GPU, `TRITON_INTERPRET=1 … --kernels --device cpu` runs the
kernels' checks in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import LlamaConfig

from tests.bench.gpu_engine import engine_checks, make, make_prompts
from tests.bench.gpu_kernels import Checks, kernel_checks, say
from training.config.generation import GenerationConfig
from training.rollout import RolloutEngine, fuse_projections, one_row
from training.serving.quantize import quantize_model

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
