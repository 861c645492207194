"""Pure loss functions of tensors. Sums, not means: the caller divides by a count over all ranks and micro-batches.

Notation: p pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def log_sigmoid_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """[p] −log σ(chosen − rejected − margin): Ouyang et al. 2022, eq. 1; with margins Llama 2, eq. 2.

    chosen, rejected: [p] scores; margin: [p] or one number, by how much chosen should win.
    """
    return -F.logsigmoid(chosen - rejected - margin)


def log_exp_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """[p] log(1 + exp(rejected − chosen + margin)), without overflow (softplus). Equals `log_sigmoid_loss`."""
    return F.softplus(rejected - chosen + margin)


def centering_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[p] (chosen + rejected)²: keeps a reward model's scores around zero (Eisenstein et al. 2023)."""
    return (chosen + rejected).square()


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Direct preference optimization, Rafailov et al. 2023, eq. 7; with label smoothing ε the conservative form.

    All inputs: [p] summed log-probs of the answers under the policy and the reference.
    Returns ([p] losses −(1−ε)·log σ(βh) − ε·log σ(−βh) with h the difference of log-ratios,
    [p, 2] implicit rewards β·log(π/π_ref) of chosen and rejected, detached).
    """
    chosen_ratio, rejected_ratio = chosen - reference_chosen, rejected - reference_rejected
    logits = beta * (chosen_ratio - rejected_ratio)
    losses = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    rewards = beta * torch.stack([chosen_ratio, rejected_ratio], dim=-1).detach()
    return losses, rewards


def orpo_loss(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Odds ratio preference optimization, Hong et al. 2024 (arXiv 2403.07691), eq. 6: no reference.

    chosen, rejected: [p] summed log-probs of the answers; *_tokens: [p] how many tokens they have, so that
    P(y) = exp(mean log-prob) and odds(y) = P / (1 − P).
    Returns ([p] losses −log P(chosen) − β·log σ(log odds(chosen)/odds(rejected)), [p, 2] β·log odds, detached).
    """
    good, bad = chosen / chosen_tokens, rejected / rejected_tokens
    odds = [mean - torch.log(-torch.expm1(mean.clamp(max=-1e-6))) for mean in (good, bad)]
    losses = -good - beta * F.logsigmoid(odds[0] - odds[1])
    return losses, beta * torch.stack(odds, dim=-1).detach()


PAIR_LOSSES = {"log_sig": log_sigmoid_loss, "log_exp": log_exp_loss}
