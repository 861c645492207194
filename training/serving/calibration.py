"""Quantizes a model block by block with calibration text: each layer is rounded for the inputs that really reach it.

Blocks are run one after another on the text, each with the blocks before it already quantized, so that only one
block's statistics are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from training.config.data import DataSource
from training.config.generation import GenerationConfig
from training.data.encode import EncodeOptions, RecordEncoder
from training.data.files import resolve
from training.data.records import Placed, detect, open_source
from training.data.template import TextCodec
from training.errors import DataError
from training.rollout import RolloutEngine
from training.serving.gptq import Inputs, inputs_of

ROWS, LENGTH = 16, 512
"""Calibration rows, and tokens in each; 40 rows were hardly better (perplexity +12.9 instead of +13.1 %)."""
Replace = Callable[[nn.Module, Inputs], nn.Module]
"""(layer, what is known of its inputs) -> what takes the layer's place."""


def rows_from_data(path: str, codec: TextCodec, rows: int = ROWS, length: int = LENGTH) -> list[list[int]]:
    """Token rows from a file, folder or hub data set of any format that training reads, taken evenly from it."""
    source = DataSource(path)
    stage = "pt" if detect(tuple(resolve(source)), source) == "text" else "sft"
    encoder = RecordEncoder(codec, EncodeOptions(1 << 30, "truncate"))
    stream: list[int] = []
    for item in open_source(source, stage):
        if isinstance(item, Placed):
            stream += encoder([(item.record, 0, item.raw)]).tokens.tolist()
        if len(stream) > 64 * rows * length:
            break
    if len(stream) < 2:
        raise DataError(f"{path} has no text to calibrate with")
    length = min(length, len(stream))
    count = min(rows, len(stream) // length)
    step = (len(stream) - length) // max(count - 1, 1)
    return [stream[i * step : i * step + length] for i in range(count)]


def rows_from_model(model: nn.Module, codec: TextCodec, rows: int = ROWS, length: int = LENGTH) -> list[list[int]]:
    """Rows that the model itself writes, each begun with another token of its vocabulary: needs no data."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(int(model.get_input_embeddings().weight.shape[0]), len(codec.tokenizer))  # type: ignore[operator]
    prompts = [[token] for token in torch.randint(0, vocabulary, (rows,), generator=generator).tolist()]
    engine = RolloutEngine(model, max_batch=rows, max_length=length)
    rollout = engine.generate(prompts, GenerationConfig(max_new_tokens=length - 1, stop_ids=()))
    engine.release()
    return [prompt + rollout.response(row) for row, prompt in enumerate(prompts)]


class _Reached(Exception):
    """The first block was called: its inputs are known."""


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's decoder blocks: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks: calibration can't walk through it")
    return max(lists, key=len)


@torch.no_grad()
def quantize_blocks(model: Any, rows: Sequence[Sequence[int]], replace: Replace, batch: int = 8) -> None:
    """Replace the linear layers of every block, each for its inputs on the rows."""
    blocks = find_blocks(model)
    calls = _first_calls(model, blocks[0], rows, batch)
    for block in blocks:
        for names, hessian in _statistics(block, calls):
            inputs = inputs_of(hessian)
            for name in names:
                parent, _, key = name.rpartition(".")
                setattr(block.get_submodule(parent), key, replace(block.get_submodule(name), inputs))
        for call in calls:
            call[0] = _run(block, call)


def _first_calls(model: Any, block: nn.Module, rows: Sequence[Sequence[int]], batch: int) -> list[list[Any]]:
    """What the first block is called with for each batch: [hidden states, other positional, keyword arguments]."""
    calls: list[list[Any]] = []

    def note(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        named = dict(named)
        hidden = positional[0] if positional else named.pop("hidden_states")
        calls.append([hidden, positional[1:], named])
        raise _Reached

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    device = next(model.parameters()).device
    try:
        for length in sorted({len(row) for row in rows}):
            alike = [row for row in rows if len(row) == length]
            for start in range(0, len(alike), batch):
                try:
                    model(input_ids=torch.tensor(alike[start : start + batch], device=device), use_cache=False)
                except _Reached:
                    continue
    finally:
        handle.remove()
    return calls


def _run(block: nn.Module, call: list[Any]) -> Tensor:
    out = block(call[0], *call[1], **call[2])
    return out[0] if isinstance(out, tuple) else out


def _statistics(block: nn.Module, calls: list[list[Any]]) -> list[tuple[list[str], Tensor]]:
    """H = X^T X [K, K] in fp32 for each input X of linear layers in the block, with the names of those layers."""
    layers = {name: m for name, m in block.named_modules() if type(m) is nn.Linear or isinstance(m, Conv1D)}
    users: dict[str, list[str]] = {}  # the first layer that takes an input -> all layers that take it
    sums: dict[str, Tensor] = {}
    seen: list[tuple[Tensor, str]] = []  # inputs of this pass, kept alive so that none is taken for another

    def hook_for(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            leader = next((other for tensor, other in seen if tensor is inputs[0]), name)
            if name not in users.setdefault(leader, []):
                users[leader].append(name)
            if leader == name:
                seen.append((inputs[0], name))
                x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
                sums[name] = x.t() @ x + sums[name] if name in sums else x.t() @ x

        return note

    handles = [layer.register_forward_pre_hook(hook_for(name)) for name, layer in layers.items()]
    try:
        for call in calls:
            seen.clear()
            _run(block, call)
    finally:
        for handle in handles:
            handle.remove()
    return [(names, sums[leader]) for leader, names in users.items()]
