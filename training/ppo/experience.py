"""Holds one rollout: its rows packed for the models by token budget, and what actor, critic and reference said of them.

Notation: b completions on this rank, s columns of prompt + completion, r tokens of the longest completion, n action
tokens (those really sampled) of the rows in a packed batch, t its tokens. An action's log-prob and value both come from
the state *before* it: the position of the token that precedes it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config.ppo import PPOTrainConfig
from training.data.batch import IGNORE, PackedBatch
from training.ppo import formulas as rl

LENGTHS, LEAST_QUANTUM = 8, 1024


@dataclass(frozen=True)
class FixedShapes:
    """Packed batches of few different lengths, so that compiled blocks are seldom compiled again.

    quantum: tokens are filled up to a multiple of it, by segments of at most max_length that nobody learns from;
    segments: their number in every batch, real or empty; max_length: the longest row there can be.
    """

    quantum: int
    segments: int
    max_length: int

    @classmethod
    def fitting(cls, rows: int, max_length: int, *budgets: int) -> FixedShapes:
        """For at most `rows` rows a batch, and batches of about these token budgets: about LENGTHS lengths for each."""
        largest = max(LEAST_QUANTUM, *(budget // LENGTHS for budget in budgets))
        quantum = max(LEAST_QUANTUM, min(budgets) // LENGTHS)
        return cls(quantum, rows + largest // max_length + 2, max_length)


@dataclass(frozen=True)
class Completions:
    """Rows that were rolled out. tokens int64 [b, s], prompt + completion, right-padded; lengths are on the host.

    A completion holds its stop token, so its length is at least 1. finished [b] bool: ended by a stop token.
    """

    tokens: Tensor
    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    finished: Tensor
    rows: tuple[str, ...]
    shapes: FixedShapes | None = None
    packs: dict[int, list[tuple[list[int], ActionBatch]]] = field(default_factory=dict, repr=False, compare=False)
    """What was packed for scoring, by token budget: several models read the same batches."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """r: tokens of the longest completion."""
        return max(self.response_lengths)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row, prompt and completion."""
        return tuple(p + r for p, r in zip(self.prompt_lengths, self.response_lengths, strict=True))

    @cached_property
    def responses(self) -> Tensor:
        """[b] completion lengths on the device of the tokens."""
        return torch.tensor(self.response_lengths, device=self.tokens.device)

    @cached_property
    def mask(self) -> Tensor:
        """[b, r] bool, True on action tokens."""
        return rl.length_mask(self.responses, self.width)

    def prompt_ids(self, row: int) -> list[int]:
        return self.tokens[row, : self.prompt_lengths[row]].tolist()

    def response_ids(self) -> list[list[int]]:
        """Each completion's token ids, copied from the device at once."""
        table = self.tokens.tolist()
        return [
            row[prompt : prompt + response]
            for row, prompt, response in zip(table, self.prompt_lengths, self.response_lengths, strict=True)
        ]


@dataclass(frozen=True)
class ActionBatch:
    """Some rows packed end to end. states [n]: where in the packed row each action's state is; places [n]: the action's
    index in a flattened [b, r] table. `packed.labels` holds the action tokens at their states."""

    packed: PackedBatch
    states: Tensor
    places: Tensor

    @property
    def actions(self) -> Tensor:
        """[n] the sampled tokens."""
        return self.packed.labels[self.states]


def pack(completions: Completions, rows: Sequence[int], *, budget: int = 0) -> ActionBatch:
    """The chosen rows in one packed batch, in the order given. Indices are made on the host and copied once.

    With fixed shapes a larger `budget` is filled up in larger steps, so that it too has few lengths.
    """
    device, stride, width = completions.tokens.device, completions.tokens.shape[1], completions.width
    lengths = [completions.lengths[row] for row in rows]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    spans, states, places = [], [], []
    for row, length, start in zip(rows, lengths, ends.tolist(), strict=False):
        prompt, response = completions.prompt_lengths[row], completions.response_lengths[row]
        spans.append(torch.arange(row * stride, row * stride + length))
        states.append(torch.arange(start + prompt - 1, start + prompt + response - 1))
        places.append(torch.arange(row * width, row * width + response))
    positions = [torch.arange(length) for length in lengths]
    if completions.shapes is not None:
        quantum = max(completions.shapes.quantum, budget // LENGTHS)
        filling, ends = _filling(int(ends[-1]), ends, quantum, completions.shapes)
        spans += [torch.zeros(length, dtype=torch.long) for length in filling]
        positions += [torch.arange(length) for length in filling]
    index = torch.stack([torch.cat(spans), torch.cat(positions)]).to(device, non_blocking=True)
    where = torch.stack([torch.cat(states), torch.cat(places)]).to(device, non_blocking=True)
    tokens = completions.tokens.flatten()[index[0]]
    labels = torch.full_like(tokens, IGNORE)
    labels[where[0]] = tokens[where[0] + 1]
    packed = PackedBatch(
        tokens=tokens,
        labels=labels,
        positions=index[1],
        cu_seqlens=ends.to(torch.int32).to(device, non_blocking=True),
        max_seqlen=completions.shapes.max_length if completions.shapes is not None else max(lengths),
        num_targets=where.shape[1],
        lengths=tuple(lengths),
        rows=tuple(completions.rows[row] for row in rows),
    )
    return ActionBatch(packed, where[0], where[1])


def _filling(total: int, ends: Tensor, quantum: int, shapes: FixedShapes) -> tuple[list[int], Tensor]:
    """(lengths of the segments that fill `total` up to a multiple of the quantum, all segment ends at their number)."""
    wanted = -(-total // quantum) * quantum
    whole, rest = divmod(wanted - total, shapes.max_length)
    filling = [shapes.max_length] * whole + [rest] * (rest > 0)
    ends = torch.cat([ends, total + torch.tensor(filling, dtype=torch.long).cumsum(0)])
    return filling, torch.cat([ends, ends.new_full((shapes.segments + 1 - len(ends),), wanted)])


def by_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Row numbers in as few bins as longest-first packing finds, none above `budget` tokens unless one row is."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [i for i, free in enumerate(room) if free >= lengths[row]]
        if fitting:
            chosen = min(fitting, key=lambda i: (room[i], i))
            bins[chosen].append(row)
            room[chosen] -= lengths[row]
        else:
            bins.append([row])
            room.append(budget - lengths[row])
    return [sorted(each) for each in bins]


def balanced(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Row numbers in exactly `count` bins, none empty, of about equal sums: longest first, to the lightest bin."""
    if not 1 <= count <= len(lengths):
        raise ValueError(f"{len(lengths)} rows can't fill {count} bins")
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, 0, i) for i in range(count)]  # fewest rows breaks ties, so that no bin stays empty
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, held, chosen = heapq.heappop(heap)
        bins[chosen].append(row)
        heapq.heappush(heap, (tokens + lengths[row], held + 1, chosen))
    return [sorted(each) for each in bins]


def packs(completions: Completions, budget: int) -> list[tuple[list[int], ActionBatch]]:
    """All rows in batches of up to `budget` tokens, with each batch's row numbers; made once."""
    if budget not in completions.packs:
        bins = by_budget(completions.lengths, budget)
        completions.packs[budget] = [(rows, pack(completions, rows, budget=budget)) for rows in bins]
    return completions.packs[budget]


@torch.no_grad()
def evaluate_actions(completions: Completions, budget: int, evaluate: Callable[[ActionBatch], Tensor]) -> Tensor:
    """[b, r] float32: `evaluate` gives one number per action of a packed batch ([n]); 0 elsewhere."""
    table = torch.zeros(len(completions) * completions.width, device=completions.tokens.device)
    for _, batch in packs(completions, budget):
        table[batch.places] = evaluate(batch).float()
    return table.view(len(completions), completions.width)


@torch.no_grad()
def evaluate_rows(completions: Completions, budget: int, evaluate: Callable[[PackedBatch], Tensor]) -> Tensor:
    """[b] float32: `evaluate` gives one number per row of a packed batch (a reward model's scores)."""
    scores = torch.zeros(len(completions), device=completions.tokens.device)
    for rows, batch in packs(completions, budget):
        scores[torch.tensor(rows, device=scores.device)] = evaluate(batch.packed).float()
    return scores


@dataclass(frozen=True)
class Experience:
    """What the updates learn from; every table is [b, r] float32 and 0 outside the mask."""

    completions: Completions
    logprobs: Tensor
    """Of the policy that sampled."""
    advantages: Tensor
    """Whitened if so configured (PPO), the same at each token of a completion (GRPO)."""
    scores: Tensor
    """[b] as the sources of the reward gave them, summed by weight."""
    shaped_scores: Tensor
    """[b] as they were learned from."""
    ref_logprobs: Tensor | None = None
    """None where no KL is measured."""
    kl: Tensor | None = None
    """Per-token estimate of KL(policy ‖ reference), by the configured estimator."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """[b] scores of each source of the reward, where there are several."""

    rewards: Tensor | None = None
    """Of each token; this and the next two only where there is a critic."""
    values: Tensor | None = None
    """Before each action."""
    returns: Tensor | None = None
    """Of the raw advantages."""

    weights: Tensor | None = None
    """Of each token's loss; None: 1 each."""
    divisor: Tensor | None = None
    """[b] what each completion adds to the number that the policy's loss is divided by; None: its tokens."""

    def flat(self, places: Tensor) -> dict[str, Tensor]:
        """The tables that there are at a packed batch's actions, [n] each, and which completion each action is of."""
        names = ("logprobs", "ref_logprobs", "values", "advantages", "returns", "weights")
        tables = {name: table for name in names if (table := getattr(self, name)) is not None}
        flat = {name: table.flatten()[places] for name, table in tables.items()}
        return {**flat, "sequences": places // self.completions.width}


def joined(first: Experience, second: Experience, rows: Sequence[int]) -> Experience:
    """The chosen rows of two rollouts as one, by their numbers in the first and, after those, in the second."""
    one, two = first.completions, second.completions
    index = torch.tensor(rows, device=one.tokens.device)

    def both(a: Tensor, b: Tensor) -> Tensor:
        wide = max(a.shape[-1], b.shape[-1]) if a.ndim == 2 else 0
        tables = [F.pad(t, (0, wide - t.shape[1])) if t.ndim == 2 else t for t in (a, b)]
        return torch.cat(tables)[index]

    def pick(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
        return tuple([*a, *b][row] for row in rows)

    completions = Completions(
        both(one.tokens, two.tokens),
        pick(one.prompt_lengths, two.prompt_lengths),
        pick(one.response_lengths, two.response_lengths),
        both(one.finished, two.finished),
        pick(one.rows, two.rows),
        one.shapes,
    )
    tables = {}
    for name in ("logprobs", "advantages", "scores", "shaped_scores", "ref_logprobs", "kl"):
        a, b = getattr(first, name), getattr(second, name)
        table = both(a, b) if a is not None else None
        tables[name] = table[:, : completions.width] if table is not None and table.ndim == 2 else table
    parts = {name: both(scores, second.parts[name]) for name, scores in first.parts.items()}
    return Experience(completions, **tables, parts=parts)


def build_experience(
    completions: Completions,
    *,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    scores: Tensor,
    shaped_scores: Tensor,
    kl_coef: float,
    estimator: str,
    train: PPOTrainConfig,
    parts: Mapping[str, Tensor] | None = None,
    reduce: rl.Reduce = rl.one_rank,
) -> Experience:
    """Rewards, advantages and returns of a rollout. Tables [b, r], scores [b]; whitening is over all ranks."""
    mask = completions.mask
    kl = torch.where(mask, rl.kl_estimate(logprobs, ref_logprobs, estimator), 0.0)
    rewards = rl.token_rewards(shaped_scores, kl, completions.responses, kl_coef)
    if train.whiten_rewards:
        rewards = rl.whiten(rewards, mask, shift_mean=False, reduce=reduce)
    advantages, returns = rl.gae(rewards, values, mask, train.gamma, train.lam)
    if train.whiten_advantages:
        advantages = rl.whiten(advantages, mask, reduce=reduce)
    return Experience(
        completions, logprobs, advantages, scores, shaped_scores, ref_logprobs=ref_logprobs, kl=kl, parts=parts or {},
        rewards=rewards, values=values, returns=returns,
    )  # fmt: skip


def describe(experience: Experience, reduce: rl.Reduce = rl.one_rank) -> dict[str, float]:
    """The rollout's figures over all ranks, by the names of the metrics; one copy from the device."""
    data, mask = experience.completions, experience.completions.mask
    everyone = torch.ones_like(experience.scores, dtype=torch.bool)

    def mean(values: Tensor, where: Tensor = everyone) -> Tensor:
        return rl.masked_mean(values.double(), where, reduce)

    count, reward, reward_variance = rl.masked_moments(experience.scores, everyone, reduce)
    figures = {
        "completions": count,
        "tokens": reduce(mask.sum().double()),
        "reward": reward,
        "reward_std": reward_variance.sqrt(),
        "shaped_reward": mean(experience.shaped_scores),
        **{f"reward_{name}": mean(scores) for name, scores in experience.parts.items()},
    }
    if experience.kl is not None:
        figures["kl"] = mean(torch.where(mask, experience.kl, 0.0).sum(1))
        figures["kl_per_token"] = mean(experience.kl, mask)
    if experience.values is not None and experience.returns is not None:
        figures["value"] = mean(experience.values, mask)
        figures["return"] = mean(experience.returns, mask)
        explained = rl.explained_variance(experience.values, experience.returns, mask, reduce)
        figures["explained_variance"] = explained.double()
    figures["response_length"] = mean(data.responses)
    figures["eos_fraction"] = mean(data.finished)
    numbers = torch.stack(list(figures.values())).tolist()
    return dict(zip(figures, numbers, strict=True))
