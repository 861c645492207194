"""The mathematics of GRPO and its relatives: completions of one prompt compared with each other. Pure functions.

Notation: b completions in groups of g that follow one another (b is a multiple of g), r tokens of the longest one.

Sources: [GRPO] arXiv 2402.03300, [RLOO] arXiv 2402.14740, [DAPO] arXiv 2503.14476, [DR] arXiv 2503.20783 (Dr. GRPO).
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.ppo import formulas as rl

SAME = 1e-6
"""Scores that differ by less are alike; it also keeps a deviation from dividing by nothing."""


def group_advantages(scores: Tensor, group: int, advantage: str, scale: str, reduce: rl.Reduce = rl.one_rank) -> Tensor:
    """Scores [b] → advantages [b], one for each completion.

    advantage: group_mean, r − mean(r) [GRPO] §4.1.2; leave_one_out, r_i − mean of the others [RLOO] eq. 8, which is the
    same times g/(g−1). scale: what it is divided by: "group", the deviation within the group [GRPO]; "batch", that of
    all scores on all ranks; "none" [DR] §3. Deviations are unbiased, as in the papers' code.
    """
    table = scores.float().view(-1, group)
    advantages = table - table.mean(1, keepdim=True)
    if advantage == "leave_one_out":
        advantages = advantages * (group / (group - 1))
    if scale == "group":
        advantages = advantages / (table.std(1, keepdim=True) + SAME)
    elif scale == "batch":
        count, _, variance = rl.masked_moments(scores, torch.ones_like(scores, dtype=torch.bool), reduce)
        advantages = advantages / ((variance * count / (count - 1)).sqrt().float() + SAME)
    return advantages.flatten()


def with_signal(scores: Tensor, group: int) -> Tensor:
    """[b/g] bool: whether a group's scores [b] differ, so that something can be learned from it. [DAPO] eq. 11"""
    table = scores.view(-1, group)
    return (table.amax(1) - table.amin(1)) > SAME


def overlong_penalty(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """[b] in −1..0: nothing up to longest − buffer tokens, from there down to −1 at `longest`. [DAPO] eq. 13"""
    return ((longest - buffer - lengths).float() / max(buffer, 1)).clamp(-1, 0) if buffer else lengths.float() * 0


def token_weights(mask: Tensor, learned: Tensor, loss_type: str, longest: int) -> tuple[Tensor, Tensor]:
    """(w [b, r] of each token's loss, d [b] int64): the loss is Σ w·l / Σ d over a minibatch.

    mask [b, r]: action tokens; learned [b] bool: completions that count. dapo: the mean over all tokens, [DAPO] eq. 12;
    grpo: over a completion's tokens and then over completions, [GRPO] eq. 3; dr_grpo: a completion's sum divided by
    `longest`, the same for all, then the mean over completions, [DR].
    """
    weights = (mask & learned[:, None]).float()
    if loss_type == "dapo":
        return weights, weights.sum(1).long()
    return weights / (mask.sum(1, keepdim=True) if loss_type == "grpo" else longest), torch.ones_like(learned).long()
