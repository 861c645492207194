"""Sampling: transformers' filters and penalty, the softmax's frequencies, noise that depends on the row alone."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from training.config.generation import GenerationConfig
from training.rollout.engine import row_seed
from training.rollout.sampling import SamplingRows, draw, filter_logits, gumbel_noise, penalise_repetition


def rows(
    n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, penalty: float = 1.0
) -> SamplingRows:
    return SamplingRows(
        torch.full((n,), temperature),
        torch.full((n,), top_k),
        torch.full((n,), top_p),
        torch.full((n,), min_p),
        torch.full((n,), penalty),
        torch.tensor([row_seed(1, i) for i in range(n)]),
    )


@pytest.mark.parametrize("top_k", [0, 1, 5, 60, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.05])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.5, 1.0])
def test_filters_leave_transformers_distribution(top_k: int, top_p: float, min_p: float) -> None:
    torch.manual_seed(top_k)
    logits = torch.randn(6, 60) * 3
    expected = TemperatureLogitsWarper(0.7)(None, logits)  # type: ignore[arg-type]
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)  # type: ignore[arg-type]
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)  # type: ignore[arg-type]
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)  # type: ignore[arg-type]
    actual = filter_logits(logits / 0.7, torch.full((6,), top_k), torch.full((6,), top_p), torch.full((6,), min_p))
    torch.testing.assert_close(actual.softmax(-1), expected.softmax(-1))


def test_rows_of_a_batch_keep_their_own_options() -> None:
    logits = torch.randn(4, 50)
    top_k, top_p = torch.tensor([0, 3, 0, 5]), torch.tensor([1.0, 1.0, 0.0, 0.6])
    min_p = torch.tensor([0.0, 0.0, 0.5, 0.1])
    together = filter_logits(logits, top_k, top_p, min_p)
    for row in range(4):
        part = slice(row, row + 1)
        assert torch.equal(together[part], filter_logits(logits[part], top_k[part], top_p[part], min_p[part]))
    assert together.isfinite().sum(dim=1).tolist()[:3] == [50, 3, 1]


def test_the_penalty_is_transformers_and_looks_at_live_tokens_only() -> None:
    torch.manual_seed(0)
    logits, history = torch.randn(3, 30) * 2, torch.randint(0, 30, (3, 12))
    lengths = torch.tensor([12, 5, 1])
    actual = penalise_repetition(logits, history, lengths, torch.full((3,), 1.4))
    for row, length in enumerate(lengths.tolist()):
        expected = RepetitionPenaltyLogitsProcessor(1.4)(history[row : row + 1, :length], logits[row : row + 1].clone())
        torch.testing.assert_close(actual[row : row + 1], expected)


def test_draws_have_the_frequencies_of_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -3.0])
    n = 40000
    tokens, logprobs = draw(logits.expand(n, 6), rows(n, temperature=0.8), torch.full((n,), 9))
    expected = (logits / 0.8).softmax(0)
    found = torch.bincount(tokens, minlength=6) / n
    sigma = (expected * (1 - expected) / n).sqrt()
    assert ((found - expected).abs() < 4 * sigma).all()
    torch.testing.assert_close(logprobs, expected.log()[tokens], atol=1e-5, rtol=1e-5)


def test_one_row_draws_the_softmax_over_its_positions_too() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    n = 20000
    options = rows(1)
    tokens, _ = draw(
        logits.expand(n, 4), SamplingRows(*(option.expand(n) for option in options)), torch.arange(n)
    )  # fmt: skip
    expected = logits.softmax(0)
    assert (
        (torch.bincount(tokens, minlength=4) / n - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()
    ).all()
    pairs = torch.bincount(tokens[:-1] * 4 + tokens[1:], minlength=16) / (n - 1)
    joint = (expected[:, None] * expected[None, :]).flatten()
    assert ((pairs - joint).abs() < 5 * (joint / n).sqrt()).all(), "successive draws must be independent"


def test_noise_is_gumbel_and_depends_on_seed_position_and_token_alone() -> None:
    seeds, positions = torch.tensor([5, -7, 2**62]), torch.tensor([3, 3, 900])
    noise = gumbel_noise(seeds, positions, 20000)
    alone = gumbel_noise(seeds[1:2], positions[1:2], 20000)
    assert torch.equal(noise[1:2], alone) and torch.equal(noise[1:2, :50], gumbel_noise(seeds[1:2], positions[1:2], 50))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.05)
    correlation = torch.corrcoef(torch.cat((noise, gumbel_noise(seeds, positions + 1, 20000))))
    assert (correlation - torch.eye(6)).abs().max() < 0.05


def test_greedy_rows_take_the_highest_whatever_the_seed() -> None:
    logits = torch.randn(8, 40)
    tokens, logprobs = draw(logits, rows(8, temperature=0.0), torch.arange(8))
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_filtered_draws_stay_inside_and_report_the_whole_distribution() -> None:
    logits = torch.randn(1, 40).expand(2000, 40)
    tokens, logprobs = draw(logits, rows(2000, top_k=3), torch.arange(2000), filtered=True)
    assert set(tokens.tolist()) == set(logits[0].topk(3).indices.tolist())
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens])


def test_log_probs_can_be_the_models_own() -> None:
    """Whatever the temperature, the penalty and the filters."""
    logits = torch.randn(1, 40).expand(500, 40)
    history = torch.zeros(500, 4, dtype=torch.int64)
    options = rows(500, temperature=3.0, top_k=5, min_p=0.1, penalty=1.3)
    tokens, logprobs = draw(logits, options, torch.arange(500), history=history, filtered=True, unscaled=True)
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens])
    scaled = draw(logits, options, torch.arange(500), history=history, filtered=True)
    assert torch.equal(scaled[0], tokens)
    torch.testing.assert_close(scaled[1], (logits[0] / 3).log_softmax(-1)[tokens])


def test_seeds_of_a_stream_differ() -> None:
    assert len({row_seed(seed, index) for seed in range(20) for index in range(200)}) == 4000
    assert all(0 <= row_seed(-3, index) < 2**63 for index in range(5))


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"top_k": -1},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"stop": ("",)},
        {"stop_ids": tuple(range(9))},
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).replace("stop_ids", "stop ids")):
        GenerationConfig(**options)  # type: ignore[arg-type]
