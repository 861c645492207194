"""One-row decoding on an NVIDIA GPU: products with RMSNorm, SwiGLU, bias and residual inside, and attention.

At one row a step is bound by reading the weights and by the seams between kernels; one_row.cu says how both are met.
bf16 activations only: everything else takes the ways that serve any number of rows.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from training.rollout import cuda_runtime
from training.rollout.cache import LayerCache

if TYPE_CHECKING:
    from training.rollout.linear import Weight

ATTEND_THREADS = 512
MOST_SPLITS = 8
"""Above this many splits (2,048 cached tokens and more) the kernel of many blocks a head is faster."""


class Tile(NamedTuple):
    """How a product is cut among warps, and how much is under way at once."""

    along: int  # warps of a block that share the inputs
    across: int  # warps of a block, or such teams of warps, that share the outputs, 16 each
    depth: int  # spans of 64 bytes a row that a lane has asked for ahead of their use
    resident: int  # blocks that shall fit on a multiprocessor together: limits their registers


class Traits(NamedTuple):
    """What a product takes in besides the matrix."""

    norm: bool = False
    gated: bool = False
    residual: bool = False
    wide: bool = False  # fp32 out


TILES = tuple(
    Tile(*tile)
    for tile in (
        (8, 1, 4, 1), (4, 2, 4, 1), (4, 2, 4, 3), (4, 1, 4, 6), (4, 1, 8, 1), (16, 1, 2, 2), (16, 1, 4, 1),
    )
)  # fmt: skip
DEFAULT_TILE = TILES[0]
FETCHED = 8 << 20
"""Most bytes that attention brings into the cache for the products after it: what the memory gives meanwhile."""
FETCH = 8192
"""Bytes that one warp of attention brings into the cache ahead (FETCH in one_row.cu)."""
_best: dict[tuple[object, ...], Tile] = {}


@functools.cache
def source() -> str:
    return Path(__file__).with_name("one_row.cu").read_text("utf-8")


@functools.cache
def _kernel(name: str, device: torch.device, macros: cuda_runtime.Macros) -> cuda_runtime.Kernel:
    return cuda_runtime.Kernel(source(), name, macros, device)


def serves(x: Tensor, weight: Weight | None) -> bool:
    """Whether `gemv` can do this product for a row like x (on its device, of its type; its length does not count)."""
    if weight is None or x.shape[0] != 1 or not x.is_cuda or x.dtype != torch.bfloat16:
        return False
    return fits(weight) and cuda_runtime.available()


def fits(weight: Weight) -> bool:
    """Whether the weight's shape and type are ones that the kernel reads: whole spans of 64 bytes a row."""
    if weight.bits == 16 and weight.data.dtype != torch.bfloat16:
        return False
    return weight.inputs % {4: 32, 8: 64, 16: 32}[weight.bits] == 0


def gemv(
    x: Tensor,
    weight: Weight,
    *,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    tile: Tile | None = None,
) -> Tensor:
    """One row times a weight's transpose: f(x) [1, K] @ [N, K]^T (+ bias) (+ residual) -> [1, N] in bf16 or fp32.

    f is RMSNorm with `norm` = (weight [K], eps), or nothing. With `gated` the weight's first half of rows gives g, the
    second u, and the result [1, N / 2] is silu(g) * u. Sums are fp32.
    """
    inputs, outputs = weight.inputs, weight.outputs // (2 if gated else 1)
    if not fits(weight) or x.shape != (1, inputs):
        raise ValueError(f"the one-row product takes no {weight.bits}-bit weight of {inputs} inputs by {list(x.shape)}")
    out = torch.empty((1, outputs), dtype=out_dtype, device=x.device)
    traits = Traits(norm is not None, gated, residual is not None, out_dtype == torch.float32)
    tile = tile or _best.get(_product(inputs, weight, traits), DEFAULT_TILE)
    kernel = _kernel("gemv", x.device, _macros(inputs, weight, traits, tile))
    blocks = -(-outputs // ((8 if gated else 16) * tile.across))
    none = x  # a pointer that the kernel does not read
    kernel.launch(
        blocks, 32 * tile.along * tile.across, x, none if norm is None else norm[0], weight.data,
        none if weight.scale is None else weight.scale, none if weight.offset is None else weight.offset,
        none if weight.bias is None else weight.bias, none if residual is None else residual, out,
        ctypes.c_int(outputs), 0.0 if norm is None else norm[1],
    )  # fmt: skip
    return out


def attends(q: Tensor, key_cache: Tensor, slopes: Tensor | None, splits: int) -> bool:
    """Whether `attention` can serve this step."""
    size = q.shape[2]
    return (
        q.shape[0] == 1 and q.is_cuda and q.dtype == key_cache.dtype == torch.bfloat16 and slopes is None
        and q.stride(1) == size in (32, 64, 128, 256) and splits <= MOST_SPLITS and cuda_runtime.available()
    )  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    *,
    scale: float,
    rotary: tuple[Tensor, Tensor] | None,
    ahead: Sequence[Tensor] = (),
) -> Tensor:
    """attention.decode_attention for one row; `ahead`: up to three tensors that the next kernels will read."""
    _, heads, size = q.shape
    out = torch.empty((1, heads * size), dtype=q.dtype, device=q.device)
    macros = {
        "HEAD_SIZE": size, "GROUP_HEADS": heads // k.shape[1], "THREADS": ATTEND_THREADS,
        "ROTARY": int(rotary is not None),
    }  # fmt: skip
    cos, sin = rotary if rotary is not None else (out, out)
    fetched, sizes = [*ahead, out, out, out][:3], []
    for tensor in (*ahead, None, None, None)[:3]:
        sizes.append(0 if tensor is None else min(tensor.nbytes, FETCHED - sum(sizes)))
    fetchers = -(-(sum(sizes) + 3 * FETCH) // (FETCH * ATTEND_THREADS // 32)) if sum(sizes) else 0
    _kernel("attend", q.device, tuple(macros.items())).launch(
        heads + fetchers, ATTEND_THREADS, q, k, v, *cache, cos, sin, out, *fetched,
        cache.keys.stride(0), cache.keys.stride(1), scale, ctypes.c_int(heads), *sizes,
    )  # fmt: skip
    return out


def _product(inputs: int, weight: Weight, traits: Traits) -> tuple[object, ...]:
    return (weight.bits, weight.group, weight.outputs, inputs, traits)


def _macros(inputs: int, weight: Weight, traits: Traits, tile: Tile) -> cuda_runtime.Macros:
    macros = {
        "K": inputs, "BITS": weight.bits, "GROUP": weight.group or 1, "WARPS_K": tile.along, "WARPS_N": tile.across,
        "DEPTH": tile.depth, "RESIDENT": tile.resident, "NORM": traits.norm, "GATED": traits.gated,
        "BIAS": weight.bias is not None, "RESIDUAL": traits.residual, "OUT_FLOAT": traits.wide,
    }  # fmt: skip
    return tuple((name, int(value)) for name, value in macros.items())


def tune(weights: Sequence[Weight], inputs: int, traits: Traits = Traits()) -> Tile:
    """The fastest tile for one product, timed over its matrix in every layer; later calls of `gemv` use it."""
    key = _product(inputs, weights[0], traits)
    if key not in _best:
        device = weights[0].data.device
        compile_ahead([_macros(inputs, weights[0], traits, tile) for tile in TILES], device)
        _best[key] = min((timed(weights, inputs, traits, tile), tile) for tile in TILES)[1]
    return _best[key]


def compile_ahead(variants: Sequence[cuda_runtime.Macros], device: torch.device) -> None:
    """Compile on all cores what will be wanted one by one."""
    architecture = cuda_runtime.architecture_of(device)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda macros: cuda_runtime.compile_cubin(source(), macros, architecture), variants))


def timed(weights: Sequence[Weight], inputs: int, traits: Traits, tile: Tile, repeats: int = 3) -> float:
    """Microseconds of a product, from replays of a graph that passes once over the weights; the best of some."""

    def run(some: Sequence[Weight]) -> None:
        for weight in some:
            gemv(
                x, weight, norm=(x[0], 1e-5) if traits.norm else None, gated=traits.gated,
                residual=residual if traits.residual else None, tile=tile,
                out_dtype=torch.float32 if traits.wide else x.dtype,
            )  # fmt: skip

    x = torch.randn(1, inputs, device=weights[0].data.device, dtype=torch.bfloat16)
    residual = torch.randn(1, weights[0].outputs, device=x.device, dtype=x.dtype)
    run(weights[:1])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run(weights)
    times = []
    for _ in range(repeats + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times[1:]) * 1e3 / len(weights)
