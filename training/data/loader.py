"""Gives each rank its micro-batches, step by step, with a cursor that resumes exactly.

The plan of an epoch is a function of lengths, seed and epoch (see packing.py). So every rank knows, without asking,
what all ranks do in a step: how many micro-batches, and how many tokens count.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from training.config.data import DataConfig
from training.data.batch import PackedBatch, StepBatch
from training.data.documents import Documents, Layout, collate, open_documents
from training.data.encode import Report
from training.data.packing import PackingRule, epoch_bins, epoch_order, step_batches
from training.data.stats import first_row
from training.data.template import TextCodec
from training.errors import ConfigError, DataError


class Loader:
    """Steps without end, over one shuffled epoch after the other; `evaluation()` goes once over the held-out documents.

    Everything happens when it is asked for: prepare steps in advance with `training.loop.prefetch`.
    """

    def __init__(
        self,
        documents: Documents,
        rule: PackingRule,
        layout: Layout,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        held_out: HeldOut | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        self.documents = documents
        self.rule = rule
        self.layout = layout
        self.held_out = held_out
        self._rank, self._world_size, self._accumulate = rank, world_size, accumulate
        self._bins: dict[int, list[np.ndarray]] = {}
        self._epoch, self._in_epoch, self._step = 0, 0, 0

    # -- how much there is --------------------------------------------------------------------------------------------

    @property
    def reports(self) -> tuple[Report, ...]:
        """What became of each source's rows, for the log."""
        return self.documents.reports

    @property
    def report(self) -> str:
        return "\n".join(str(report) for report in self.reports)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch; others may differ by a few where packing does."""
        return self.steps_in_epoch(0)

    def steps_in_epoch(self, epoch: int) -> int:
        return math.ceil(len(self._epoch_bins(epoch)) / self._slots)

    def example(self) -> list[int]:
        """The tokens of the first document."""
        return collate(self.documents, np.zeros(1, np.int64), self.layout).documents()[0][0].tolist()

    @property
    def _slots(self) -> int:
        return self._world_size * self._accumulate

    def _epoch_bins(self, epoch: int) -> list[np.ndarray]:
        if epoch not in self._bins:
            order = epoch_order(len(self.documents), self.documents.weights, self.rule, epoch)
            if not len(order):
                raise DataError(
                    "The weights of the sources leave no document in an epoch: raise data.sources[].weight."
                )
            while len(self._bins) >= 3:
                self._bins.pop(next(iter(self._bins)))
            self._bins[epoch] = epoch_bins(self.documents.length, order, self.rule, epoch)
        return self._bins[epoch]

    # -- batches ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[StepBatch]:
        """Steps from the cursor on; the cursor moves with each."""
        while True:
            batch = self.step(self._epoch, self._in_epoch, self._step)
            self._step += 1
            self._in_epoch += 1
            if self._in_epoch >= self.steps_in_epoch(self._epoch):
                self._epoch, self._in_epoch = self._epoch + 1, 0
            yield batch

    def steps(self, count: int) -> Iterator[StepBatch]:
        """The next `count` steps."""
        return islice(self, count)

    def evaluation(self) -> Iterator[PackedBatch]:
        """This rank's held-out batches: the same number on every rank; nothing where nothing is held out."""
        return iter(self.held_out) if self.held_out is not None else iter(())

    def step(self, epoch: int, number: int, step: int = 0) -> StepBatch:
        """This rank's part of step `number` of an epoch."""
        lengths = self.documents.length
        bins = self._epoch_bins(epoch)
        everyone = step_batches(bins, lengths, self.rule, number, self._world_size, self._accumulate)
        used = np.concatenate([units for batches in everyone for units in batches])
        return StepBatch(
            micro_batches=tuple(collate(self.documents, units, self.layout) for units in everyone[self._rank]),
            num_targets=int(self.documents.targets[used].sum()),
            num_documents=len(used) * self.documents.width,
            num_pairs=len(used) if self.documents.is_pairs else 0,
            num_tokens=int(lengths[used].sum()),
            step=step,
            epoch=epoch + (number + 1) / self.steps_in_epoch(epoch),
        )

    # -- resume -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the last step that was given out (not: prepared)."""
        per_step = self._slots * (1 if self.rule.packed else self.rule.batch_size)
        rule = asdict(self.rule)
        rule.pop("batch_size")
        return {
            "epoch": self._epoch,
            "done": self._in_epoch * per_step,
            "step": self._step,
            "rule": rule,
            "documents": self.documents.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken, also with another number of ranks or accumulated micro-batches.

        Raises ConfigError when data, tokenizer or packing are others than they were.
        """
        now = self.state_dict()
        if state["documents"] != now["documents"]:
            raise ConfigError(
                "The checkpoint was made with other data (or another tokenizer, template, date or max_length): its "
                "place in the data means nothing here. Restore the data (or data.date), or start a new run from the "
                "checkpoint's model."
            )
        changed = [name for name, value in now["rule"].items() if state["rule"].get(name) != value]
        if changed:
            raise ConfigError(
                f"The checkpoint was made with another {', '.join(changed)} of the loader: resume with the same "
                "packing, tokens_per_batch, window, shuffle and seed, or start a new run from the checkpoint's model."
            )
        per_step = self._slots * (1 if self.rule.packed else self.rule.batch_size)
        self._epoch, self._step = int(state["epoch"]), int(state["step"])
        self._in_epoch = math.ceil(int(state["done"]) / per_step)
        if self._in_epoch >= self.steps_in_epoch(self._epoch):
            self._epoch, self._in_epoch = self._epoch + 1, 0


class HeldOut:
    """The held-out documents in fixed batches: each document once, the same number of batches on every rank."""

    def __init__(
        self, documents: Documents, rule: PackingRule, layout: Layout, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.documents = documents
        self.layout = layout
        self._rank, self._world_size = rank, world_size
        order = np.arange(len(documents))
        if not rule.packed:
            order = np.argsort(-documents.length, kind="stable")
        self._bins = epoch_bins(documents.length, order, rule, 0)

    def __len__(self) -> int:
        return math.ceil(len(self._bins) / self._world_size)

    def __iter__(self) -> Iterator[PackedBatch]:
        for start in range(0, len(self._bins), self._world_size):
            ours = self._bins[start : start + self._world_size]
            if self._rank < len(ours):
                yield collate(self.documents, ours[self._rank], self.layout)
            else:  # only keeps this rank in step with the others: nothing in it counts
                yield collate(self.documents, ours[0][:1], self.layout, learn=False)


def build_loader(
    stage: str,
    data: DataConfig,
    train: Any,
    codec: TextCodec,
    *,
    rank: int = 0,
    world_size: int = 1,
    note: Callable[[str], object] = print,
) -> Loader:
    """The loader of a stage, with its held-out part. train: a TrainConfig.

    All ranks of a machine may call this at once: the first tokenises, the others wait and read the same files.
    """
    documents = open_documents(data, codec, stage=stage, max_length=train.max_length, split="train")
    held_out = open_documents(data, codec, stage=stage, max_length=train.max_length, split="eval")
    assert documents is not None
    for report in documents.reports:
        note(str(report))
    note(first_row(documents, codec, colour=sys.stdout.isatty()))
    place = {"rank": rank, "world_size": world_size}
    evaluation = None
    if held_out is not None:
        note(f"held out for evaluation: {len(held_out):,} of {len(held_out) + len(documents):,} rows")
        rule, layout = _shape(held_out, train, codec, window=data.window, shuffle=False)
        evaluation = HeldOut(held_out, rule, layout, **place)
    rule, layout = _shape(documents, train, codec, window=data.window, shuffle=data.shuffle)
    return Loader(documents, rule, layout, accumulate=train.accumulate, held_out=evaluation, **place)


def _shape(
    documents: Documents, train: Any, codec: TextCodec, *, window: int, shuffle: bool
) -> tuple[PackingRule, Layout]:
    width, limit = documents.width, train.max_length
    capacity = int(train.tokens_per_batch or train.batch_size * limit * width)
    if train.packing and capacity < int(documents.length.max()):
        what = "pair (both answers)" if width == 2 else "document"
        raise ConfigError(
            f"The longest {what} has {int(documents.length.max())} tokens and does not fit into "
            f"train.tokens_per_batch ({capacity}): raise it, or lower train.max_length."
        )
    rule = PackingRule(
        packed=train.packing,
        capacity=capacity,
        batch_size=train.batch_size,
        max_units=most_units(documents.length, capacity),
        window=window,
        shuffle=shuffle,
        seed=train.seed,
    )
    return rule, layout_of(rule, limit, width, codec.pad_id)


def most_units(lengths: np.ndarray, capacity: int) -> int:
    """Bound on the units of a micro-batch, which fixes the length of cu_seqlens: an eighth above the mean, and eight.

    Units are dealt evenly, so few batches come near it; each empty slot costs flash attention as much as a short one.
    """
    expected = 1.125 * capacity / max(float(lengths.mean()), 1.0) + 8
    return min(math.ceil(expected / 8) * 8, max(capacity, 1))


def layout_of(rule: PackingRule, max_length: int, width: int, pad_id: int) -> Layout:
    if not rule.packed:
        return Layout(None, None, max_length, pad_id)
    tail = math.ceil(rule.capacity / max_length)  # segments that an all but empty batch is filled up with
    return Layout(rule.capacity, max(rule.max_units * width + 2, width + tail), max_length, pad_id)
