"""The PPO formulas against literal sums, closed forms and each other; padding is filled with NaN to catch any touch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.ppo import formulas as rl


def ragged(lengths: list[int], seed: int = 0, fill: float = float("nan")) -> tuple[Tensor, Tensor]:
    """Random [b, r] values whose places after each row's end hold `fill`, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    mask = rl.length_mask(torch.tensor(lengths), width)
    values = torch.randn(len(lengths), width, generator=generator)
    return torch.where(mask, values, torch.full_like(values, fill)), mask


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


# ── Masks and moments ──


@given(LENGTHS, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_moments_equal_those_of_the_concatenated_rows(lengths: list[int], seed: int) -> None:
    values, mask = ragged(lengths, seed)
    flat = torch.cat([values[i, :length] for i, length in enumerate(lengths)])
    count, mean, variance = rl.masked_moments(values, mask)
    assert count.item() == len(flat)
    assert mean.item() == pytest.approx(flat.double().mean().item(), abs=1e-9)
    assert variance.item() == pytest.approx(flat.double().var(unbiased=False).item(), abs=1e-9)
    assert rl.masked_mean(values, mask).item() == pytest.approx(flat.mean().item(), abs=1e-6)


def test_variance_survives_a_large_mean() -> None:
    values = torch.tensor([[1e4 + 1, 1e4 - 1]])
    _, _, variance = rl.masked_moments(values, torch.ones(1, 2, dtype=torch.bool))
    assert variance.item() == pytest.approx(1.0, rel=1e-9)


def test_mean_of_an_empty_mask_is_zero() -> None:
    assert rl.masked_mean(torch.full((2, 2), math.nan), torch.zeros(2, 2, dtype=torch.bool)).item() == 0.0


def split_ranks(rows: list[tuple[Tensor, Tensor]]) -> list[rl.Reduce]:
    """Reduce functions that replay an all-reduce: what rank i sends is summed with what the others would send."""
    # Whitening reduces (sum, count), then squares around the common mean; both are replayed from the whole data.
    whole = torch.cat([values[mask] for values, mask in rows]).double()
    answers = [
        torch.stack([whole.sum(), torch.tensor(float(len(whole))).double()]),
        (whole - whole.mean()).square().sum(),
    ]

    def replay() -> rl.Reduce:
        calls = iter(answers)
        return lambda _: next(calls)

    return [replay() for _ in rows]


def test_whitening_is_over_all_ranks() -> None:
    ranks = [ragged([3, 7], 1), ragged([5, 1, 2], 2)]
    parts = [rl.whiten(v, m, reduce=r)[m] for (v, m), r in zip(ranks, split_ranks(ranks), strict=True)]
    whole = torch.cat(parts)
    assert whole.mean().item() == pytest.approx(0, abs=1e-6)
    assert whole.var(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert abs(parts[0].mean().item()) > 1e-3  # a rank by itself is not centred: only the whole is


def test_whitening_keeps_the_mean_when_told_to_and_zeroes_padding() -> None:
    values, mask = ragged([4, 2, 6])
    values = values + 5
    white = rl.whiten(values, mask, shift_mean=False)
    assert white[mask].mean().item() == pytest.approx(values[mask].mean().item(), abs=1e-5)
    assert white[mask].std(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert (white[~mask] == 0).all()


def test_running_moments_equal_those_of_everything_seen_and_resume() -> None:
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(n, generator=generator) * 3 + 2 for n in (4, 1, 7)]
    moments = rl.RunningMoments()
    for batch in batches[:2]:
        moments.update(batch)
    copy = rl.RunningMoments()
    copy.load_state_dict(moments.state_dict())
    for each in (moments, copy):
        each.update(batches[2])
    everything = torch.cat(batches)
    expected = (everything - everything.mean()) / everything.std(unbiased=False)
    assert torch.allclose(moments.normalize(everything), expected, atol=1e-5)
    assert copy.state_dict() == moments.state_dict()


def test_running_moments_leave_scores_alone_before_two_were_seen() -> None:
    assert rl.RunningMoments().normalize(torch.tensor([7.0])).item() == 7.0


# ── KL ──


def test_kl_is_zero_when_actor_equals_reference() -> None:
    logprobs = torch.randn(3, 4) - 3
    for estimator in ("k1", "k2", "k3"):
        assert (rl.kl_estimate(logprobs, logprobs.clone(), estimator) == 0).all()


def test_kl_estimators_have_the_exact_expectation() -> None:
    policy, reference = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        assert (policy.exp() * rl.kl_estimate(policy, reference, estimator)).sum().item() == pytest.approx(
            exact.item(), rel=1e-4
        )
    assert (rl.kl_estimate(policy, reference, "k3") >= 0).all()
    assert torch.allclose(rl.kl_estimate(policy, reference, "k2"), 0.5 * (policy - reference) ** 2)


def test_kl_of_an_impossible_token_stays_finite() -> None:
    for estimator in ("k1", "k2", "k3"):
        assert rl.kl_estimate(torch.tensor([-1e4]), torch.tensor([0.0]), estimator).isfinite().all()


def test_unknown_estimator_is_named() -> None:
    with pytest.raises(ValueError, match="k9"):
        rl.kl_estimate(torch.zeros(1), torch.zeros(1), "k9")


def test_adaptive_controller_follows_the_formula_and_its_limits() -> None:
    controller = rl.KLController(0.1, target=6.0, horizon=100)
    controller.update(6.6, completions=10)
    assert controller.coef == pytest.approx(0.1 * (1 + 0.1 * 10 / 100))
    controller = rl.KLController(0.1, target=6.0, horizon=100)
    controller.update(600.0, completions=10)
    assert controller.coef == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    controller.update(0.0, completions=10)
    assert controller.coef == pytest.approx(0.1 * 1.02 * 0.98)
    fixed = rl.KLController(0.1)
    fixed.update(600.0, completions=10)
    assert fixed.coef == 0.1


# ── Rewards and advantages ──


def test_the_score_is_added_once_on_the_last_token() -> None:
    kl, mask = ragged([3, 1, 4])
    lengths = mask.sum(1)
    scores = torch.tensor([1.0, 2.0, -3.0])
    rewards = rl.token_rewards(scores, kl, lengths, 0.5)
    for row, length in enumerate(lengths.tolist()):
        expected = -0.5 * kl[row, :length]
        expected[length - 1] += scores[row]
        assert torch.allclose(rewards[row, :length], expected)
    assert (rewards[~mask] == 0).all()
    assert torch.allclose(rl.token_rewards(scores, torch.zeros_like(kl), lengths, 0.5).sum(1), scores)


def literal_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Σ_k (γλ)^k δ_{t+k}, with δ_t = r_t + γ V_{t+1} − V_t and V after the end 0: the definition, O(T²)."""
    steps = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(steps)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, steps)) for t in range(steps)]


@given(LENGTHS, st.integers(0, 1000), st.sampled_from([0.0, 0.5, 0.99, 1.0]), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
@settings(max_examples=40, deadline=None)
def test_gae_equals_the_literal_sum(lengths: list[int], seed: int, gamma: float, lam: float) -> None:
    rewards, mask = ragged(lengths, seed)
    values, _ = ragged(lengths, seed + 1)
    advantages, returns = rl.gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        expected = torch.tensor(literal_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam))
        assert torch.allclose(advantages[row, :length], expected, atol=1e-5)
        assert torch.allclose(returns[row, :length], expected + values[row, :length], atol=1e-5)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_gae_limits_monte_carlo_and_one_step() -> None:
    rewards, mask = ragged([5])
    values, _ = ragged([5], 1)
    monte_carlo, returns = rl.gae(rewards, values, mask, 1.0, 1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(monte_carlo, to_go - values, atol=1e-5)
    assert torch.allclose(returns, to_go, atol=1e-5)
    one_step, _ = rl.gae(rewards, values, mask, 0.9, 0.0)
    assert torch.allclose(one_step[:, :-1], rewards[:, :-1] + 0.9 * values[:, 1:] - values[:, :-1], atol=1e-6)


def test_explained_variance_of_perfect_constant_and_padded_values() -> None:
    returns, mask = ragged([4, 2, 5])
    assert rl.explained_variance(returns, returns, mask).item() == pytest.approx(1)
    assert rl.explained_variance(torch.full_like(returns, 3.0), returns, mask).item() == pytest.approx(0, abs=1e-6)
    flat = torch.ones_like(returns)
    assert rl.explained_variance(returns, flat, mask).item() == 0  # nothing to explain


# ── Losses ──


def reference_policy_loss(new: Tensor, old: Tensor, adv: Tensor, eps: float, dual: float | None) -> float:
    """Token by token, as the papers print it."""
    total = 0.0
    for p, q, a in zip(new.tolist(), old.tolist(), adv.tolist(), strict=True):
        ratio = math.exp(p - q)
        objective = min(ratio * a, min(max(ratio, 1 - eps), 1 + eps) * a)
        if dual is not None and a < 0:
            objective = max(objective, dual * a)
        total -= objective
    return total


@given(st.integers(0, 1000), st.sampled_from([None, 1.5, 3.0]))
@settings(max_examples=40, deadline=None)
def test_policy_loss_equals_the_papers_objective(seed: int, dual_clip: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old, advantages = torch.randn(3, 25, generator=generator)
    new.requires_grad_()
    result = rl.policy_loss(new, old, advantages, 0.2, dual_clip)
    assert result.loss.item() == pytest.approx(
        reference_policy_loss(new, old, advantages, 0.2, dual_clip), rel=1e-4, abs=1e-4
    )
    result.loss.backward()
    assert new.grad is not None
    assert result.clipped.item() == (new.grad == 0).sum().item()  # "clipped" = the tokens that teach nothing
    assert result.max_ratio.item() == pytest.approx((new - old).exp().max().item(), rel=1e-5)


def test_identity_policy_has_ratio_one_nothing_clipped_and_the_vanilla_gradient() -> None:
    old = torch.randn(9) - 2
    new = old.clone().requires_grad_()
    advantages = torch.randn(9)
    result = rl.policy_loss(new, old, advantages, 0.2, 3.0)
    assert result.max_ratio.item() == 1.0
    assert result.clipped.item() == 0
    assert result.approx_kl.item() == 0
    result.loss.backward()
    assert new.grad is not None and torch.allclose(new.grad, -advantages)


def test_losses_of_no_tokens_are_zero_with_a_gradient_path() -> None:
    empty = torch.zeros(0, requires_grad=True)
    policy = rl.policy_loss(empty, torch.zeros(0), torch.zeros(0), 0.2)
    value = rl.value_loss(empty, torch.zeros(0), torch.zeros(0), 0.2)
    assert policy.loss.item() == value.loss.item() == 0
    (policy.loss + value.loss).backward()


@given(st.integers(0, 1000), st.sampled_from([None, 0.2, 1.0]))
@settings(max_examples=30, deadline=None)
def test_value_loss_equals_its_closed_form(seed: int, clip: float | None) -> None:
    new, old, returns = torch.randn(3, 25, generator=torch.Generator().manual_seed(seed))
    total = 0.0
    clipped_count = 0
    for v, o, r in zip(new.tolist(), old.tolist(), returns.tolist(), strict=True):
        plain = (v - r) ** 2
        clipped = plain if clip is None else (min(max(v, o - clip), o + clip) - r) ** 2
        clipped_count += clipped > plain + 1e-7
        total += 0.5 * max(plain, clipped)
    result = rl.value_loss(new, old, returns, clip)
    assert result.loss.item() == pytest.approx(total, rel=1e-4)
    assert result.clipped.item() == clipped_count


@given(st.permutations(range(12)), st.integers(1, 11))
@settings(max_examples=20, deadline=None)
def test_loss_sums_do_not_depend_on_order_or_micro_batches(order: list[int], cut: int) -> None:
    new, old, advantages = torch.randn(3, 12, generator=torch.Generator().manual_seed(5))
    whole = rl.policy_loss(new, old, advantages, 0.2).loss
    index = torch.tensor(order)
    parts = [rl.policy_loss(new[i], old[i], advantages[i], 0.2).loss for i in (index[:cut], index[cut:])]
    assert torch.allclose(whole, parts[0] + parts[1], atol=1e-5)
