"""Says where a training step's time goes, and what single changes gain, in one process that compiles once.

Called as `python -m tests.bench.gpu_train --profile sft:1b:naive`. Prints a JSON line with milliseconds a step by kind
of kernel (torch.profiler over three steady steps) and the longest kernels, and one for each variant with tokens/s.
"""

from __future__ import annotations

import gc
import json
import re
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

KINDS = (
    ("attention forward", r"flash_fwd|fmha.*fwd|varlen_fwd|_attention_forward"),
    ("attention backward", r"flash_bwd|fmha.*bwd|dot_do_o|convert_d[qk]|_attention_\w+_gradient"),
    ("products", r"gemm|nvjet|xmma|cutlass|splitKreduce|aten::(add)?mm"),
    ("optimizer", r"_adamw|_square_sums|multi_tensor|FusedAdam|lpnorm"),
    ("head", r"triton.*(logsumexp|log_softmax|exp_|online_softmax)"),
    ("compiled blocks", r"^triton_"),
    ("copies", r"memcpy|memset|copy_kernel|CatArray"),
    ("embedding", r"embedding|index_select|indexSelect|radixSort|DeviceRadix|DeviceScan|DeviceReduce|thrust|cub"),
)
VARIANTS = ("torch's optimizer", "cublaslt", "chunk 16384", "again", "208 slots", "tuned")


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel, re.IGNORECASE)), "other")


def padded_slots(batch: Any, slots: int) -> Any:
    """The same batch with `slots` entries for documents, the last ones empty."""
    bounds = batch.cu_seqlens
    missing = slots + 1 - len(bounds)
    return batch if missing <= 0 else replace(batch, cu_seqlens=torch.cat([bounds, bounds[-1:].expand(missing)]))


class StepBench:
    """One model with its optimizer and a few batches, stepped as the trainer does it."""

    def __init__(self, shape: dict[str, Any], tokens: int, batches: list[Any], strategy: Any, options: Any) -> None:
        from transformers import LlamaConfig

        from training.config.strategies import OptimizerConfig
        from training.models.compile import speed_up_blocks
        from training.models.heads import LanguageModelLoss
        from training.models.load import from_config

        self.strategy, self.batches, self.on_gpu = strategy, batches, strategy.device.type == "cuda"
        torch.manual_seed(0)
        with torch.device(strategy.device):
            self.model = from_config(LlamaConfig(**shape))
        speed_up_blocks(self.model, compiled=self.on_gpu)
        self.module = LanguageModelLoss(self.model, options)
        self.trained = strategy.prepare(self.module, OptimizerConfig(lr=1e-5), lambda step: 1.0)

    def step(self, number: int) -> Tensor:
        batch = self.batches[number % len(self.batches)].to(self.strategy.device, non_blocking=True)
        with self.strategy.accumulate(self.trained, last=True):
            loss = self.trained.module(batch)
            self.strategy.backward(self.trained, loss / batch.num_targets)
        self.strategy.step(self.trained)
        found: Tensor = loss.detach()
        return found

    def sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def timed(self, name: str, steps: int, warmup: int = 2) -> dict[str, Any]:
        began = time.perf_counter()
        for number in range(warmup):
            self.step(number)
        self.sync()
        started = time.perf_counter()
        for number in range(steps):
            loss = self.step(number)
        launched = time.perf_counter() - started
        self.sync()
        seconds = time.perf_counter() - started
        real = sum(self.batches[i % len(self.batches)].num_tokens for i in range(steps))
        return {
            "variant": name, "tokens_per_second": round(real / seconds), "step_ms": round(1000 * seconds / steps, 2),
            "launched_ms": round(1000 * launched / steps, 2), "loss": float(loss),
            "warmup_s": round(started - began, 1),
        }  # fmt: skip

    def profile(self, steps: int) -> dict[str, Any]:
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        activity = ProfilerActivity.CUDA if self.on_gpu else ProfilerActivity.CPU
        with profile(activities=[activity], acc_events=True) as seen:
            for number in range(steps):
                self.step(number)
            self.sync()
        wanted = DeviceType.CUDA if self.on_gpu else DeviceType.CPU
        events = [event for event in seen.events() if event.device_type == wanted]
        kinds: dict[str, float] = defaultdict(float)
        kernels: dict[str, list[float]] = defaultdict(list)
        covered, first, last = 0.0, None, 0.0
        for event in sorted(events, key=lambda each: each.time_range.start):
            start, end = event.time_range.start, event.time_range.end
            kinds[kind_of(event.name)] += end - start
            kernels[event.name].append(end - start)
            first = start if first is None else first
            covered += max(0.0, end - max(start, last))
            last = max(last, end)
        span = last - (first or 0.0)
        scale = 1 / 1000 / steps
        longest = sorted(kernels.items(), key=lambda each: -sum(each[1]))[:40]
        return {
            "profile_ms_a_step": {kind: round(total * scale, 2) for kind, total in sorted(kinds.items())},
            "span": round(span * scale, 2), "idle": round((span - covered) * scale, 2),
            "kernels": [[name[:110], len(t) // steps, round(sum(t) * scale, 2)] for name, t in longest],
        }  # fmt: skip


def run(case: str, options: dict[str, Any], shapes: dict[str, Any], make_loader: Any, limit: float) -> None:
    """One profile and as many variants as fit into `limit` seconds."""
    began = time.monotonic()
    from training.config.strategies import StrategyConfig
    from training.models.compile import use_fast_matmul
    from training.models.heads import HeadOptions
    from training.strategies.select import open_strategy

    _, shape, name = case.split(":")[:3]
    wanted = options["variants"]
    use_fast_matmul()
    on_gpu = torch.cuda.is_available()
    strategy = open_strategy(StrategyConfig(name=name), precision="bf16" if on_gpu else "fp32")
    loader = make_loader("sft", shapes[shape]["vocab_size"], options["tokens"], 1, 8)
    batches = [step.micro_batches[0] for step in loader.steps(4)]
    batches = [batch.pin_memory() if on_gpu else batch for batch in batches]
    head = HeadOptions(chunk=options["chunk"], compiled=on_gpu)
    bench = StepBench(shapes[shape], options["tokens"], batches, strategy, head)
    steps = options["steps"]

    def tell(**values: Any) -> None:
        print(json.dumps({"case": case, **values, "at_s": round(time.monotonic() - began, 1)}), flush=True)

    tell(**bench.timed("as it is", steps, warmup=4), slots=len(batches[0].cu_seqlens) - 1)
    tell(**bench.profile(3))
    adam, module = bench.trained.optimizer, bench.module
    for variant in VARIANTS:
        if wanted and variant not in wanted:
            continue
        if time.monotonic() - began > limit - (30 if variant in ("208 slots", "tuned") else 8):
            tell(variant=variant, left_out="no time")
            continue
        kept = list(adam.kernels), module.options, bench.batches
        try:
            apply(variant, bench, head, on_gpu)
            tell(**bench.timed(variant, steps))
        except Exception as error:
            tell(variant=variant, error=f"{type(error).__name__}: {error}"[:400])
            bench.trained.optimizer.zero_grad()
        undo(variant, on_gpu)
        adam.kernels, module.options, bench.batches = kept
        gc.collect()
    if on_gpu:
        tell(peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2), device=torch.cuda.get_device_name())
    strategy.close()


def apply(variant: str, bench: StepBench, head: Any, on_gpu: bool) -> None:
    """Change one thing."""
    adam = bench.trained.optimizer
    if variant == "torch's optimizer":
        adam.kernels = [None] * len(adam.kernels)
    elif variant == "cublaslt" and on_gpu:
        torch.backends.cuda.preferred_blas_library("cublaslt")
    elif variant == "chunk 16384":
        bench.module.options = replace(head, chunk=16384)
    elif variant == "208 slots":
        bench.batches = [padded_slots(batch, 208) for batch in bench.batches]
    elif variant == "tuned":
        torch._dynamo.reset()
        torch._inductor.config.coordinate_descent_tuning = True


def undo(variant: str, on_gpu: bool) -> None:
    """What `run` can't put back by itself."""
    if variant == "cublaslt" and on_gpu:
        torch.backends.cuda.preferred_blas_library("default")
