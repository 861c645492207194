"""The CUDA kernels of one-row decoding, run on the host thread by thread, against PyTorch in higher precision."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from training.config.generation import GenerationConfig
from training.rollout import RolloutEngine, fuse_projections, one_row
from training.rollout.attention import decode_attention_reference
from training.rollout.cache import LayerCache
from training.rollout.families import rms_norm
from training.rollout.linear import Weight, dequantize
from training.serving.quantize import quantize_model, quantize_weight

GEMV = """
extern "C" void run(int blocks, int threads, void** p, int outputs, float eps) {
  host::run(blocks, threads, [&] {
    gemv((u16*)p[0], (u16*)p[1], (char*)p[2], p[3], p[4], (u16*)p[5], (u16*)p[6], p[7], outputs, eps);
  });
}
"""
ATTEND = """
extern "C" void run(int blocks, int threads, void** p, long long slot, long long head, float scale, int heads,
                    long long size0, long long size1, long long size2) {
  host::run(blocks, threads, [&] {
    attend((u16*)p[0], (u16*)p[1], (u16*)p[2], (u16*)p[3], (u16*)p[4], (long long*)p[5], (long long*)p[6],
           (float*)p[7], (float*)p[8], (u16*)p[9], (char*)p[10], (char*)p[11], (char*)p[12], slot, head, scale, heads,
           size0, size1, size2);
  });
}
"""


class HostKernel:
    """Stands where a compiled Kernel does; takes the same launches."""

    last: HostKernel

    def __init__(self, source: str, name: str, macros: dict[str, int], folder: Path) -> None:
        self.name = name
        stem = "_".join(map(str, (name, *macros.values())))
        library = folder / f"{stem}.so"
        text = '#include "cuda_on_host.h"\n' + source + (GEMV if name == "gemv" else ATTEND)
        library.with_suffix(".cpp").write_text(text)
        subprocess.run(
            ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{Path(__file__).parent}",
             *(f"-D{key}={value}" for key, value in macros.items()), "-o", library, library.with_suffix(".cpp")],
            check=True, timeout=60,
        )  # fmt: skip
        self.library: Any = ctypes.CDLL(str(library))
        HostKernel.last = self

    def launch(self, blocks: int, threads: int, *arguments: Any) -> None:
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        rest = arguments[len(tensors) :]
        as_c = [ctypes.c_float(v) if isinstance(v, float) else ctypes.c_longlong(v) if isinstance(v, int) else v
                for v in rest]  # fmt: skip
        self.library.run(blocks, threads, pointers, *as_c)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @functools.cache
    def kernel(name: str, device: torch.device, macros: tuple[tuple[str, int], ...]) -> HostKernel:
        return HostKernel(one_row.source(), name, dict(macros), tmp_path)

    monkeypatch.setattr(one_row, "_kernel", kernel)


CASES: list[tuple[int, int, int, int, one_row.Tile, set[str]]] = [
    # bits, group, outputs, inputs, tile, around
    (4, 128, 48, 512, one_row.Tile(2, 1, 1, 1), {"norm"}),
    (4, 64, 40, 576, one_row.Tile(4, 2, 2, 1), {"gated", "norm", "bias"}),  # half a block at the end, rows beyond it
    (4, 32, 20, 352, one_row.Tile(1, 2, 4, 1), {"residual", "bias"}),
    (8, 0, 33, 320, one_row.Tile(2, 1, 2, 1), {"norm", "residual"}),
    (8, 0, 32, 192, one_row.Tile(8, 1, 4, 1), {"gated"}),
    (16, 0, 50, 288, one_row.Tile(2, 2, 2, 1), {"norm", "bias", "residual"}),
    (16, 0, 24, 544, one_row.Tile(4, 1, 8, 1), {"gated", "bias"}),
]


@pytest.mark.parametrize(("bits", "group", "outputs", "inputs", "tile", "around"), CASES)
def test_gemv_is_the_product_with_what_surrounds_it(
    on_host: None, bits: int, group: int, outputs: int, inputs: int, tile: one_row.Tile, around: set[str]
) -> None:
    torch.manual_seed(outputs)
    gated = "gated" in around
    rows = outputs * (2 if gated else 1)
    bias = torch.randn(rows).bfloat16() if "bias" in around else None
    matrix = (torch.randn(rows, inputs) / inputs**0.5).bfloat16()
    weight = Weight(16, matrix, bias) if bits == 16 else quantize_weight(matrix, bits, group, bias)
    x = torch.randn(1, inputs).bfloat16()
    norm = ((torch.rand(inputs) + 0.5).bfloat16(), 1e-5) if "norm" in around else None
    residual = torch.randn(1, outputs).bfloat16() if "residual" in around else None
    out = one_row.gemv(x, weight, norm=norm, gated=gated, residual=residual, out_dtype=torch.float32, tile=tile)
    wide = x.double()
    if norm is not None:  # the kernel rounds x * norm before the common factor: so does this
        wide = (x.float() * norm[0].float()).bfloat16().double()
        wide = wide * torch.rsqrt(x.double().pow(2).mean() + norm[1])
        torch.testing.assert_close(wide, rms_norm(x.double(), norm[0].double(), norm[1]), rtol=0.01, atol=0.01)
    expected = wide @ dequantize(weight, torch.float64).t() + (0 if bias is None else bias.double())
    if gated:
        expected = F.silu(expected[:, :outputs]) * expected[:, outputs:]
    expected += 0 if residual is None else residual.double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5 if bits != 4 else 2e-4)


@pytest.mark.parametrize(("size", "heads", "kv", "rotary"), [(64, 4, 2, True), (128, 2, 2, True), (32, 4, 1, False)])
@pytest.mark.parametrize("position", [0, 5, 300])
def test_attention_reads_and_extends_the_cache(
    on_host: None, size: int, heads: int, kv: int, rotary: bool, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_row, "ATTEND_THREADS", 128)
    torch.manual_seed(position)
    fused = torch.randn(1, heads + 2 * kv, size).bfloat16()
    q, k, v = fused.split([heads, kv, kv], dim=1)
    caches = torch.randn(2, 3, kv, 320, size).bfloat16()
    angles = torch.rand(320, size // 2) * 6
    table = (angles.cos().contiguous(), angles.sin().contiguous()) if rotary else None
    expected_caches = caches.clone().float()
    slots, positions = torch.tensor([1]), torch.tensor([position])
    scale = size**-0.5
    expected = decode_attention_reference(
        q.float(), k.float(), v.float(), LayerCache(*expected_caches, slots, positions), scale=scale, rotary=table
    )
    ahead = (torch.zeros(5000), torch.zeros(3), torch.zeros(9000))  # 20,000, 12 and 36,000 bytes
    cache = LayerCache(*caches, slots, positions)
    out = one_row.attention(q, k, v, cache, scale=scale, rotary=table, ahead=ahead)
    fetched = ctypes.c_longlong.in_dll(HostKernel.last.library, "fetched").value
    assert fetched == 56000, "each byte once, in pieces of 16 bytes"
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(caches.float(), expected_caches, rtol=0.01, atol=0.01)
    assert (out.float() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("intermediate", [96, 128])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_model_decodes_one_row_alike_whether_all_its_layers_fit_the_kernel_or_not(
    on_host: None, intermediate: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """96 inputs are no whole spans of int8: such a layer, and with it its block, must take the other way."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=intermediate, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().bfloat16()
    if bits < 16:
        quantize_model(model, bits, 32)
    fuse_projections(model)
    runs = []
    for serves in (lambda x, weight: x.shape[0] == 1 and weight is not None and one_row.fits(weight), one_row.serves):
        monkeypatch.setattr(one_row, "serves", serves)
        engine = RolloutEngine(model, max_batch=1, max_length=32)
        runs.append(engine.generate([[5, 6, 7, 8]], GenerationConfig(max_new_tokens=4), seeds=[3]))
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    torch.testing.assert_close(runs[0].logprobs, runs[1].logprobs, atol=0.01, rtol=0)


def test_a_shape_that_the_kernel_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="8-bit weight of 96 inputs"):
        one_row.gemv(torch.zeros(1, 96).bfloat16(), quantize_weight(torch.randn(16, 96), 8))
