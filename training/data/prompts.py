"""Prompts for PPO and GRPO: tokenised once, disjoint over ranks, reshuffled each epoch, with an exact cursor."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

import numpy as np

from training.config.data import DataConfig
from training.data.batch import PromptRow
from training.data.documents import hold_out
from training.data.encode import EncodeOptions, RecordEncoder, content_key
from training.data.formats import Prompt
from training.data.packing import PackingRule, epoch_order
from training.data.records import Placed, Problem, SourceRows, open_source
from training.data.report import Report, refuse_losses
from training.data.template import TextCodec
from training.errors import ConfigError, DataError

_CHUNK = 512


class PromptLoader:
    """Prompts without end. The order over all ranks does not depend on their number: of each n·world_size prompts,
    rank r takes every world_size-th one from its own on."""

    def __init__(
        self,
        rows: list[PromptRow],
        *,
        weights: np.ndarray | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not rows:
            raise DataError("There are no prompts.")
        self.rows = rows
        self._weights = weights
        self._rule = PackingRule(packed=False, capacity=0, batch_size=1, max_units=1, shuffle=shuffle, seed=seed)
        self._rank, self._world_size = rank, world_size
        self._epoch, self._done = 0, 0
        self._order = self._order_of(0)
        digest = hashlib.blake2b(repr((shuffle, seed)).encode(), digest_size=16)
        for row in rows:
            digest.update(f"{row.row}\0{row.text}\0".encode())
        self._digest = digest.hexdigest()

    def __len__(self) -> int:
        """Prompts of an epoch (the first one, where weights are fractions)."""
        return len(self._order_of(0)) if self._weights is not None else len(self.rows)

    def next(self, count: int) -> list[PromptRow]:
        """This rank's next prompts; all ranks must ask for the same number."""
        numbers = [self._draw() for _ in range(count * self._world_size)]
        return [self.rows[i] for i in numbers[self._rank :: self._world_size]]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "done": self._done, "prompts": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ConfigError when the prompts, their order's seed or the template are others than they were."""
        if state["prompts"] != self._digest:
            raise ConfigError(
                "The checkpoint was made with other prompts (or another template, date or seed): its place among them "
                "means nothing here. Restore the data (or data.date), or start a new run from the checkpoint's model."
            )
        self._epoch, self._done = int(state["epoch"]), int(state["done"])
        self._order = self._order_of(self._epoch)

    def _draw(self) -> int:
        while self._done >= len(self._order):
            self._epoch, self._done = self._epoch + 1, 0
            self._order = self._order_of(self._epoch)
        self._done += 1
        return int(self._order[self._done - 1])

    def _order_of(self, epoch: int) -> np.ndarray:
        order = epoch_order(len(self.rows), self._weights, self._rule, epoch)
        if not len(order):
            raise DataError("The weights of the sources leave no prompt in an epoch: raise data.sources[].weight.")
        return order


def build_prompts(
    data: DataConfig,
    codec: TextCodec,
    *,
    max_length: int,
    long_prompts: Literal["refuse", "drop"] = "refuse",
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    note: Callable[[str], object] = print,
) -> PromptLoader:
    """Reads, renders and tokenises prompts. Rows with answers give their question; `data.eval_fraction` is left out.

    Raises DataError naming the row for a bad row (unless `data.bad_rows: skip`) and for a prompt over max_length
    tokens (unless long_prompts is "drop").
    """
    rows: list[PromptRow] = []
    weights: list[float] = []
    keys: list[np.uint64] = []
    encoder = RecordEncoder(codec, EncodeOptions(max_length, "drop"))
    for source in data.sources:
        opened = open_source(source, "ppo")
        before, counts = len(rows), Counter[str]()
        problems: list[str] = []
        longest = 0

        for made in _encoded(opened, encoder, counts):
            if isinstance(made, Problem):
                if data.bad_rows == "stop":
                    raise DataError(f"{made}. Mend or remove the row, or set data.bad_rows: skip.")
                counts["bad"] += 1
                problems.append(str(made))
                continue
            row, key = made
            longest = max(longest, len(row.tokens))
            if len(row.tokens) > max_length:
                if long_prompts == "refuse":
                    raise DataError(
                        f"{row.row}: the prompt has {len(row.tokens):,} tokens, more than train.max_prompt_length "
                        f"({max_length:,}). Raise it, or leave long prompts out with train.long_prompts: drop."
                    )
                counts["too_long"] += 1
                continue
            rows.append(row)
            keys.append(key)
        weights += [source.weight] * (len(rows) - before)
        report = Report(
            source.path, opened.format, counts["rows"], len(rows) - before, 0, 0, bad=counts["bad"],
            too_long=counts["too_long"], longest=longest, problems=tuple(problems[:1]),
        )  # fmt: skip
        left = "".join(
            f"; {n:,} left out: {why}"
            for n, why in ((report.too_long, f"over {max_length} tokens"), (report.bad, "bad rows"))
            if n
        )
        note(f"{source.path} ({opened.format}): {len(rows) - before:,} prompts{left}")
        refuse_losses(report, data.max_left_out, max_length, key="train.max_prompt_length")
    if not rows:
        raise DataError("No prompt is left: " + (", ".join(data.paths) or "data.sources is empty") + ".")
    kept = np.ones(len(rows), bool)
    if data.eval_fraction:
        kept = ~hold_out(np.array(keys, dtype=np.uint64), data.eval_fraction)
        rows = [row for row, keep in zip(rows, kept, strict=True) if keep]
    values = np.array(weights)[kept]
    return PromptLoader(
        rows,
        weights=None if (values == 1).all() else values,
        shuffle=data.shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def _encoded(
    opened: SourceRows, encoder: RecordEncoder, counts: Counter[str]
) -> Iterator[tuple[PromptRow, np.uint64] | Problem]:
    """Each row of a source as a prompt with its content's key, or what is wrong with it."""
    items = iter(opened)
    while chunk := list(islice(items, _CHUNK)):
        counts["rows"] += len(chunk)
        placed = [item for item in chunk if isinstance(item, Placed)]
        made = iter(encoder.encode([item.record for item in placed]))
        for item in chunk:
            if isinstance(item, Problem):
                yield item
                continue
            parts, prompt = next(made), item.record
            if isinstance(parts, str):
                yield Problem(item.raw.place, parts)
                continue
            assert isinstance(prompt, Prompt)
            text = encoder.codec.render(prompt.messages, prompt.tools, add_generation_prompt=True)
            tokens = tuple(parts[0].tokens.tolist())
            row = PromptRow(item.raw.place, prompt.messages, text, tokens, prompt.fields, prompt.tools)
            yield row, content_key(prompt)
