"""Language-model head with cross-entropy or log-probs, chunk by chunk: [tokens, vocabulary] never exists as a whole.

Notation: t tokens, c tokens of a chunk, d hidden size, V vocabulary.

Cross-entropy's gradient is known in the forward pass, so each chunk's logits become gradients in place and nothing is
computed twice. Log-probs get their upstream gradient only in the backward pass and recompute a chunk's logits there.
Weight gradients are accumulated over chunks in fp32: sums of bf16-rounded partials would be biased. Log-probs come from
fp32 logits, as the products' own sums are: rounding those to bf16 would move each by 0.02 and more, while the engine's
are of unrounded ones, and PPO's ratios compare the two. Cross-entropy, a mean over many tokens, may round them on a
GPU, where half the bytes are half the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.data.batch import IGNORE

CPU_CHUNK = 512
"""On a CPU smaller chunks stay in cache and spare memory; the result is the same."""


_MM_WIDENS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
"""torch.mm(…, out_dtype=) and torch.addmm(…, out_dtype=) exist (on CUDA only)."""


class Head(NamedTuple):
    """A causal LM's output layer: logits = cap·tanh(scale·(hidden·weightᵀ + bias) / cap), without a cap its argument.

    weight [V, d], bias [V] or None; the other two as `families.Logits` has them.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None


def chunk_size(tokens: Tensor, chunk: int) -> int:
    return chunk if tokens.is_cuda else min(chunk, CPU_CHUNK)


def cross_entropy_sum(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    *,
    chunk: int = 8192,
    num_targets: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Sum over targets of −log softmax(logits)[label], fp32 scalar.

    hidden [t, d], labels [t] with -100 for no target. num_targets, when the host knows it, lets rows without a target
    be left out of the products. Gradients flow to hidden, weight and bias.
    """
    size = chunk_size(hidden, chunk)
    hidden, labels = only_targets(hidden, labels, num_targets, size)
    weight, bias, *form = head
    result: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, _Form(*form), size, torch.is_grad_enabled(), compiled
    )
    return result


def token_logprobs(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 8192,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """([t] log-probs of the labels, [t] entropies) of softmax(logits / temperature); fp32, 0 where label is -100.

    Gradients flow from both to hidden, weight and bias.
    """
    weight, bias, *form = head
    result: tuple[Tensor, Tensor] = _LogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, _Form(*form, temperature), chunk_size(hidden, chunk), compiled
    )
    return result


def only_targets(hidden: Tensor, labels: Tensor, num_targets: int | None, chunk: int) -> tuple[Tensor, Tensor]:
    """Rows that have a target, filled up to whole chunks by rows without, when that saves a chunk; no host sync."""
    if num_targets is None:
        return hidden, labels
    total = labels.shape[0]
    needed = -(-max(num_targets, 1) // chunk) * chunk if hidden.is_cuda else max(num_targets, 1)
    if needed >= total:
        return hidden, labels
    index = torch.argsort((labels == IGNORE).to(torch.uint8), stable=True)[:needed]
    return hidden.index_select(0, index), labels.index_select(0, index)


class _Form(NamedTuple):
    """How a product x becomes what the softmax gets: z = cap·tanh(scale·x / cap) / temperature."""

    scale: float
    cap: float | None
    temperature: float = 1.0

    def apply(self, product: Tensor) -> Tensor:
        """[c, V] fp32 z of the products."""
        if self.cap is None:
            return product.float() * (self.scale / self.temperature)
        return torch.tanh(product.float() * (self.scale / self.cap)) * (self.cap / self.temperature)

    def slope(self, z: Tensor) -> Tensor | float:
        """dz/dx, from z."""
        flat = self.scale / self.temperature
        return flat if self.cap is None else flat * (1 - (z * (self.temperature / self.cap)).square())


def _softmax_gradient(product: Tensor, labels: Tensor, form: _Form, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(fp32 loss sum, d loss / d product in `dtype`) for [c, V] products of the head."""
    wide = form.apply(product)
    target = labels != IGNORE
    safe = torch.where(target, labels, 0)
    normaliser = torch.logsumexp(wide, dim=-1)
    loss = torch.where(target, normaliser - wide.gather(1, safe[:, None])[:, 0], 0.0).sum()
    hit = torch.arange(wide.shape[1], device=wide.device)[None, :] == safe[:, None]
    gradient = torch.exp(wide - normaliser[:, None]) - hit.float()
    gradient = torch.where(target[:, None], gradient * form.slope(wide), 0.0)
    return loss, gradient.to(dtype)


def _statistics(product: Tensor, labels: Tensor, form: _Form) -> tuple[Tensor, Tensor, Tensor]:
    """([c] log-prob of the label, [c] entropy, [c] log-normaliser), fp32."""
    wide = form.apply(product)
    target = labels != IGNORE
    normaliser = torch.logsumexp(wide, dim=-1)
    picked = wide.gather(1, torch.where(target, labels, 0)[:, None])[:, 0]
    logp = wide - normaliser[:, None]
    entropy = -(torch.exp(logp) * logp).sum(-1)
    zero = torch.zeros_like(normaliser)
    return torch.where(target, picked - normaliser, zero), torch.where(target, entropy, zero), normaliser


def _statistics_gradient(
    product: Tensor,
    labels: Tensor,
    normaliser: Tensor,
    entropy: Tensor,
    grad_logprob: Tensor,
    grad_entropy: Tensor,
    form: _Form,
    dtype: torch.dtype,
) -> Tensor:
    """[c, V] gradient of the products: g_l·(1[label] − p) − g_e·p·(log p + H), times dz/dx."""
    target = labels != IGNORE
    wide = form.apply(product)
    logp = wide - normaliser[:, None]
    p = torch.exp(logp)
    hit = (torch.arange(product.shape[1], device=product.device)[None, :] == labels[:, None]).float()
    gradient = grad_logprob[:, None] * (hit - p) - grad_entropy[:, None] * p * (logp + entropy[:, None])
    return torch.where(target[:, None], gradient * form.slope(wide), 0.0).to(dtype)


@cache
def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _maybe(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return _fused(function) if compiled else function


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right for an fp32 `total` (the products of bf16 matrices are summed in fp32 anyway)."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.is_cuda and _MM_WIDENS:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())


def head_product(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, rounded: bool = False) -> Tensor:
    """hidden·weightᵀ + bias [c, V], with the sums of low-precision products kept in fp32 where torch can.

    `rounded`: or in the weights' precision, where that is faster.
    """
    if hidden.dtype not in (torch.bfloat16, torch.float16) or (rounded and hidden.is_cuda):
        return hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())
    if hidden.is_cuda and _MM_WIDENS:
        product = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    elif hidden.is_cuda:
        product = hidden @ weight.t()
    else:
        product = hidden.float() @ weight.float().t()
    return product if bias is None else product + bias


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        form: _Form,
        chunk: int,
        with_gradient: bool,
        compiled: bool,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            need_hidden, need_weight, need_bias = (with_gradient and need for need in ctx.needs_input_grad[:3])
            compute = _maybe(_softmax_gradient, compiled)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grad_hidden = torch.empty_like(hidden) if need_hidden else None
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
            grad_bias = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device) if need_bias else None
            for start in range(0, hidden.shape[0], chunk):
                piece = hidden[start : start + chunk]
                product = head_product(piece, weight, bias, rounded=True)
                loss, gradient = compute(product, labels[start : start + chunk], form, hidden.dtype)
                total += loss
                if grad_hidden is not None:
                    torch.mm(gradient, weight, out=grad_hidden[start : start + chunk])
                if grad_weight is not None:
                    _add_product(grad_weight, gradient.t(), piece)
                if grad_bias is not None:
                    grad_bias += gradient.float().sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden.mul_(grad.to(grad_hidden.dtype)),
            None if grad_weight is None else (grad_weight.mul_(grad)).to(ctx.dtype),
            None if grad_bias is None else (grad_bias.mul_(grad)).to(ctx.dtype),
            *(None,) * 5,
        )


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        form: _Form,
        chunk: int,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        compute = _maybe(_statistics, compiled)
        with torch.autocast(hidden.device.type, enabled=False):
            pieces = [
                compute(head_product(hidden[i : i + chunk], weight, bias), labels[i : i + chunk], form)
                for i in range(0, hidden.shape[0], chunk)
            ]
        logprobs, entropy, normaliser = (torch.cat(column) for column in zip(*pieces, strict=True))
        ctx.save_for_backward(hidden, weight, bias, labels, normaliser, entropy)
        ctx.form, ctx.chunk, ctx.compiled = form, chunk, compiled
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, bias, labels, normaliser, entropy = ctx.saved_tensors
        compute = _maybe(_statistics_gradient, ctx.compiled)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        grad_bias = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device) if need_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], ctx.chunk):
                part = slice(start, start + ctx.chunk)
                gradient = compute(
                    head_product(hidden[part], weight, bias), labels[part], normaliser[part], entropy[part],
                    grad_logprobs[part], grad_entropy[part], ctx.form, hidden.dtype,
                )  # fmt: skip
                if grad_hidden is not None:
                    torch.mm(gradient, weight, out=grad_hidden[part])
                if grad_weight is not None:
                    _add_product(grad_weight, gradient.t(), hidden[part])
                if grad_bias is not None:
                    grad_bias += gradient.float().sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            *(None,) * 4,
        )
