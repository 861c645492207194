"""Losses against closed forms, and the chunked head against PyTorch's own cross-entropy and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from training.losses import centering_loss, dpo_loss, log_exp_loss, log_sigmoid_loss, orpo_loss
from training.models.chunked_head import Head, cross_entropy_sum, token_logprobs


def test_pair_losses_equal_their_formula_and_each_other() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    margin = torch.tensor([0.0, 0.5, 1.0])
    expected = [-math.log(1 / (1 + math.exp(-(c - r - m)))) for c, r, m in zip(chosen, rejected, margin, strict=True)]
    torch.testing.assert_close(log_sigmoid_loss(chosen, rejected, margin), torch.tensor(expected))
    torch.testing.assert_close(log_exp_loss(chosen, rejected, margin), torch.tensor(expected))


def test_pair_losses_stay_finite_for_huge_differences() -> None:
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    for loss in (log_sigmoid_loss, log_exp_loss):
        losses = loss(chosen, torch.zeros(2))
        torch.testing.assert_close(losses, torch.tensor([500.0, 0.0]))
        gradient = torch.autograd.grad(losses.sum(), chosen)[0]
        torch.testing.assert_close(gradient, torch.tensor([-1.0, 0.0]))


def test_centering_is_the_squared_sum() -> None:
    torch.testing.assert_close(centering_loss(torch.tensor([2.0]), torch.tensor([-0.5])), torch.tensor([2.25]))


def test_dpo_loss_equals_equation_7_and_its_smoothed_form() -> None:
    chosen, rejected, ref_chosen, ref_rejected = -3.0, -5.0, -4.0, -4.5
    h = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    plain = -math.log(1 / (1 + math.exp(-h)))
    flipped = -math.log(1 / (1 + math.exp(h)))
    inputs = [torch.tensor([value]) for value in (chosen, rejected, ref_chosen, ref_rejected)]
    losses, rewards = dpo_loss(*inputs, beta=0.3)
    assert losses.item() == pytest.approx(plain)
    torch.testing.assert_close(rewards, torch.tensor([[0.3 * 1.0, 0.3 * -0.5]]))
    smoothed, _ = dpo_loss(*inputs, beta=0.3, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.9 * plain + 0.1 * flipped)


def test_dpo_loss_of_the_reference_itself_is_log_2() -> None:
    same = torch.tensor([-7.0])
    assert dpo_loss(same, same, same, same, beta=0.1)[0].item() == pytest.approx(math.log(2))


def test_orpo_loss_equals_equation_6_and_its_gradient_equation_9() -> None:
    sums = torch.tensor([-3.0, -8.0], dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([2.0, 4.0])
    good, bad = (math.exp(total / n) for total, n in ((-3.0, 2), (-8.0, 4)))
    ratio = (good / (1 - good)) / (bad / (1 - bad))
    losses, rewards = orpo_loss(sums[:1], sums[1:], tokens[:1], tokens[1:], beta=0.3)
    assert losses.item() == pytest.approx(-math.log(good) - 0.3 * math.log(1 / (1 + 1 / ratio)))
    assert (rewards[0, 0] - rewards[0, 1]).item() == pytest.approx(0.3 * math.log(ratio))
    losses.sum().backward()
    delta = 1 / (1 + ratio)  # δ(d): how far the odds are from being won; h(d) = ∇log P / (1 − P) of each answer
    expected = [-0.5 * (1 + 0.3 * delta / (1 - good)), 0.25 * 0.3 * delta / (1 - bad)]
    assert sums.grad is not None and sums.grad.tolist() == pytest.approx(expected)


def made(tokens: int = 23, width: int = 12, vocabulary: int = 31, bias: bool = False):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    offset = torch.randn(vocabulary, generator=generator, requires_grad=True) if bias else None
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[[0, 4, 5, tokens - 1]] = -100
    return hidden, weight, offset, labels


@pytest.mark.parametrize("chunk", [1, 7, 23, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("known_targets", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_chunked_cross_entropy_equals_pytorch_with_gradients(
    chunk: int, bias: bool, known_targets: bool, cap: float | None
) -> None:
    hidden, weight, offset, labels = made(bias=bias)
    leaves = [leaf for leaf in (hidden, weight, offset) if leaf is not None]
    head = Head(weight, offset, 0.7, cap)
    loss = cross_entropy_sum(hidden, head, labels, chunk=chunk, num_targets=19 if known_targets else None)
    gradients = torch.autograd.grad(loss * 0.25, leaves)
    logits = 0.7 * (hidden @ weight.t() + (offset if offset is not None else 0))
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(gradients, torch.autograd.grad(expected * 0.25, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_summed_log_probs_have_the_gradient_of_cross_entropy() -> None:
    hidden, weight, _, labels = made(tokens=9)
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()

    def loss(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return token_logprobs(h, Head(w), labels, chunk=4)[0].double().sum()

    got = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    reference = -F.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    for one, two in zip(got, torch.autograd.grad(reference, (hidden, weight)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_and_entropy_equal_pytorch_with_gradients(temperature: float, cap: float | None) -> None:
    hidden, weight, offset, labels = made(bias=True)
    weights = torch.randn(23, generator=torch.Generator().manual_seed(1))
    logprobs, entropy = token_logprobs(hidden, Head(weight, offset, 1.3, cap), labels, temperature=temperature, chunk=6)
    got = torch.autograd.grad((logprobs * weights).sum() + 0.3 * (entropy * weights).sum(), (hidden, weight, offset))
    logits = 1.3 * (hidden @ weight.t() + offset)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    full = torch.log_softmax(logits / temperature, -1)
    real = labels != -100
    expected = torch.where(real, full.gather(1, labels.clamp(min=0)[:, None])[:, 0], 0.0)
    spread = torch.where(real, -(full.exp() * full).sum(-1), 0.0)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, spread)
    wanted = torch.autograd.grad((expected * weights).sum() + 0.3 * (spread * weights).sum(), (hidden, weight, offset))
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_entropy_of_uniform_logits_is_log_of_the_vocabulary() -> None:
    hidden, weight, _, labels = made()
    _, entropy = token_logprobs(hidden * 0, Head(weight), labels)
    torch.testing.assert_close(entropy[labels != -100], torch.full((19,), math.log(31)))


def test_weight_gradients_of_low_precision_are_summed_in_fp32() -> None:
    """Many equal small contributions: summed in bf16 they would stop growing at 256."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    cross_entropy_sum(hidden, Head(weight), torch.zeros(4096, dtype=torch.long), chunk=1).backward()
    assert weight.grad is not None and weight.grad[0].item() == pytest.approx(-2048, rel=0.01)


def test_log_probs_in_low_precision_are_those_of_unrounded_logits() -> None:
    """Large logits rounded to bf16 would be off by 0.1 and more."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 48, generator=generator).bfloat16()
    weight = (2 * torch.randn(300, 48, generator=generator)).bfloat16()
    labels = torch.randint(0, 300, (64,), generator=generator)
    exact = torch.log_softmax(hidden.float() @ weight.float().t(), -1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(token_logprobs(hidden, Head(weight), labels)[0], exact, rtol=1e-5, atol=1e-4)
    total = cross_entropy_sum(hidden, Head(weight), labels)
    torch.testing.assert_close(total, -exact.sum(), rtol=1e-5, atol=1e-3)
