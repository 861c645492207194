"""Actor and critic of PPO and GRPO as modules whose forward gives their loss, so that any strategy can wrap them.

What a forward is given comes in one dataclass: wrappers that cast floating-point arguments to the weights' precision
(ZeRO, Gemini) leave it alone, and old log-probs stay in float32. Dropout is off in every model, in training too: old
and new log-probs must be of the same network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel

from training.data.batch import IGNORE, PackedBatch
from training.models.attention import packed_hidden
from training.models.chunked_head import token_logprobs
from training.models.heads import RewardModel, head_of
from training.ppo import formulas as rl
from training.ppo.experience import ActionBatch, Completions, evaluate_actions

HEAD_ROWS = 1024
"""A compiled head is called with multiples of this many actions."""


def without_dropout(module: nn.Module) -> nn.Module:
    """Set every dropout of `module` to zero, whatever mode it is put in later."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout", "hidden_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return module


@dataclass(frozen=True)
class PolicyTask:
    """One micro-batch for the actor. logprobs (old ones), advantages: float32 [n]; the loss is multiplied by scale.

    weights [n] of each token's loss; ref_logprobs [n] where KL is in the loss; sequences [n]: the completion's number.
    """

    batch: ActionBatch
    logprobs: Tensor
    advantages: Tensor
    scale: float
    weights: Tensor | None = None
    ref_logprobs: Tensor | None = None
    sequences: Tensor | None = None

    @classmethod
    def of(cls, batch: ActionBatch, table: Mapping[str, Tensor], scale: float) -> PolicyTask:
        """From an experience's tables at the batch's actions."""
        names = ("weights", "ref_logprobs", "sequences")
        return cls(batch, table["logprobs"], table["advantages"], scale, **{n: table[n] for n in names if n in table})


@dataclass(frozen=True)
class LanguageTask:
    """One micro-batch of the side loss on SFT or PT data (InstructGPT's ptx)."""

    batch: PackedBatch
    scale: float


@dataclass(frozen=True)
class ValueTask:
    """One micro-batch for the critic. values (old ones), returns: float32 [n]."""

    batch: ActionBatch
    values: Tensor
    returns: Tensor
    scale: float


class PolicyStep(NamedTuple):
    """loss: what backward is called on (scaled). The rest are sums over n, except max_ratio."""

    loss: Tensor
    policy_loss: Tensor
    entropy: Tensor
    clipped: Tensor
    approx_kl: Tensor
    max_ratio: Tensor


class ValueStep(NamedTuple):
    """loss: what backward is called on (scaled). The rest are sums over n."""

    loss: Tensor
    value_loss: Tensor
    clipped: Tensor


class Actor(nn.Module):
    """A causal language model as a policy over the next token."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 1.0,
        clip_range: float = 0.2,
        dual_clip: float | None = None,
        clip_high: float | None = None,
        sequence_ratio: bool = False,
        kl_coef: float = 0.0,
        kl_estimator: str = "k3",
        entropy_coef: float = 0.0,
        pad_id: int = 0,
        chunk: int = 8192,
        compiled_head: bool = False,
    ) -> None:
        super().__init__()
        self.model = without_dropout(model)
        self.temperature, self.clip_range, self.dual_clip = temperature, clip_range, dual_clip
        self.clip_high, self.sequence_ratio = clip_high, sequence_ratio
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator
        self.entropy_coef, self.pad_id, self.chunk, self.compiled_head = entropy_coef, pad_id, chunk, compiled_head

    def action_logprobs(self, batch: ActionBatch) -> tuple[Tensor, Tensor]:
        """(log π(action | state), entropy of π(· | state)), float32 [n] each, at the sampling temperature."""
        hidden = packed_hidden(self.model, batch.packed, pad_id=self.pad_id)[batch.states]
        return self._head(hidden, batch.actions, self.temperature)

    def _head(self, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        count = len(tokens)
        if self.compiled_head:  # rows that count for nothing keep the number of different shapes small
            filling = -count % HEAD_ROWS
            hidden, tokens = F.pad(hidden, (0, 0, 0, filling)), F.pad(tokens, (0, filling), value=IGNORE)
        logprobs, entropy = token_logprobs(
            hidden, head_of(self.model), tokens, temperature=temperature, chunk=self.chunk, compiled=self.compiled_head
        )  # fmt: skip
        return logprobs[:count], entropy[:count]

    def forward(self, task: PolicyTask | LanguageTask) -> PolicyStep:
        if isinstance(task, LanguageTask):
            return self._language(task)
        logprobs, entropy = self.action_logprobs(task.batch)
        found = rl.policy_loss(
            logprobs, task.logprobs, task.advantages, self.clip_range, self.dual_clip, clip_high=self.clip_high,
            weights=task.weights, sequences=task.sequences if self.sequence_ratio else None,
        )  # fmt: skip
        loss, weights = found.loss, 1.0 if task.weights is None else task.weights
        if self.entropy_coef:
            loss = loss - self.entropy_coef * (entropy * weights).sum()
        if self.kl_coef:
            assert task.ref_logprobs is not None
            kl = rl.kl_estimate(logprobs, task.ref_logprobs, self.kl_estimator)
            loss = loss + self.kl_coef * (kl * weights).sum()
        return PolicyStep(
            loss * task.scale, found.loss.detach(), entropy.sum().detach(), found.clipped, found.approx_kl,
            found.max_ratio,
        )  # fmt: skip

    def _language(self, task: LanguageTask) -> PolicyStep:
        """Negative log-likelihood at temperature 1, summed over target tokens; also told as `policy_loss`."""
        targets = (task.batch.labels >= 0).nonzero().flatten()
        hidden = packed_hidden(self.model, task.batch, pad_id=self.pad_id)[targets]
        logprobs, _ = self._head(hidden, task.batch.labels[targets], 1.0)
        total = -logprobs.sum()
        nothing = total.detach() * 0
        return PolicyStep(total * task.scale, total.detach(), nothing, nothing, nothing, nothing)


def action_logprobs(actor: Actor, completions: Completions, budget: int) -> Tensor:
    """[b, r] float32 log-probs of a rollout's actions, by packed forwards of up to `budget` tokens, no gradient."""
    return evaluate_actions(completions, budget, lambda batch: actor.action_logprobs(batch)[0])


class Critic(nn.Module):
    """A trunk with one linear value, and its clipped regression loss. The shape is a reward model's, read at states."""

    def __init__(self, model: RewardModel, *, clip_range: float | None = 0.2, coef: float = 1.0) -> None:
        super().__init__()
        self.model = without_dropout(model)
        self.clip_range, self.coef = clip_range, coef

    def action_values(self, batch: ActionBatch) -> Tensor:
        """Value of the state before each action, float32 [n]."""
        hidden = packed_hidden(self.model.trunk, batch.packed, pad_id=self.model.pad_id)[batch.states]
        return F.linear(hidden.float(), self.model.score.weight.float())[:, 0]

    def forward(self, task: ValueTask) -> ValueStep:
        found = rl.value_loss(self.action_values(task.batch), task.values, task.returns, self.clip_range)
        return ValueStep(found.loss * (self.coef * task.scale), found.loss.detach(), found.clipped)
