"""Times attention within the documents of a packed row, forward and backward, by every means that may do it.

One JSON line per variant and shape: milliseconds, TFLOP/s (the scores a document needs, not what a kernel pads them
to) and the largest error beside fp32 attention of each document, as a part of the largest value. A variant that fails
says why, and the others go on. `--sweep` times the candidates for the tiles of our own kernels.

    python -m tests.bench.gpu_attention --limit 90 --sweep
    TRITON_INTERPRET=1 python -m tests.bench.gpu_attention --cpu
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.bench.gpu_train import MAX_LENGTH, synthetic_loader
from training.models import attention, attention_kernels
from training.models.attention_kernels import Plan, Tiles, list_blocks

SHAPES = {"32/4x64": (32, 4, 64), "9/3x64": (9, 3, 64), "32/8x128": (32, 8, 128)}
"""Query heads, key heads, head dimension: of 1.1B, of 135M, and of 8B models."""
VARIANTS = ("own", "today", "exact", "classes 2", "classes 3", "cudnn", "cudnn expanded", "flex", "flex 64", "flex tma")
SWEEP: dict[int, dict[str, tuple[tuple[int, int, int, int], ...]]] = {
    64: {
        "forward": (
            (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (128, 128, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2),
            (128, 64, 4, 2), (128, 32, 4, 3),
        ),
        "query_gradient": (
            (128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 4, 3), (64, 64, 4, 3), (64, 64, 4, 2), (64, 128, 4, 2),
            (128, 128, 8, 2), (64, 32, 4, 3),
        ),
        "key_gradient": (
            (64, 128, 8, 2), (64, 128, 8, 3), (32, 128, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (32, 64, 4, 3),
            (128, 128, 8, 2), (32, 128, 8, 3),
        ),
    },
    128: {
        "forward": ((128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2)),
        "query_gradient": ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 3), (128, 32, 8, 3)),
        "key_gradient": ((64, 128, 8, 2), (32, 128, 8, 2), (32, 64, 4, 3), (64, 64, 8, 2), (32, 128, 8, 3)),
    },
}  # fmt: skip
"""(queries, keys, warps, stages) by head dimension and kernel."""


@dataclass(frozen=True)
class Case:
    """One shape with its inputs. q, dout [t, h, e], k, v [t, h_kv, e]; lengths: of all documents, pad tail included."""

    name: str
    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    bounds: Tensor
    lengths: tuple[int, ...]
    repeats: int

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def exact(self) -> Tensor:
        """[n + 1] bounds without empty documents."""
        return self.bounds[: len(self.lengths) + 1]

    @property
    def flops(self) -> float:
        """Operations of the forward pass: two products over half of each document's square."""
        return 2.0 * sum(length**2 for length in self.lengths) * self.q.shape[1] * self.q.shape[2]


def make_case(name: str, shape: tuple[int, int, int], bounds: Tensor, device: str, repeats: int) -> Case:
    heads, kv_heads, size = shape
    tokens, spans = int(bounds[-1]), bounds.diff()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    made = [torch.randn(tokens, number, size, device=device) for number in (heads, kv_heads, kv_heads, heads)]
    q, k, v, dout = (each.to(dtype) for each in made)
    q, k, v = (each.requires_grad_() for each in (q, k, v))
    return Case(name, q, k, v, dout, bounds.to(device), tuple(spans[spans > 0].tolist()), repeats)


def document_bounds(tokens: int, tiny: bool) -> Tensor:
    """cu_seqlens of a row as training packs it, padded with empty documents."""
    if tiny:
        return torch.tensor([0, 1, 64, 128, 193, 323, 512, 512, 512], dtype=torch.int32)
    bounds: Tensor = next(synthetic_loader("sft", 512, tokens, 1, 1).steps(1)).micro_batches[0].cu_seqlens
    return bounds


def reference(case: Case) -> list[Tensor]:
    """out, dq, dk, dv in fp32, one document after another."""
    found: list[list[Tensor]] = []
    group = case.q.shape[1] // case.k.shape[1]
    for start, stop in pairwise(case.exact.tolist()):
        q, k, v = (each.detach()[start:stop].float().transpose(0, 1).requires_grad_() for each in case.inputs)
        keys, values = (each.repeat_interleave(group, 0) for each in (k, v))
        scores = (q @ keys.transpose(1, 2)) * q.shape[2] ** -0.5
        ahead = torch.ones(stop - start, stop - start, dtype=torch.bool, device=q.device).triu(1)
        out = scores.masked_fill_(ahead, float("-inf")).softmax(-1) @ values
        dout = case.dout[start:stop].float().transpose(0, 1)
        found.append([each.transpose(0, 1) for each in (out.detach(), *torch.autograd.grad(out, (q, k, v), dout))])
    return [torch.cat(pieces) for pieces in zip(*found, strict=True)]


def errors(got: Any, wanted: list[Tensor]) -> dict[str, float]:
    """Largest difference by largest value; NaN stays NaN."""
    return {
        name: float(f"{float((one.detach().float() - two).abs().max() / two.abs().max()):.2e}")
        for name, one, two in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True)
    }


def milliseconds(call: Callable[[], Any], case: Case) -> float:
    """Median over rounds of the mean of a row of calls, queued behind a pause so that launching costs nothing."""
    on_gpu = case.q.is_cuda
    call()
    rounds = []
    for _ in range(3 if on_gpu else 1):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda._sleep(20_000_000)
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(case.repeats):
                call()
            stop.record()
            torch.cuda.synchronize()
            rounds.append(start.elapsed_time(stop) / case.repeats)
        else:
            began = time.perf_counter()
            call()
            rounds.append(1000 * (time.perf_counter() - began))
    return statistics.median(rounds)


# -- the variants: each a function of a case that gives what to call, (q, k, v) → out -------------------------------

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def varlen(bounds: Tensor, longest: int) -> Attend:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not q.is_cuda:
            return attention._each_document(q, k, v, bounds, 0.0, None, None)
        out: Tensor = attention._varlen(q, k, v, bounds, longest, None, (-1, 0))
        return out

    return call


def by_length(case: Case, limits: tuple[int, ...]) -> Case:
    """The case with its documents laid class by class, the shortest first, as a packer might lay them."""
    order = sorted(range(len(case.lengths)), key=lambda i: sum(case.lengths[i] > limit for limit in limits))
    lengths = tuple(case.lengths[i] for i in order)
    starts = case.exact.tolist()
    where = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order]).to(case.q.device)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=case.q.device)
    q, k, v = (each.detach()[where].requires_grad_() for each in case.inputs)
    return replace(case, q=q, k=k, v=v, dout=case.dout[where], bounds=bounds, lengths=lengths)


def classes(case: Case, limits: tuple[int, ...]) -> Attend:
    """One call for each class of lengths; the case's documents lie class by class."""
    calls, tokens, first = [], [], 0
    for low, high in pairwise((0, *limits, MAX_LENGTH)):
        count = sum(low < length <= high for length in case.lengths)
        if count:
            edges = case.bounds[first : first + count + 1] - case.bounds[first]
            calls.append(varlen(edges, high))
            tokens.append(int(edges[-1]))
            first += count

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(calls, q.split(tokens), k.split(tokens), v.split(tokens), strict=True)
        return torch.cat([attend(*part) for attend, *part in parts])

    return call


def flex(case: Case, **options: Any) -> Attend:
    """FlexAttention over blocks of 128 found from documents' bounds: nothing of size t × t."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    tokens, block = case.q.shape[0], 128
    document = torch.searchsorted(case.bounds, torch.arange(tokens, device=case.q.device), right=True).to(torch.int32)
    first, last = document[::block], document[block - 1 :: block]
    before = torch.ones(len(first), len(first), dtype=torch.bool, device=case.q.device).tril()
    whole = (first[None, :] == last[:, None]) & before.tril(-1)
    some = (last[None, :] >= first[:, None]) & before & ~whole

    def entries(blocks: Tensor) -> tuple[Tensor, Tensor]:
        count = blocks.sum(1, dtype=torch.int32)[None, None]
        return count, blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)[None, None]

    def inside(b: Tensor, h: Tensor, q_at: Tensor, k_at: Tensor) -> Tensor:
        return (document[q_at] == document[k_at]) & (q_at >= k_at)

    mask = BlockMask.from_kv_blocks(*entries(some), *entries(whole), BLOCK_SIZE=block, mask_mod=inside)
    compiled = torch.compile(flex_attention, dynamic=False) if case.q.is_cuda else flex_attention

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
        out = compiled(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=options or None)
        result: Tensor = out[0].transpose(0, 1)
        return result

    return call


class CuDNN(torch.autograd.Function):
    """cuDNN's variable-length attention through the operators that torch has for it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
        scale = q.shape[2] ** -0.5
        found = torch.ops.aten._cudnn_attention_forward(
            q, k, v, None, bounds, bounds, longest, longest, True, 0.0, True, False, scale=scale
        )
        ctx.save_for_backward(q, k, v, found[0], found[1], bounds, found[6], found[7])
        ctx.longest, ctx.scale = longest, scale
        out: Tensor = found[0]
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, bounds, seed, offset = ctx.saved_tensors
        gradients = torch.ops.aten._cudnn_attention_backward(
            dout.contiguous(), q, k, v, out, lse, seed, offset, None, bounds, bounds, ctx.longest, ctx.longest,
            0.0, True, scale=ctx.scale,
        )  # fmt: skip
        return *gradients[:3], None, None


def cudnn(case: Case, expand: bool) -> Attend:
    group = case.q.shape[1] // case.k.shape[1] if expand else 1

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if group > 1:
            k, v = (each.repeat_interleave(group, 1) for each in (k, v))
        out: Tensor = CuDNN.apply(q, k, v, case.exact, MAX_LENGTH)
        return out

    return call


def own(case: Case) -> Attend:
    work = attention_kernels.list_work(case.bounds, case.q.shape[0], case.q.shape[2])

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attention_kernels.document_attention(q, k, v, *work, q.shape[2] ** -0.5)[0]
        return out

    return call


def measure(name: str, case: Case, wanted: list[Tensor]) -> dict[str, Any]:
    """Time and error of one variant."""
    started = time.monotonic()
    if name.startswith("classes"):
        limits = (512,) if name.endswith("2") else (256, 1024)
        case = by_length(case, limits)
        wanted = reference(case)
        attend = classes(case, limits)
    else:
        attend = {
            "own": partial(own, case),
            "today": partial(varlen, case.bounds, MAX_LENGTH),
            "exact": partial(varlen, case.exact, MAX_LENGTH),
            "cudnn": partial(cudnn, case, False),
            "cudnn expanded": partial(cudnn, case, True),
            "flex": partial(flex, case),
            "flex 64": partial(flex, case, fwd_BLOCK_M=64, fwd_BLOCK_N=64, fwd_num_warps=4, fwd_num_stages=3),
            "flex tma": partial(flex, case, USE_TMA=True),
        }[name]()
    out = attend(*case.inputs)
    error = errors((out, *torch.autograd.grad(out, case.inputs, case.dout, retain_graph=True)), wanted)
    ready = time.monotonic() - started
    forward = milliseconds(lambda: attend(*case.inputs), case)
    backward = milliseconds(lambda: torch.autograd.grad(out, case.inputs, case.dout, retain_graph=True), case)
    return {
        "variant": name, "shape": case.name, "forward_ms": round(forward, 3), "backward_ms": round(backward, 3),
        "both_ms": round(forward + backward, 3), "forward_tflops": round(case.flops / forward / 1e9),
        "backward_tflops": round(2.5 * case.flops / backward / 1e9), "errors": error, "ready_s": round(ready, 1),
    }  # fmt: skip


def run_kernel(kernel: str, tiles: Tiles, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, extra: Any) -> Any:
    """A closure that runs one of our kernels. extra: out, dout, lse, delta."""
    out, dout, lse, delta = extra
    of_keys = kernel == "key_gradient"
    work = list_blocks(bounds, q.shape[0], tiles.keys if of_keys else tiles.queries, of_keys=of_keys)
    scale = q.shape[2] ** -0.5
    if kernel == "forward":
        return partial(attention_kernels.run_forward, q, k, v, work, scale, tiles)
    if kernel == "query_gradient":
        return partial(attention_kernels.run_query_gradient, q, k, v, out, dout, lse, work, scale, tiles)
    return partial(attention_kernels.run_key_gradient, q, k, v, dout, lse, delta, work, scale, tiles)


def compile_one(shape: tuple[int, int, int], kernel: str, tiles: Tiles) -> None:
    """In a process of its own: leaves a kernel in Triton's cache on disk."""
    heads, kv_heads, size = shape
    q, k = (torch.zeros(1024, number, size, device="cuda", dtype=torch.bfloat16) for number in (heads, kv_heads))
    lse = torch.zeros(heads, 1024, device="cuda")
    bounds = torch.tensor([0, 1024], device="cuda", dtype=torch.int32)
    with suppress(Exception):  # is told where it is timed
        run_kernel(kernel, tiles, q, k, k, bounds, (q, q, lse, lse))()
        torch.cuda.synchronize()


def compile_all(shapes: list[str], sweeping: bool) -> float:
    """Seconds to compile, several at a time, what will be timed. Comes before this process uses the device."""
    began = time.monotonic()
    jobs = []
    for name in shapes:
        plan = attention_kernels.PLANS[SHAPES[name][2]]
        for kernel in ("forward", "query_gradient", "key_gradient"):
            swept = SWEEP[SHAPES[name][2]][kernel] if sweeping else ()
            jobs += [(SHAPES[name], kernel, tiles) for tiles in {getattr(plan, kernel), *(Tiles(*t) for t in swept)}]
    with ProcessPoolExecutor(12, mp_context=multiprocessing.get_context("fork")) as pool:
        for done in [pool.submit(compile_one, *job) for job in jobs]:
            with suppress(Exception):
                done.result(timeout=60)
    return time.monotonic() - began


def sweep(case: Case, wanted: list[Tensor], left: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """One line for each candidate of each of our kernels, then the best of each together as the plan from here on."""
    size = case.q.shape[2]
    q, k, v = (each.detach() for each in case.inputs)
    plan = attention_kernels.PLANS[size]
    out, lse = run_kernel("forward", plan.forward, q, k, v, case.bounds, (None, None, None, None))()
    _, delta = run_kernel("query_gradient", plan.query_gradient, q, k, v, case.bounds, (out, case.dout, lse, None))()
    best: dict[str, tuple[float, Tiles]] = {}
    for number, (kernel, candidates) in enumerate(SWEEP[size].items()):
        for candidate in candidates:
            tiles = Tiles(*candidate)
            line: dict[str, Any] = {"sweep": kernel, "shape": case.name, "tiles": candidate}
            if left() < 3:
                yield {**line, "left_out": "no time"}
                continue
            try:
                began = time.monotonic()
                call = run_kernel(kernel, tiles, q, k, v, case.bounds, (out, case.dout, lse, delta))
                error = float((call()[0].float() - wanted[number]).abs().max() / wanted[number].abs().max())
                line["ready_s"] = round(time.monotonic() - began, 1)
                line["ms"], line["error"] = round(milliseconds(call, case), 3), float(f"{error:.2e}")
                if error < 0.02 and line["ms"] < best.get(kernel, (1e9, tiles))[0]:
                    best[kernel] = line["ms"], tiles
            except Exception as failure:
                line["failed"] = f"{type(failure).__name__}: {failure}"[:300]
            yield line
    if len(best) == 3:
        yield {"best": case.name, "plan": {kernel: [ms, str(tiles)] for kernel, (ms, tiles) in best.items()}}
        attention_kernels.PLANS[size] = Plan(*(best[kernel][1] for kernel in SWEEP[size]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=90, help="seconds; what doesn't fit is left out")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--sweep", action="store_true", help="tiles of our kernels")
    parser.add_argument("--cpu", action="store_true", help="tiny, to see it work; with TRITON_INTERPRET=1")
    arguments = parser.parse_args()
    began, on_gpu = time.monotonic(), not arguments.cpu

    def left() -> float:
        return float(arguments.limit) - (time.monotonic() - began)

    def tell(**values: Any) -> None:
        print(json.dumps({**values, "at_s": round(time.monotonic() - began, 1)}), flush=True)

    if on_gpu:
        tell(compiled_s=round(compile_all(arguments.shapes, arguments.sweep), 1))
    bounds = document_bounds(arguments.tokens, arguments.cpu)
    cases: dict[str, tuple[Case, list[Tensor]]] = {}
    for name in arguments.shapes:
        heads, kv_heads, size = SHAPES[name]
        shape = (heads, kv_heads, size) if on_gpu else (heads // kv_heads, 1, size)
        case = make_case(name, shape, bounds, "cuda" if on_gpu else "cpu", arguments.repeats)
        cases[name] = case, reference(case)
        tell(shape=name, tokens=int(bounds[-1]), documents=len(case.lengths), slots=len(bounds) - 1,
             forward_gflop=round(case.flops / 1e9, 1))  # fmt: skip

    def run(name: str, variant: str, needed: float = 4) -> None:
        if left() < needed:
            tell(variant=variant, shape=name, left_out="no time")
            return
        try:
            tell(**measure(variant, *cases[name]))
        except Exception as failure:
            tell(variant=variant, shape=name, failed=f"{type(failure).__name__}: {failure}"[:600])

    quick = [variant for variant in arguments.variants if not variant.startswith("flex")]
    for variant in quick:
        for name in cases:
            run(name, variant)
    swept: set[int] = set()
    for name, (case, wanted) in cases.items() if arguments.sweep and on_gpu else ():
        if case.q.shape[2] in swept:
            continue
        swept.add(case.q.shape[2])
        try:
            for line in sweep(case, wanted, left):
                tell(**line)
        except Exception as failure:
            tell(sweep=name, failed=f"{type(failure).__name__}: {failure}"[:600])
    for name in cases if swept else ():
        run(name, "own")
    if on_gpu:
        cost = milliseconds(lambda: list_blocks(case.bounds, case.q.shape[0], 128), case)
        tell(list_blocks_ms=round(cost, 3), device=torch.cuda.get_device_name(), torch=torch.__version__)
    for name in cases:
        for variant in arguments.variants:
            if variant.startswith("flex"):
                run(name, variant, 20 if on_gpu else 4)


if __name__ == "__main__":
    main()
