"""Joins the stores of several sources into one list of units, and lays units end to end as a packed batch.

A unit is a document, or a pair's two documents: what is never torn apart. Arrays are indexed by unit number.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
import torch

from training.config.data import DataConfig, DataSource
from training.data.batch import IGNORE, PackedBatch
from training.data.encode import EncodeOptions, Report, encode_source
from training.data.records import open_source
from training.data.store import TokenStore, cache_folder
from training.data.template import TextCodec
from training.errors import DataError


@dataclass(frozen=True)
class Documents:
    """store, first: [u] where each unit's first document stands; length, targets: [u] sums over its documents.

    weights: [u] passes per epoch, None = one each. width: documents per unit (2 for pairs). digest: same for same data.
    """

    stores: tuple[TokenStore, ...]
    width: int
    store: np.ndarray
    first: np.ndarray
    length: np.ndarray
    targets: np.ndarray
    key: np.ndarray
    weights: np.ndarray | None
    digest: str
    reports: tuple[Report, ...] = ()

    def __len__(self) -> int:
        return len(self.first)

    @property
    def is_pairs(self) -> bool:
        return self.width == 2

    def take(self, chosen: np.ndarray, what: str) -> Documents:
        """Some of the units (a boolean mask or numbers); `what` tells this choice from others in the digest."""
        return replace(
            self,
            store=self.store[chosen],
            first=self.first[chosen],
            length=self.length[chosen],
            targets=self.targets[chosen],
            key=self.key[chosen],
            weights=None if self.weights is None else self.weights[chosen],
            digest=hashlib.blake2b(f"{self.digest} {what}".encode(), digest_size=16).hexdigest(),
        )

    def row_ids(self, units: np.ndarray) -> tuple[str, ...]:
        """The row id of each document of these units, in their order."""
        ids = []
        for unit in units.tolist():
            store = self.stores[self.store[unit]]
            ids += [store.row_id(store.documents[self.first[unit]])] * self.width
        return tuple(ids)


def open_documents(
    config: DataConfig, codec: TextCodec, *, stage: str, max_length: int, split: str
) -> Documents | None:
    """The stage's training or held-out ("eval") units, tokenised or from the cache. None: nothing is held out.

    Raises MissingInput or DataError naming the file and line at fault.
    """
    if split == "eval" and config.eval:
        return _limited(_join(config, config.eval, codec, stage, max_length), config.eval_max_samples)
    if split == "eval" and not config.eval_fraction:
        return None
    if not config.sources:
        raise DataError("data.sources is empty: name at least one file, folder or hf:org/name.")
    everything = _join(config, config.sources, codec, stage, max_length)
    if not config.eval_fraction:
        return everything
    held_out = hold_out(everything.key, config.eval_fraction)
    if held_out.all():
        raise DataError(
            f"data.eval_fraction {config.eval_fraction:g} leaves nothing to train on: the sources have only "
            f"{len(everything)} documents. Give more data, or eval sources of their own."
        )
    what = f"{split} {config.eval_fraction!r}"
    if split == "eval":
        return _limited(everything.take(held_out, what), config.eval_max_samples)
    return everything.take(~held_out, what)


def hold_out(keys: np.ndarray, fraction: float) -> np.ndarray:
    """[u] bool: units whose content hash lies in the lowest `fraction` (at least the lowest one).

    A row stays on its side whatever else is added, removed or reordered; rows with one question stay together.
    """
    chosen = keys < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    return chosen if chosen.any() else keys == keys.min()


def _limited(documents: Documents, limit: int | None) -> Documents:
    if limit is None or len(documents) <= limit:
        return documents
    lowest = np.sort(np.argsort(documents.key, kind="stable")[:limit])
    return documents.take(lowest, f"first {limit}")


def _join(
    config: DataConfig, sources: tuple[DataSource, ...], codec: TextCodec, stage: str, max_length: int
) -> Documents:
    cache = cache_folder(config.cache_dir)
    default = "split" if stage == "pt" else "truncate"
    options = EncodeOptions(
        max_length=max_length,
        over_long=default if config.over_long == "auto" else config.over_long,
        train_on=config.train_on,
        bad_rows=config.bad_rows,
    )
    stores, reports = [], []
    for source in sources:
        store, report = encode_source(
            open_source(source, stage), codec, options, cache, workers=config.workers, max_left_out=config.max_left_out
        )
        stores.append(store)
        reports.append(report)
    return join_stores(stores, [source.weight for source in sources], reports)


def join_stores(stores: list[TokenStore], weights: list[float], reports: list[Report]) -> Documents:
    """One list of units over all stores."""
    width = 2 if stores[0].meta["kind"] == "pair" else 1
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("store", "first", "length", "targets", "key", "weight")}
    for number, (store, weight) in enumerate(zip(stores, weights, strict=True)):
        documents = np.asarray(store.documents)
        units = len(documents) // width
        parts["store"].append(np.full(units, number, np.int32))
        parts["first"].append(np.arange(units, dtype=np.int64) * width)
        parts["length"].append(documents["length"].astype(np.int64).reshape(units, width).sum(1))
        parts["targets"].append(documents["targets"].astype(np.int64).reshape(units, width).sum(1))
        parts["key"].append(documents["key"][::width])
        parts["weight"].append(np.full(units, weight))
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    facts = json.dumps([[store.folder.name for store in stores], weights])
    return Documents(
        stores=tuple(stores),
        width=width,
        store=joined["store"],
        first=joined["first"],
        length=joined["length"],
        targets=joined["targets"],
        key=joined["key"],
        weights=None if all(weight == 1.0 for weight in weights) else joined["weight"],
        digest=hashlib.blake2b(facts.encode(), digest_size=16).hexdigest(),
        reports=tuple(reports),
    )


@dataclass(frozen=True)
class Layout:
    """Shape of a loader's batches. length: fixed tokens t, None = as many as the documents have; segments: entries of
    cu_seqlens less one, None likewise; max_seqlen: the longest segment there can be."""

    length: int | None
    segments: int | None
    max_seqlen: int
    pad_id: int


def collate(documents: Documents, units: np.ndarray, layout: Layout, *, learn: bool = True) -> PackedBatch:
    """The units laid end to end. learn=False: the same tokens with nothing to learn (fills up an evaluation step)."""
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    prompts: list[int] = []
    margins: list[float] = []
    for unit in units.tolist():
        store = documents.stores[documents.store[unit]]
        first = int(documents.first[unit])
        for number in range(first, first + documents.width):
            entry = store.documents[number]
            start, shard = int(entry["start"]), int(entry["shard"])
            end = start + int(entry["length"])
            pieces.append((store.tokens[shard][start:end], store.targets[shard][start:end]))
            prompts.append(int(entry["prompt"]))
        margins.append(float(entry["margin"]))
    lengths = np.array([len(tokens) for tokens, _ in pieces], dtype=np.int64)
    total = int(lengths.sum())
    width = layout.length or total
    tail = [min(layout.max_seqlen, width - at) for at in range(total, width, layout.max_seqlen)]
    segments = np.concatenate([lengths, np.array(tail, dtype=np.int64)])
    starts = np.cumsum(segments) - segments

    tokens = np.full(width, layout.pad_id, dtype=np.int64)
    labels = np.full(width, IGNORE, dtype=np.int64)
    targets = np.zeros(width, dtype=np.bool_)
    for (piece, marks), start in zip(pieces, starts.tolist(), strict=False):
        tokens[start : start + len(piece)] = piece
        targets[start : start + len(piece)] = marks
    if learn:
        targets[starts[: len(pieces)]] = False  # nothing comes before a document's first token
        where = np.flatnonzero(targets)
        labels[where - 1] = tokens[where]
    cu_seqlens = np.full(max(layout.segments or 0, len(segments)) + 1, width, dtype=np.int32)
    cu_seqlens[: len(segments)] = starts
    pairs = np.arange(len(pieces) if learn else 0, dtype=np.int64).reshape(-1, 2) if documents.is_pairs else None
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(np.arange(width, dtype=np.int64) - np.repeat(starts, segments)),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=layout.max_seqlen,
        num_targets=int(np.count_nonzero(targets)) if learn else 0,
        lengths=tuple(lengths.tolist()),
        rows=documents.row_ids(units),
        pairs=None if pairs is None else torch.from_numpy(pairs),
        prompt_lengths=torch.from_numpy(np.array(prompts, dtype=np.int64)) if documents.is_pairs else None,
        margins=torch.tensor(margins if learn else [], dtype=torch.float32) if documents.is_pairs else None,
    )
