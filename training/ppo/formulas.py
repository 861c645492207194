"""The mathematics of PPO and GRPO on completions: pure functions of tensors, no model, no optimizer, no process group.

Notation: b completions of a rollout, r tokens of the longest one, n action tokens (those really sampled, stop token
included). Rollout statistics are [b, r] with a mask made from lengths; losses take the n action tokens flat, so there
is no padding that they could touch. What must be summed over ranks goes through a `reduce` argument: it takes a tensor
and returns its sum over all ranks (the identity on one rank).

Sources: [PPO] arXiv 1707.06347, [GAE] arXiv 1506.02438, [LHP] arXiv 1909.08593 and its lm-human-preferences code,
[KL] J. Schulman, "Approximating KL divergence", 2020, [N+] arXiv 2403.17031, [DUAL] arXiv 1912.09729,
[DAPO] arXiv 2503.14476, [GSPO] arXiv 2507.18071.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]

MAX_LOG_RATIO = 20.0
"""exp(20) ≈ 5e8: beyond it a ratio says only "far", and exp would overflow."""


def one_rank(tensor: Tensor) -> Tensor:
    """The sum over ranks where there is only one."""
    return tensor


# ── Masks and moments ────────────────────────────────────────────────────────────────────────────────────────────────


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """[b] lengths → [b, width] bool, True on the first lengths[i] places of row i."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask`; what lies elsewhere may be anything, NaN included."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def masked_mean(values: Tensor, mask: Tensor, reduce: Reduce = one_rank) -> Tensor:
    """Mean of `values` where `mask`, over all ranks; 0 when the mask is empty everywhere."""
    total, count = reduce(torch.stack([masked_sum(values.double(), mask), mask.sum().double()]))
    return (total / count.clamp(min=1)).to(values.dtype)


def masked_moments(values: Tensor, mask: Tensor, reduce: Reduce = one_rank) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, biased variance), each a float64 scalar, of `values` where `mask`, over all ranks.

    Two passes in float64: the sum of squares minus the squared mean loses all digits when the mean is large.
    """
    exact = values.double()
    total, count = reduce(torch.stack([masked_sum(exact, mask), mask.sum().double()]))
    mean = total / count.clamp(min=1)
    variance = reduce(masked_sum((exact - mean).square(), mask)) / count.clamp(min=1)
    return count, mean, variance


def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce = one_rank, eps: float = 1e-8
) -> Tensor:
    """Scale `values` to unit variance over the masked places of all ranks, and to zero mean unless `shift_mean` is off.

    Shapes: any, the same for `values` and `mask`; places outside the mask come back as 0. [LHP] `whiten`.
    """
    _, mean, variance = masked_moments(values, mask, reduce)
    scaled = (values.double() - mean) * torch.rsqrt(variance + eps)
    if not shift_mean:
        scaled = scaled + mean
    return torch.where(mask, scaled, torch.zeros_like(scaled)).to(values.dtype)


class RunningMoments:
    """Mean and variance of every score seen so far, over all ranks; merged batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0
        """Sum of squared distances from the mean."""

    def update(self, values: Tensor, reduce: Reduce = one_rank) -> None:
        """Take in `values` [b] of this rank together with those of the others."""
        moments = masked_moments(values, torch.ones_like(values, dtype=torch.bool), reduce)
        count, mean, variance = (moment.item() for moment in moments)
        if count == 0:
            return
        delta, total = mean - self.mean, self.count + count
        self.squares += variance * count + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    def normalize(self, values: Tensor, eps: float = 1e-8) -> Tensor:
        """(values − mean) / deviation, of what was seen so far; the values themselves before two scores were seen."""
        if self.count < 2:
            return values
        return (values - self.mean) / (self.squares / self.count + eps) ** 0.5

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


# ── KL ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) from tokens drawn from the policy. [KL]

    Shapes: all the same. With d = log π − log π_ref: k1 = d (unbiased, may be negative), k2 = d²/2 (biased, small
    variance), k3 = exp(−d) − 1 + d (unbiased, never negative). Raises ValueError for another name.
    """
    log_ratio = (logprobs.float() - ref_logprobs.float()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"KL estimator must be k1, k2 or k3, not {estimator!r}")


@dataclass
class KLController:
    """The coefficient of the KL penalty: constant, or steered to a target. [LHP] `AdaptiveKLController`."""

    coef: float
    target: float | None = None
    """Nats per completion; None: the coefficient stays as it is."""
    horizon: int = 10_000

    def update(self, kl_per_completion: float, completions: int) -> None:
        """`kl_per_completion`: mean over completions of the KL summed over their tokens, over all ranks."""
        if self.target is None:
            return
        error = min(max(kl_per_completion / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * completions / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coef = state["coef"]


# ── Rewards and advantages ───────────────────────────────────────────────────────────────────────────────────────────


def token_rewards(scores: Tensor, kl: Tensor, lengths: Tensor, kl_coef: float) -> Tensor:
    """Reward of each action: −kl_coef · KL on every token and the score once, on the last. [LHP] `compute_rewards`

    scores [b], kl [b, r], lengths [b] ≥ 1 → [b, r], 0 after the end.
    """
    mask = length_mask(lengths, kl.shape[1])
    rewards = torch.where(mask, -kl_coef * kl, torch.zeros_like(kl))
    return rewards.scatter_add(1, (lengths - 1)[:, None], scores.to(rewards.dtype)[:, None])


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; the value after the last action of a completion is 0. [GAE] eq. 16

    rewards, values, mask [b, r], values[:, t] from the state *before* token t → (advantages, returns), both [b, r] and
    0 outside the mask. Returns are raw advantages + values: whiten the advantages afterwards.
    """
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards))
    values = torch.where(mask, values, torch.zeros_like(values))
    advantages = torch.zeros_like(rewards)
    following_value = following_advantage = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = delta + gamma * lam * following_advantage
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    # Rows that have ended contribute zeros from the right, so no masking is needed inside the loop.
    return advantages, advantages + values


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce = one_rank) -> Tensor:
    """1 − Var(returns − values) / Var(returns) over the action tokens of all ranks: 1 perfect, 0 as a constant."""
    _, _, residual = masked_moments(returns - values, mask, reduce)
    _, _, total = masked_moments(returns, mask, reduce)
    return torch.where(total > 0, 1.0 - residual / total.clamp(min=1e-12), torch.zeros_like(total)).float()


# ── Losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class PolicyLoss(NamedTuple):
    """Sums over n action tokens, so that micro-batches and ranks add up; divide by the global number of tokens."""

    loss: Tensor
    """Sum, with gradient."""
    clipped: Tensor
    """How many tokens the clip took the gradient from."""
    approx_kl: Tensor
    """Sum of k3 between the old and the new policy."""
    max_ratio: Tensor
    """The largest π/π_old (a maximum, not a sum)."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_range: float,
    dual_clip: float | None = None,
    *,
    clip_high: float | None = None,
    weights: Tensor | None = None,
    sequences: Tensor | None = None,
) -> PolicyLoss:
    """Σ max(−A·ρ, −A·clip(ρ, 1−ε, 1+ε)) with ρ = π/π_old, [PPO] eq. 7; where A < 0 at most −c·A, [DUAL] eq. 5.

    Shapes: all [n]; c is `dual_clip`. `clip_high` replaces the upper ε, [DAPO] eq. 10; `weights` multiply each token's
    loss; with `sequences` (the completion's number of each token) ρ is `sequence_ratio`'s. An empty n gives zeros that
    still carry a gradient of zero.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp() if sequences is None else sequence_ratio(log_ratio, sequences)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_range, 1.0 + (clip_range if clip_high is None else clip_high))
    losses = torch.maximum(plain, clipped)
    cut = clipped > plain
    if dual_clip is not None:
        bound = -dual_clip * advantages
        cut = cut | ((advantages < 0) & (bound < losses))
        losses = torch.where(advantages < 0, torch.minimum(losses, bound), losses)
    with torch.no_grad():
        approx_kl = (torch.expm1(log_ratio) - log_ratio).sum()
        max_ratio = ratio.max() if ratio.numel() else ratio.new_zeros(())
    total = losses.sum() if weights is None else (losses * weights).sum()
    return PolicyLoss(total, cut.sum(), approx_kl, max_ratio)


def sequence_ratio(log_ratio: Tensor, sequences: Tensor) -> Tensor:
    """[n] s_i = (π(y_i)/π_old(y_i))^(1/|y_i|), the geometric mean of a completion's ratios, at each of its tokens.

    log_ratio [n]; sequences [n] the completion's number of each token. [GSPO] eq. 7
    """
    count = int(sequences.max()) + 1 if sequences.numel() else 0
    sums = log_ratio.new_zeros(count).index_add(0, sequences, log_ratio)
    lengths = log_ratio.new_zeros(count).index_add(0, sequences, torch.ones_like(log_ratio))
    return (sums / lengths.clamp(min=1))[sequences].exp()


class ValueLoss(NamedTuple):
    """Sums over n action tokens."""

    loss: Tensor
    clipped: Tensor
    """How many tokens the clip took the gradient from."""


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> ValueLoss:
    """Σ ½ max((v − R)², (clip(v, v_old ± ε) − R)²); without `clip_range` Σ ½ (v − R)². All shapes [n]. [LHP], [N+]"""
    plain = (values - returns).square()
    if clip_range is None:
        return ValueLoss(0.5 * plain.sum(), plain.new_zeros((), dtype=torch.long))
    limited = values.clamp(old_values - clip_range, old_values + clip_range)  # exact inside: v, not v_old + (v − v_old)
    clipped = (limited - returns).square()
    return ValueLoss(0.5 * torch.maximum(plain, clipped).sum(), (clipped > plain).sum())
