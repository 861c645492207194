"""Optimizer updates of PPO and GRPO: minibatches that all ranks agree on, one actor (and critic) step for each.

A minibatch is a set of completions over all ranks; each rank takes an equal number of them, cut into micro-batches by
token budget. Losses are sums over action tokens divided by one number of the minibatch over all ranks (its action
tokens, if nothing else is said): neither the number of ranks nor that of micro-batches changes the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from training.data.batch import StepBatch
from training.ppo.experience import Completions, Experience, balanced, by_budget, pack
from training.ppo.models import LanguageTask, PolicyTask, ValueTask
from training.strategies.base import Strategy, Trained


@dataclass(frozen=True)
class Minibatch:
    """micro_batches: this rank's rows, as many lists on every rank; tokens: action tokens over all ranks; divisor: what
    the policy's loss is divided by."""

    micro_batches: list[list[int]]
    tokens: int
    divisor: int


def over_ranks(strategy: Strategy, mine: Tensor) -> Tensor:
    """[dp_size, *shape]: `mine` of every rank."""
    table = torch.zeros(strategy.dp_size, *mine.shape, dtype=mine.dtype, device=mine.device)
    table[strategy.dp_rank] = mine
    return strategy.all_reduce_sum(table)


def plan(
    strategy: Strategy, completions: Completions, *, epochs: int, minibatch_size: int, budget: int, seed: Sequence[int],
    divisor: Tensor | None = None,
) -> list[Minibatch]:  # fmt: skip
    """The updates of one rollout: `epochs` passes, each newly shuffled. One small message between the ranks in all.

    divisor [b] int64: what each completion adds to the number that the policy's loss is divided by; None: its tokens.
    """
    local = minibatch_size // strategy.dp_size
    rows: list[list[int]] = []
    for epoch in range(epochs):
        order = np.random.default_rng([*seed, epoch, strategy.dp_rank]).permutation(len(completions)).tolist()
        rows += [order[i : i + local] for i in range(0, len(order), local)]
    lengths, responses = completions.lengths, completions.response_lengths
    parts = responses if divisor is None else divisor.tolist()
    facts = [
        (sum(responses[i] for i in each), sum(parts[i] for i in each),
         len(by_budget([lengths[i] for i in each], budget)))
        for each in rows
    ]  # fmt: skip
    everywhere = over_ranks(strategy, torch.tensor(facts, dtype=torch.long))
    sums, counts = everywhere[:, :, :2].sum(0).tolist(), everywhere[:, :, 2].amax(0).tolist()
    return [
        Minibatch([[each[i] for i in bin] for bin in balanced([lengths[i] for i in each], count)], tokens, divisor)
        for each, (tokens, divisor), count in zip(rows, sums, counts, strict=True)
    ]


def any_rank(strategy: Strategy, mine: bool) -> bool:
    """Whether `mine` is true on any rank; all get the same answer."""
    return float(strategy.all_reduce_sum(torch.tensor([float(mine)]))) > 0


@dataclass
class UpdateStats:
    """What the updates of one rollout saw, summed on the device; `finish` makes means over all tokens and ranks."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    max_ratio: Tensor | None = None
    counts: dict[str, int] = field(default_factory=dict)
    norms: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.double()

    def count(self, name: str, number: int) -> None:
        """`number` is already a sum over ranks."""
        self.counts[name] = self.counts.get(name, 0) + number

    def finish(self, strategy: Strategy) -> dict[str, float]:
        """Names as in the metrics, one message between ranks and one copy from the device."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        device = self.sums[names[0]].device
        extremes = [self.max_ratio if self.max_ratio is not None else torch.zeros((), device=device)]
        table = over_ranks(
            strategy, torch.stack([*(self.sums[name].double() for name in names), *(e.double() for e in extremes)])
        )
        norms = [torch.stack(each).mean().double().to(device) for each in self.norms.values()]
        numbers = torch.cat([table[:, :-1].sum(0), table[:, -1:].amax(0), *(n.reshape(1) for n in norms)]).tolist()
        result = {
            name: total / max(self.counts[_owner(name)], 1)
            for name, total in zip(names, numbers[: len(names)], strict=True)
        }
        if self.max_ratio is not None:
            result["ratio_max"] = numbers[len(names)]
        result.update(zip((f"{name}_grad_norm" for name in self.norms), numbers[len(names) + 1 :], strict=True))
        return result


def _owner(name: str) -> str:
    """Which count a sum is divided by."""
    if name in ("policy_loss", "ptx_loss"):
        return name.removesuffix("_loss")
    return "critic" if name.startswith("value") else "actor"


def update(
    strategy: Strategy,
    actor: Trained,
    critic: Trained | None,
    experience: Experience,
    minibatch: Minibatch,
    stats: UpdateStats,
    *,
    train_actor: bool = True,
    ptx: StepBatch | None = None,
    ptx_coef: float = 0.0,
) -> None:
    """One step of the critic, if there is one, and (unless it still waits) of the actor on one minibatch.

    `ptx`: documents of the side loss for this update, added to the policy's with `ptx_coef`.
    """
    batches = [pack(experience.completions, rows) for rows in minibatch.micro_batches]
    tables = [experience.flat(batch.places) for batch in batches]
    if train_actor:
        side = ptx.micro_batches if ptx is not None else ()
        scale = strategy.dp_size / max(minibatch.divisor, 1)
        for i, (batch, table) in enumerate(zip(batches, tables, strict=True)):
            with strategy.accumulate(actor, last=not side and i == len(batches) - 1):
                step = actor.module(PolicyTask.of(batch, table, scale))
                strategy.backward(actor, step.loss)
            stats.add(
                policy_loss=step.policy_loss, entropy=step.entropy, clip_fraction=step.clipped, approx_kl=step.approx_kl
            )
            stats.max_ratio = (
                step.max_ratio if stats.max_ratio is None else torch.maximum(stats.max_ratio, step.max_ratio)
            )
        for i, packed in enumerate(side):
            assert ptx is not None
            packed = packed.to(strategy.device, non_blocking=True)
            with strategy.accumulate(actor, last=i == len(side) - 1):
                step = actor.module(LanguageTask(packed, ptx_coef * strategy.dp_size / ptx.num_targets))
                strategy.backward(actor, step.loss)
            stats.add(ptx_loss=step.policy_loss)
        stats.count("actor", minibatch.tokens)
        stats.count("policy", minibatch.divisor)
        stats.count("ptx", ptx.num_targets if ptx is not None else 0)
        stats.norms.setdefault("actor", []).append(strategy.step(actor))
    if critic is None:
        return
    for i, (batch, table) in enumerate(zip(batches, tables, strict=True)):
        with strategy.accumulate(critic, last=i == len(batches) - 1):
            task = ValueTask(batch, table["values"], table["returns"], strategy.dp_size / minibatch.tokens)
            found = critic.module(task)
            strategy.backward(critic, found.loss)
        stats.add(value_loss=found.value_loss, value_clip_fraction=found.clipped)
    stats.count("critic", minibatch.tokens)
    stats.norms.setdefault("critic", []).append(strategy.step(critic))
