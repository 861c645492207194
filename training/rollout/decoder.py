"""Runs a family over the slots: packed prefill of prompts, and decode steps replayed from captured graphs.

A decode step takes its rows' tokens, positions, options and destinations from the slot table, so a replay needs no
input but the list of slots in the batch; leaving a row out costs nothing (its cache stays where it is).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from training.rollout.attention import decode_attention, prefill_attention, rotate_and_store
from training.rollout.cache import LayerCache
from training.rollout.families import LlamaFamily, family_of, tune_one_row
from training.rollout.slots import Features, Request, SlotTable, Snapshot

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
PREFILL_SIZES = (128, 256, 512, 1024, 2048)
PREFILL_BUDGET = 16384
"""Prompt tokens in one prefill pass: bounds its activations."""


class Decoder:
    """One model's weights, its slots and its graphs. Not thread-safe: one thread drives it."""

    def __init__(
        self, model: nn.Module, *, max_batch: int, max_length: int, graphs: bool = True, unscaled: bool = False
    ) -> None:
        """unscaled: log-probs are the model's own, whatever a request's temperature (for serving)."""
        self.model, self.max_batch = model, max_batch
        self.family = family_of(model)
        if max_length > self.family.context:
            raise ValueError(f"max_length is {max_length}, but the model's context has {self.family.context} positions")
        self.max_length = max_length
        self.device = next(model.parameters()).device
        self.graphs = graphs and self.device.type == "cuda"
        self.table = SlotTable(self.family, max_batch, max_length, self.family.dtype, self.device, unscaled=unscaled)
        self.rotary = self.family.rotary(max_length)
        self._bounds: dict[int, int] = {}  # slot -> most tokens it can hold by now
        self._captured: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}
        self._pool: object | None = None
        self._weights = self._addresses()

    # --- weights

    def _addresses(self) -> tuple[int, ...]:
        return tuple(parameter.data_ptr() for parameter in self.model.parameters())

    def rebind(self) -> None:
        """Look at the weights again: graphs made for storages that moved are dropped. Cheap when nothing did."""
        addresses = self._addresses()
        if addresses != self._weights:
            self._weights = addresses
            self._captured.clear()
            self.family = family_of(self.model)
            self.rotary = self.family.rotary(self.max_length)

    def evaluating(self) -> AbstractContextManager[object]:
        """No gradients, no autocast; the caller's modules must be in eval mode where dropout exists."""
        return torch.no_grad()

    # --- prefill

    def admit(self, requests: Sequence[Request]) -> None:
        """Take new requests into their slots and compute the keys and values of their prompts but the last token."""
        for request in requests:
            if not request.prompt:
                raise ValueError("a prompt has no tokens: give at least one (a beginning-of-text token will do)")
            if len(request.prompt) >= self.max_length:
                raise ValueError(
                    f"a prompt has {len(request.prompt)} tokens: with a max_length of {self.max_length} nothing can be"
                    " generated; shorten the prompt or raise max_length"
                )
        with self.evaluating():
            self.table.admit(requests)
            for request in requests:
                self._bounds[request.slot] = len(request.prompt)
            batch: list[Request] = []
            size = 0
            for request in sorted(requests, key=lambda request: len(request.prompt)):
                if batch and size + len(request.prompt) - 1 > PREFILL_BUDGET:
                    self._prefill(batch)
                    batch, size = [], 0
                if len(request.prompt) > 1:
                    batch.append(request)
                    size += len(request.prompt) - 1
            if batch:
                self._prefill(batch)

    def _prefill(self, requests: Sequence[Request]) -> None:
        lengths = [len(request.prompt) - 1 for request in requests]
        total = sum(lengths)
        padded = next((size for size in PREFILL_SIZES if size >= total), None) if self._prefill_in_graph() else None
        size = padded or total
        packed = np.zeros((3, size), dtype=np.int64)  # tokens, positions, slots
        packed[2, total:] = self.table.padding
        packed[1, total:] = np.arange(size - total) % self.max_length
        documents = len(requests) if padded is None else self.max_batch + 1
        boundaries = np.full(documents + 1, size, dtype=np.int32)
        start = 0
        for number, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            part = slice(start, start + length)
            packed[0, part] = request.prompt[:length]
            packed[1, part] = np.arange(length)
            packed[2, part] = request.slot
            boundaries[number] = start
            start += length
        if padded is not None:
            boundaries[len(requests)] = total
        inputs = self.table.to_device(torch.from_numpy(packed))
        bounds = self.table.to_device(torch.from_numpy(boundaries))
        if padded is None:
            self._prefill_pass(inputs, bounds, tuple(lengths), max(lengths))
        else:
            self._prefill_in_bucket(inputs, bounds, padded)

    def _prefill_in_graph(self) -> bool:
        return self.graphs and self.family.slopes is None and self.family.dtype in (torch.bfloat16, torch.float16)

    def _prefill_pass(self, inputs: Tensor, bounds: Tensor, lengths: tuple[int, ...] | None, longest: int) -> None:
        tokens, positions, slots = inputs.unbind(0)
        state = self.family.embed(tokens, positions)
        last = len(self.family.blocks) - 1
        for index, block in enumerate(self.family.blocks):
            state, q, k, v = block.inputs(state)
            cache = LayerCache(self.table.keys[index], self.table.values[index], slots, positions)
            q, k = rotate_and_store(q, k, v, cache, self.rotary)
            if index < last:
                attended = prefill_attention(
                    q, k, v, bounds, lengths, longest, scale=block.scale, slopes=self.family.slopes
                )
                state = block.finish(state, attended)

    # --- decode

    def steps(self, slots: Sequence[int], count: int, features: Features = Features()) -> None:
        """Advance the requests in these slots by `count` tokens (those that finish earlier stand still)."""
        if not slots:
            return
        if features.top:
            self.table.keep_top()
        with self.evaluating():
            rows = self._rows(slots)
            batch = self.table.to_device(torch.tensor(rows, dtype=torch.int64))
            written: set[int] = set()  # which graphs have been given this batch
            for _ in range(count):
                live = max(self._bounds[slot] for slot in slots)
                splits = self._splits(len(rows), live)
                if self.graphs:
                    self._decode_in_graph(batch, len(rows), features, splits, changed=splits not in written)
                    written.add(splits)
                else:
                    self._step(batch, features, min(live, self.max_length), splits)
                for slot in slots:
                    self._bounds[slot] = min(self._bounds[slot] + 1, self.max_length)

    def _rows(self, slots: Sequence[int]) -> list[int]:
        if not self.graphs:
            return list(slots)
        size = next((size for size in BATCH_SIZES if size >= len(slots)), len(slots))
        return [*slots, *[self.table.padding] * (size - len(slots))]

    def _splits(self, rows: int, live: int) -> int:
        """Parts that each row's keys are cut into, so that a small batch still fills the device."""
        if self.device.type != "cuda":
            return 1
        splits = 1
        while splits < 32 and splits * 256 <= live and splits * rows * self.family.kv_heads < 264:
            splits *= 2
        return splits

    def _step(self, slots: Tensor, features: Features, live: int | None, splits: int) -> None:
        table, family = self.table, self.family
        positions = table.lengths[slots] - 1
        state = family.embed(table.tokens[slots, positions], positions)
        for index, block in enumerate(family.blocks):
            state, q, k, v = block.inputs(state)
            attended = decode_attention(
                q, k, v, LayerCache(table.keys[index], table.values[index], slots, positions),
                scale=block.scale, rotary=self.rotary, slopes=family.slopes, live=live, splits=splits,
                ahead=block.ahead,
            )  # fmt: skip
            state = block.finish(state, attended)
        table.sample(family.head(state), slots, features)

    # --- graphs

    def tune(self) -> None:
        """Choose the tiles of one-row decoding by timing them here; a few seconds, once a process."""
        if self.graphs and isinstance(self.family, LlamaFamily):
            with self.evaluating():
                tune_one_row(self.family)

    def warm(self) -> None:
        """Capture plain decoding for every batch size and prefill for every bucket ahead of their first use."""
        self.tune()
        lives = [1, *(256 * 2**i for i in range(6) if 256 * 2**i < self.max_length)]
        with self.evaluating():
            for size in [size for size in BATCH_SIZES if size <= self.max_batch] or [self.max_batch]:
                batch = torch.full((size,), self.table.padding, device=self.device)
                for splits in sorted({self._splits(size, live) for live in lives}):
                    self._decode_in_graph(batch, size, Features(), splits)
            if self._prefill_in_graph():
                for size in PREFILL_SIZES:
                    inputs = torch.zeros((3, size), dtype=torch.int64, device=self.device)
                    inputs[1] = torch.arange(size, device=self.device) % self.max_length
                    inputs[2] = self.table.padding
                    bounds = torch.full((self.max_batch + 2,), size, dtype=torch.int32, device=self.device)
                    bounds[0] = 0
                    self._prefill_in_bucket(inputs, bounds, size)

    def _decode_in_graph(
        self, batch: Tensor, size: int, features: Features, splits: int, *, changed: bool = True
    ) -> None:
        def body(batch: Tensor) -> None:
            self._step(batch, features, None, splits)

        self._replay(("decode", size, features, splits), body, batch, changed=changed)

    def _prefill_in_bucket(self, inputs: Tensor, bounds: Tensor, size: int) -> None:
        def body(inputs: Tensor, bounds: Tensor) -> None:
            self._prefill_pass(inputs, bounds, None, size)

        self._replay(("prefill", size), body, inputs, bounds)

    def _replay(
        self, key: tuple[object, ...], body: Callable[..., None], *inputs: Tensor, changed: bool = True
    ) -> None:
        """Run `body(*inputs)` from the graph captured for `key`; the first call runs it eagerly, then captures.

        `changed` says that the inputs differ from those of the last replay of this graph.
        """
        if key not in self._captured:
            body(*inputs)  # counts as this call: compiles kernels, and the next call finds the graph
            static = tuple(tensor.clone() for tensor in inputs)
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                body(*static)
            self._captured[key] = (graph, static)
            return
        graph, static = self._captured[key]
        if changed:
            for destination, source in zip(static, inputs, strict=True):
                destination.copy_(source, non_blocking=True)
        graph.replay()

    def snapshot(self, recent: int = 0, top: bool = False) -> Snapshot:
        with self.evaluating():
            return Snapshot(self.table, recent, top)

    def forget(self, slots: Sequence[int]) -> None:
        """Finish these slots and free them for new requests."""
        self.table.stop(slots)
        for slot in slots:
            self._bounds.pop(slot, None)

    def close(self) -> None:
        """Give back the graphs' memory; the object is of no use afterwards."""
        self._captured.clear()
        self._pool = None
