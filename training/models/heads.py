"""What is trained: a trunk with a head that computes its loss inside forward, so that DDP and ZeRO wrap all of it.

Notation: t tokens of a packed row, n documents, p pairs, d hidden size. Losses are sums; the caller divides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel

from training.config.stages import DPOLossConfig, RewardLossConfig
from training.data.batch import IGNORE, PackedBatch
from training.losses import PAIR_LOSSES, centering_loss, dpo_loss, orpo_loss
from training.models.attention import PACKED, packed_hidden
from training.models.chunked_head import Head, cross_entropy_sum, only_targets, token_logprobs
from training.models.families import logits_of
from training.models.lora import adapters_off


@dataclass(frozen=True)
class HeadOptions:
    """How the head is computed; the result doesn't depend on it."""

    chunk: int = 8192
    compiled: bool = False
    pad_id: int = 0
    own_forward: bool = False
    """Let the model compute its loss by itself on padded rows (tensor parallelism splits its head)."""


def head_of(model: PreTrainedModel) -> Head:
    """The output layer of a causal LM."""
    layer, form = model.get_output_embeddings(), logits_of(model.config)
    weight = layer.weight
    if type(weight) is not nn.Parameter:
        # sharded parameters gather their values when an operation reads them
        weight = weight.clone().as_subclass(torch.Tensor)
    return Head(weight, getattr(layer, "bias", None), form.scale, form.cap)


class LanguageModelLoss(nn.Module):
    """batch → sum of next-token cross-entropies over its targets (fp32 scalar)."""

    def __init__(self, model: PreTrainedModel, options: HeadOptions | None = None) -> None:
        super().__init__()
        self.model = model
        self.options = options or HeadOptions()

    def forward(self, batch: PackedBatch) -> Tensor:
        if self.options.own_forward:
            rows = batch.padded(self.options.pad_id)
            labels = rows.unshifted_labels()
            out = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask.long(), labels=labels)
            total: Tensor = out.loss.float() * batch.num_targets
            return total
        hidden = packed_hidden(self.model, batch, pad_id=self.options.pad_id)
        return cross_entropy_sum(
            hidden, head_of(self.model), batch.labels, chunk=self.options.chunk, num_targets=batch.num_targets,
            compiled=self.options.compiled,
        )  # fmt: skip


def document_logprobs(model: PreTrainedModel, batch: PackedBatch, options: HeadOptions) -> Tensor:
    """[n] summed log-probs of each document's targets, fp32, with gradients."""
    hidden = packed_hidden(model, batch, pad_id=options.pad_id)
    segments, owner = batch.cu_seqlens.shape[0] - 1, _owners(batch)
    hidden, labels, owner = _targets_with_owner(hidden, batch, owner, options.chunk)
    logprobs, _ = token_logprobs(hidden, head_of(model), labels, chunk=options.chunk, compiled=options.compiled)
    sums = torch.zeros(segments, dtype=torch.float32, device=logprobs.device).index_add(0, owner, logprobs)
    return sums[: batch.num_documents]


def target_counts(batch: PackedBatch) -> Tensor:
    """[n] how many targets each document has, fp32."""
    segments = batch.cu_seqlens.shape[0] - 1
    counts = torch.zeros(segments, dtype=torch.float32, device=batch.labels.device)
    return counts.index_add(0, _owners(batch), (batch.labels != IGNORE).float())[: batch.num_documents]


def _owners(batch: PackedBatch) -> Tensor:
    """[t] the segment's number of each token."""
    spans = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).long()
    numbers = torch.arange(len(spans), device=spans.device)
    return torch.repeat_interleave(numbers, spans, output_size=batch.labels.shape[0])


def _targets_with_owner(hidden: Tensor, batch: PackedBatch, owner: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    size = chunk if hidden.is_cuda else 1
    needed = -(-max(batch.num_targets, 1) // size) * size
    if needed >= batch.labels.shape[0]:
        return hidden, batch.labels, owner
    index = torch.argsort((batch.labels == IGNORE).to(torch.uint8), stable=True)[:needed]
    return hidden.index_select(0, index), batch.labels.index_select(0, index), owner.index_select(0, index)


def wins(chosen: Tensor, rejected: Tensor) -> Tensor:
    """How often chosen is above rejected; a tie counts half, so that a head of zeros is as good as a coin."""
    return (0.5 + 0.5 * torch.sign(chosen.detach() - rejected.detach())).sum()


class PreferenceLoss(nn.Module):
    """Pairs → the loss sum of DPO or ORPO and its figures. The reference's log-probs (DPO) come with the call, or from
    the model itself with its adapters off."""

    def __init__(self, model: PreTrainedModel, config: DPOLossConfig, options: HeadOptions | None = None) -> None:
        super().__init__()
        self.model, self.config, self.options = model, config, options or HeadOptions()

    @torch.no_grad()
    def reference(self, batch: PackedBatch) -> Tensor:
        """[n] log-probs under the reference: the model as it is now, adapters off (dropout off too)."""
        was_training = self.model.training
        self.model.eval()
        try:
            with adapters_off(self.model):
                return document_logprobs(self.model, batch, self.options)
        finally:
            self.model.train(was_training)

    def forward(self, batch: PackedBatch, reference: Tensor | None = None) -> dict[str, Tensor]:
        assert batch.pairs is not None
        chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
        if self.config.loss == "orpo":
            policy, tokens = document_logprobs(self.model, batch, self.options), target_counts(batch)
            losses, rewards = orpo_loss(
                policy[chosen], policy[rejected], tokens[chosen], tokens[rejected], beta=self.config.beta
            )
        else:
            if reference is None:
                reference = self.reference(batch)
            policy = document_logprobs(self.model, batch, self.options)
            losses, rewards = dpo_loss(
                policy[chosen], policy[rejected], reference[chosen], reference[rejected],
                beta=self.config.beta, label_smoothing=self.config.label_smoothing,
            )  # fmt: skip
        return {
            "loss": losses.sum(),
            "accuracy": wins(rewards[:, 0], rewards[:, 1]),
            "margin": (rewards[:, 0] - rewards[:, 1]).sum(),
            "reward_chosen": rewards[:, 0].sum(),
            "reward_rejected": rewards[:, 1].sum(),
        }


class RewardModel(nn.Module):
    """A trunk and one linear score, read at each document's last token (found by length, never by padding)."""

    def __init__(self, trunk: PreTrainedModel, *, pad_id: int = 0, head_init: str = "normal") -> None:
        super().__init__()
        self.trunk = trunk
        self.pad_id = pad_id
        width = int(getattr(trunk.config, "word_embed_proj_dim", trunk.config.hidden_size))
        self.score = nn.Linear(width, 1, bias=False, dtype=next(trunk.parameters()).dtype)
        if head_init == "zero":
            nn.init.zeros_(self.score.weight)
        else:
            nn.init.normal_(self.score.weight, std=(width + 1) ** -0.5)

    def scores(self, batch: PackedBatch) -> Tensor:
        """[n] one score a document, fp32."""
        hidden = packed_hidden(self.trunk, batch, pad_id=self.pad_id)
        return F.linear(hidden[batch.last_tokens].float(), self.score.weight.float())[:, 0]

    def token_scores(self, batch: PackedBatch) -> Tensor:
        """[t] the score read at every token, fp32 (a critic's values)."""
        hidden = packed_hidden(self.trunk, batch, pad_id=self.pad_id)
        return F.linear(hidden.float(), self.score.weight.float())[:, 0]

    def forward(self, batch: PackedBatch) -> Tensor:
        return self.scores(batch)


class RewardLoss(nn.Module):
    """Pairs → the reward model's loss sum and its figures."""

    def __init__(self, model: RewardModel, config: RewardLossConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: PackedBatch) -> dict[str, Tensor]:
        scores = self.model.scores(batch)
        assert batch.pairs is not None
        chosen, rejected = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
        margin: Tensor | float = self.config.margin
        if batch.margins is not None:
            margin = torch.where(batch.margins != 0, batch.margins, self.config.margin)
        losses = PAIR_LOSSES[self.config.loss](chosen, rejected, margin)
        if self.config.centering:
            losses = losses + self.config.centering * centering_loss(chosen, rejected)
        return {
            "loss": losses.sum(),
            "accuracy": wins(chosen, rejected),
            "margin": (chosen - rejected).detach().sum(),
            "score_chosen": chosen.detach().sum(),
            "score_rejected": rejected.detach().sum(),
        }


class NoisyEmbedding:
    """NEFTune (Jain et al. 2023): while training, adds uniform noise of ±alpha/√(L·d) to embeddings, L each document's
    length. Works on packed and on padded rows."""

    def __init__(self, model: PreTrainedModel, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: Tensor | None = None
        self.packed = model.config._attn_implementation == PACKED
        self.embedding = model.get_input_embeddings()
        self.handle = self.embedding.register_forward_hook(self._add)

    @contextmanager
    def noise_for(self, batch: PackedBatch) -> Iterator[None]:
        """The forward passes inside get noise scaled for this batch's documents; others get none."""
        lengths = torch.tensor(batch.lengths, dtype=torch.float32)
        if self.packed:
            lengths = torch.repeat_interleave(lengths, torch.tensor(batch.lengths))
        self.lengths = lengths.to(batch.tokens.device, non_blocking=True)
        try:
            yield
        finally:
            self.lengths = None

    def _add(self, module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if self.lengths is None or not module.training:
            return output
        width = output.shape[-1]
        size = self.alpha / (self.lengths * width).sqrt()
        tail = (0, output.shape[1] - size.shape[0])
        size = F.pad(size, tail)[None, :, None] if self.packed else size[:, None, None]
        return output + (torch.rand_like(output) * 2 - 1) * size.to(output.dtype)


__all__ = [
    "HeadOptions", "LanguageModelLoss", "NoisyEmbedding", "PreferenceLoss", "RewardLoss", "RewardModel",
    "document_logprobs", "head_of", "only_targets",
]  # fmt: skip
