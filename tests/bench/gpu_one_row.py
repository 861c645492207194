"""Measures one-row decoding on one GPU, part by part: products over tiles, attention, whole steps of the 1.1B shape.

python tests/bench/gpu_one_row.py [--bits 16,8,4] [--products] [--steps]
Weights rotate over copies beyond the L2 cache; everything is replayed from a graph. One JSON line per result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from training.rollout import one_row
from training.rollout.cache import LayerCache
from training.rollout.cuda_runtime import Kernel
from training.rollout.linear import Weight
from training.serving.quantize import quantize_weight

NORM, RESIDUAL = one_row.Traits(norm=True), one_row.Traits(residual=True)
SHAPES = {  # rows and columns of the matrix, what the kernel takes in
    "qkv": (2560, 2048, NORM), "out": (2048, 2048, RESIDUAL), "gate_up": (11264, 2048, NORM._replace(gated=True)),
    "down": (2048, 5632, RESIDUAL), "head": (32000, 2048, NORM._replace(wide=True)),
}  # fmt: skip
LAYERS = 22


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def replayed(run: Callable[[], object], repeats: int = 15) -> float:
    """Median microseconds of a graph of `run`."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[3:])


def read_bandwidth() -> None:
    """What this device reads and copies at best, and what a kernel that does nothing costs in a graph."""
    big = torch.ones(1 << 28, device="cuda", dtype=torch.float32)
    out = torch.empty_like(big)
    tiny = torch.ones(32, device="cuda")
    read, copy = replayed(lambda: big.sum()), replayed(lambda: out.copy_(big))
    nodes = replayed(lambda: [tiny.add_(1) for _ in range(200)])
    say(read_tb_s=round(2**30 / read / 1e6, 2), copy_tb_s=round(2**31 / copy / 1e6, 2), node_us=round(nodes / 200, 2))


def weights_of(bits: int, outputs: int, inputs: int, copies: int) -> list[Weight]:
    matrix = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02
    first = Weight(16, matrix) if bits == 16 else quantize_weight(matrix, bits, 128)
    return [Weight(*(t.clone() if isinstance(t, torch.Tensor) else t for t in first)) for _ in range(copies)]


def nbytes(weight: Weight) -> int:
    return sum(t.numel() * t.element_size() for t in (weight.data, weight.scale, weight.offset) if t is not None)


def bench_products(bits: int, tiles: list[one_row.Tile]) -> None:
    for name, (rows, inputs, traits) in SHAPES.items():
        copies = max(2, int(150e6 // (rows * inputs * bits / 8)))
        weights = weights_of(bits, rows, inputs, copies)
        one_row.compile_ahead(
            [one_row._macros(inputs, weights[0], traits, tile) for tile in tiles], torch.device("cuda", 0)
        )
        found = []
        for tile in tiles:
            try:
                found.append((one_row.timed(weights, inputs, traits, tile), tile))
            except RuntimeError as error:
                say(product=name, bits=bits, tile=tile, error=str(error)[-200:])
        found.sort()
        best = found[0]
        Kernel.overlap = False
        alone = one_row.timed(weights, inputs, traits, best[1])
        Kernel.overlap = True
        say(
            product=name, bits=bits, us=round(best[0], 2), tb_s=round(nbytes(weights[0]) / best[0] / 1e6, 2),
            us_without_overlap=round(alone, 2), floor_us=round(nbytes(weights[0]) / 3e6, 2),
            tiles=[[round(us, 2), *tile] for us, tile in found],
        )  # fmt: skip


def bench_steps(bits: int, position: int = 200) -> None:
    """All products of a step, all attentions of a step, and both in order: what the parts cost, and their seams."""
    layers = {
        name: weights_of(8 if name == "head" and bits == 4 else bits, rows, inputs, 1 if name == "head" else LAYERS)
        for name, (rows, inputs, _) in SHAPES.items()
    }
    hidden = torch.randn(1, 2048, device="cuda", dtype=torch.bfloat16)
    norm = (torch.ones(2048, device="cuda", dtype=torch.bfloat16), 1e-5)
    keys, values = (torch.randn(LAYERS, 2, 4, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    slots, positions = torch.tensor([0], device="cuda"), torch.tensor([position], device="cuda")
    angle = torch.rand(512, 32, device="cuda")
    rotary = (angle.cos().contiguous(), angle.sin().contiguous())

    def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.view(1, 40, 64).split([32, 4, 4], dim=1)
        return one_row.attention(
            q, k, v, LayerCache(keys[layer], values[layer], slots, positions), scale=0.125, rotary=rotary,
            ahead=[layers[name][layer].data for name in ("out", "gate_up", "down")],
        )  # fmt: skip

    def products(attention: bool) -> Callable[[], object]:
        def run() -> object:
            x = hidden
            for layer in range(LAYERS):
                qkv = one_row.gemv(x, layers["qkv"][layer], norm=norm)
                attended = attend(layer, qkv) if attention else qkv[:, :2048]
                x = one_row.gemv(attended, layers["out"][layer], residual=x)
                inner = one_row.gemv(x, layers["gate_up"][layer], norm=norm, gated=True)
                x = one_row.gemv(inner, layers["down"][layer], residual=x)
            return one_row.gemv(x, layers["head"][0], norm=norm, out_dtype=torch.float32)

        return run

    for name, (_, inputs, traits) in SHAPES.items():
        one_row.tune(layers[name], inputs, traits)
    qkv = torch.randn(1, 2560, device="cuda", dtype=torch.bfloat16)
    times = {"products": replayed(products(False)), "both": replayed(products(True))}
    Kernel.overlap = False
    times["both_without_overlap"] = replayed(products(True))
    Kernel.overlap = True
    usual = one_row.FETCHED
    for mib in (0, 2, 4, 8, 16, 32):
        one_row.FETCHED = mib << 20
        times[f"both_fetching_{mib}_mib"] = replayed(products(True))
    one_row.FETCHED = 0
    times["attention"] = replayed(lambda: [attend(layer, qkv) for layer in range(LAYERS)])
    one_row.FETCHED = usual
    size = sum(nbytes(weight) for weights in layers.values() for weight in weights)
    say(
        step="1.1b", bits=bits, us={name: round(us, 1) for name, us in times.items()}, mib=size >> 20,
        floor_us=round(size / 3e6, 1),
        tiles=[[*key[2:4], *tile] for key, tile in one_row._best.items() if key[0] == bits],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", default="16,8,4")
    parser.add_argument("--products", action="store_true", help="each product over tiles")
    parser.add_argument("--steps", action="store_true", help="whole steps of the 1.1B shape")
    options = parser.parse_args()
    read_bandwidth()
    tiles = list(one_row.TILES)
    for bits in map(int, options.bits.split(",")):
        if options.products:
            bench_products(bits, tiles)
        if options.steps:
            bench_steps(bits)


if __name__ == "__main__":
    main()
