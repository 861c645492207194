"""Reward functions that misbehave are told by row, reward models of other tokens are refused, scores are shaped."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from training.config.ppo import RewardConfig
from training.errors import ConfigError, MissingInput
from training.ppo.rewards import (
    FunctionReward,
    RewardFailed,
    RewardSample,
    ScoreShaping,
    load_function,
    must_retokenize,
)

SOURCE = """
import math

def letter(prompts, completions, rows, letter="e"):
    return [text.count(letter) / max(len(text), 1) for text in completions]

def echo(prompts, completions, rows):
    return [row["score"] for row in rows]

def divides(prompts, completions, rows):
    return [1 / row["score"] for row in rows]

def only_together(prompts, completions, rows):
    if len(rows) > 1:
        raise RuntimeError("two is a crowd")
    return [0.0]

def short(prompts, completions, rows):
    return [0.0]

def words(prompts, completions, rows):
    return "good"

def tensor(prompts, completions, rows):
    import torch
    return torch.arange(len(rows)).float()

LIMIT = 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(SOURCE)
    return path


def samples(*scores: object) -> list[RewardSample]:
    return [RewardSample(f"p.jsonl:{i + 1}", "say", f"been {i}", {"score": score}) for i, score in enumerate(scores)]


def test_a_file_and_a_module_both_name_functions(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_function(f"{source}:letter")([""], ["eel"], [{}]) == [2 / 3]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_function("my_rewards:letter")([""], ["eel"], [{}], letter="l") == [1 / 3]


def test_what_cannot_be_loaded_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"nowhere\.py"):
        load_function(f"{tmp_path}/nowhere.py:letter")
    with pytest.raises(ConfigError, match="no_such_package"):
        load_function("no_such_package.rewards:letter")
    with pytest.raises(ConfigError, match=r"no function 'lettre'.*letter"):
        load_function(f"{source}:lettre")
    with pytest.raises(ConfigError, match="LIMIT"):
        load_function(f"{source}:LIMIT")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        load_function(f"{tmp_path}/broken.py:letter")


def test_scores_arguments_and_tensors_come_back_as_numbers(source: Path) -> None:
    assert FunctionReward(RewardConfig(function=f"{source}:echo")).score(samples(1, -2.5)) == [1.0, -2.5]
    assert FunctionReward(RewardConfig(function=f"{source}:tensor")).score(samples(0, 0, 0)) == [0.0, 1.0, 2.0]
    reward = FunctionReward(RewardConfig(function=f"{source}:letter", arguments={"letter": "b"}))
    assert reward.score(samples(0)) == [pytest.approx(1 / 6)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "high"])
def test_a_score_that_is_no_number_names_its_row(source: Path, bad: object) -> None:
    with pytest.raises(RewardFailed, match=r"p\.jsonl:2.*not a finite number.*been 1.*resume"):
        FunctionReward(RewardConfig(function=f"{source}:echo")).score(samples(1.0, bad, 2.0))


def test_an_exception_names_the_row_that_raises_it(source: Path) -> None:
    with pytest.raises(RewardFailed, match=r"Row p\.jsonl:3 .*ZeroDivisionError"):
        FunctionReward(RewardConfig(function=f"{source}:divides")).score(samples(1, 2, 0, 4))
    with pytest.raises(RewardFailed, match=r"p\.jsonl:1 … p\.jsonl:2 together.*two is a crowd"):
        FunctionReward(RewardConfig(function=f"{source}:only_together")).score(samples(1, 2))


def test_wrong_shapes_are_refused(source: Path) -> None:
    with pytest.raises(RewardFailed, match="1 scores for 2 completions"):
        FunctionReward(RewardConfig(function=f"{source}:short")).score(samples(1, 2))
    with pytest.raises(RewardFailed, match="list of 2 numbers, not str"):
        FunctionReward(RewardConfig(function=f"{source}:words")).score(samples(1, 2))


@dataclass(frozen=True)
class FakeCodec:
    fingerprint: str
    vocabulary_digest: str
    template_name: str = "chatml"


def test_a_reward_model_that_reads_other_tokens_is_refused_or_retokenised() -> None:
    actor = FakeCodec("a", "words")
    assert must_retokenize(actor, FakeCodec("a", "words"), False, "rm") is False
    with pytest.raises(ConfigError, match=r"rm.*another vocabulary.*reward\.retokenize: true"):
        must_retokenize(actor, FakeCodec("b", "other words"), False, "rm")
    with pytest.raises(ConfigError, match=r"another chat template \(llama2; the actor's is chatml\)"):
        must_retokenize(actor, FakeCodec("c", "words", "llama2"), False, "rm")
    assert must_retokenize(actor, FakeCodec("b", "other words"), True, "rm") is True


def test_penalty_then_clip() -> None:
    shaping = ScoreShaping(RewardConfig(function="a:b", missing_eos_penalty=2.0, clip=5.0))
    shaped = shaping(torch.tensor([1.0, 1.0, 100.0, -100.0]), torch.tensor([True, False, True, False]))
    assert shaped.tolist() == [1.0, -1.0, 5.0, -5.0]


def test_running_normalisation_remembers_and_resumes() -> None:
    config = RewardConfig(function="a:b", normalize="running", clip=None)
    shaping, first, second = ScoreShaping(config), torch.tensor([1.0, 3.0]), torch.tensor([5.0, 7.0])
    done = torch.ones(2, dtype=torch.bool)
    shaping(first, done)
    resumed = ScoreShaping(config)
    resumed.load_state_dict(shaping.state_dict())
    expected = (second - 4.0) / torch.tensor([1.0, 3.0, 5.0, 7.0]).std(unbiased=False)
    assert torch.allclose(shaping(second, done), expected)
    assert torch.equal(
        resumed(second, done), (second - resumed.moments.mean) / (resumed.moments.squares / 4 + 1e-8) ** 0.5
    )


def test_rollout_normalisation_is_of_this_rollout_alone() -> None:
    shaping = ScoreShaping(RewardConfig(function="a:b", normalize="rollout", clip=None))
    done = torch.ones(4, dtype=torch.bool)
    shaping(torch.tensor([100.0, 200.0, 300.0, 400.0]), done)
    shaped = shaping(torch.tensor([1.0, 2.0, 3.0, 4.0]), done)
    assert shaped.mean().item() == pytest.approx(0, abs=1e-6)
    assert shaped.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)
