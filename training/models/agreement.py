"""Checks before the first step that a model's loss here is the one that transformers computes for it.

Heads, attention and packing are ours; what a model means is what its own forward in transformers does. Both see some
documents of the first micro-batch: ours packed into one row, theirs one after the other with its own attention. One
of ours is the beginning of another, so that a model that looks ahead is found, too. A few hundred tokens, no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel

from training.data.batch import IGNORE, PackedBatch
from training.errors import ConfigError
from training.models.attention import PACKED, packed_hidden
from training.models.blocks import forget, trunk_of
from training.models.chunked_head import token_logprobs
from training.models.compile import uncompiled
from training.models.families import FAMILIES
from training.models.heads import head_of

DOCUMENTS, LONGEST = 3, 160
"""Documents that are compared, and tokens of each."""


class Tolerance(NamedTuple):
    """Allowed difference of the loss (a share of it), and of single log-probs or hidden states (mean, absolute)."""

    loss: float
    each: float


TOLERANCES = {
    torch.float32: Tolerance(1e-3, 1e-2),
    torch.bfloat16: Tolerance(1e-2, 0.15),
    torch.float16: Tolerance(1e-2, 0.1),
}
"""What rounding explains: transformers rounds logits to the weights' precision, which is most of it."""


def documents_of(batch: PackedBatch) -> list[Tensor]:
    """The tokens of each document of a batch."""
    return [tokens for tokens, _ in batch.documents()]


def _beginnings(documents: Sequence[Tensor]) -> list[Tensor]:
    """The beginnings of some documents, and the first half of the first one once more."""
    found = [tokens[:LONGEST] for tokens in documents if len(tokens) > 1][:DOCUMENTS]
    if found and len(found[0]) > 3:
        found.append(found[0][: len(found[0]) // 2])
    return found


def together(documents: Sequence[Tensor]) -> PackedBatch:
    """The documents packed into one row; every next token is a target."""
    device, lengths = documents[0].device, [len(tokens) for tokens in documents]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    labels = [F.pad(tokens[1:], (0, 1), value=IGNORE) for tokens in documents]
    return PackedBatch(
        tokens=torch.cat(list(documents)), labels=torch.cat(labels),
        positions=torch.cat([torch.arange(n, device=device) for n in lengths]),
        cu_seqlens=bounds.to(device=device, dtype=torch.int32), max_seqlen=max(lengths),
        num_targets=sum(lengths) - len(lengths), lengths=tuple(lengths), rows=("",) * len(lengths),
    )  # fmt: skip


@contextmanager
def as_transformers_does(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model runs in eval mode, uncompiled, with transformers' own attention and no gradient."""
    config, was_training = trunk_of(model).config, model.training
    before = config._attn_implementation
    if before == PACKED:
        config._attn_implementation = "eager"
    model.eval()
    try:
        with torch.no_grad(), uncompiled(model):
            yield
    finally:
        config._attn_implementation = before
        model.train(was_training)


@torch.no_grad()
def check_loss(model: PreTrainedModel, documents: Sequence[Tensor], *, pad_id: int = 0) -> float:
    """Relative difference of a causal LM's loss here and in transformers; ConfigError, with both, when it is too large.

    documents: token ids, on the model's device. Nothing of the model is changed.
    """
    documents = _beginnings(documents)
    if not documents:
        return 0.0
    packed = together(documents)
    with as_transformers_does(model):
        theirs = torch.cat([_own_logprobs(model, tokens) for tokens in documents])
    with _evaluating(model):
        hidden = packed_hidden(model, packed, pad_id=pad_id)
        ours = token_logprobs(hidden, head_of(model), packed.labels)[0][packed.labels != IGNORE]
    loss, wanted = float(-ours.mean()), float(-theirs.mean())
    error = abs(loss - wanted) / max(abs(wanted), 1.0)
    each = float((ours - theirs).abs().mean())
    allowed = TOLERANCES[_precision(model)]
    if not (error <= allowed.loss and each <= allowed.each):
        raise ConfigError(
            f"{_name(model)} has a loss of {loss:.4f} a token here, but {wanted:.4f} in transformers' own forward (on "
            f"{len(ours)} tokens; single log-probs differ by {each:.2g}, allowed {allowed.each:g}): it would be "
            f"trained wrongly. {_advice(model)}"
        )
    return error


@torch.no_grad()
def check_hidden(trunk: PreTrainedModel, documents: Sequence[Tensor], *, pad_id: int = 0) -> float:
    """The same for a trunk whose head is ours (a reward model, a critic): relative difference of last hidden states."""
    documents = _beginnings(documents)
    if not documents:
        return 0.0
    with as_transformers_does(trunk):
        theirs = torch.cat([_own_hidden(trunk, tokens) for tokens in documents]).float()
    with _evaluating(trunk):
        packed = together(documents)
        ours = packed_hidden(trunk, packed, pad_id=pad_id)[: theirs.shape[0]].float()
    error = float((ours - theirs).square().mean().sqrt() / theirs.std().clamp(min=1e-6))
    allowed = TOLERANCES[_precision(trunk)].each
    if not error <= allowed:
        raise ConfigError(
            f"{_name(trunk)} has last hidden states here that differ from transformers' own by {error:.3g} of their "
            f"spread (allowed {allowed:g}, on {theirs.shape[0]} tokens): it would be trained wrongly. {_advice(trunk)}"
        )
    return error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with uncompiled(model):
            yield
    finally:
        model.train(was_training)


def _own_logprobs(model: Any, tokens: Tensor) -> Tensor:
    """[n - 1] log-probs of the next tokens by the model's own forward."""
    forget(trunk_of(model))
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]


def _own_hidden(trunk: Any, tokens: Tensor) -> Tensor:
    """[n, d] last hidden states by the trunk's own forward."""
    forget(trunk)
    hidden: Tensor = trunk(input_ids=tokens[None], use_cache=False)[0][0]
    return hidden


def _precision(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _name(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} ({model.config.model_type})"


def _advice(model: PreTrainedModel) -> str:
    if model.config.model_type in FAMILIES:
        return "Please report it with the versions of torch and transformers."
    return f"Architectures that are known to train rightly: {', '.join(sorted(FAMILIES))}."
