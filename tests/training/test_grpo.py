"""GRPO and its relatives: formulas against their papers, the known optimum, and runs through the front door."""

from __future__ import annotations

import copy
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as fewer
from hypothesis import strategies as st
from transformers import LlamaConfig

from tests.training.test_ppo_stage import events, make_model, metrics, weights
from training.config.grpo import GRPOKLConfig, GRPOLossConfig, GRPOTrainConfig
from training.config.load import load_config
from training.config.strategies import OptimizerConfig, StrategyConfig
from training.errors import ConfigError
from training.models.load import from_config
from training.ppo import formulas as rl
from training.ppo import groups
from training.ppo.experience import Completions, Experience, evaluate_actions
from training.ppo.models import Actor
from training.ppo.rules import right_number
from training.ppo.update import UpdateStats, plan, update
from training.stages import grpo
from training.strategies.select import open_strategy

# ── Formulas ──


@given(st.lists(st.floats(-3, 3, width=32), min_size=8, max_size=8))
@fewer(max_examples=30, deadline=None)
def test_advantages_are_those_of_the_papers(scores: list[float]) -> None:
    table = torch.tensor(scores)
    for advantage, scale in [("group_mean", "group"), ("group_mean", "none"), ("leave_one_out", "none")]:
        found = groups.group_advantages(table, 4, advantage, scale).tolist()
        for i, score in enumerate(scores):
            group = scores[i // 4 * 4 : i // 4 * 4 + 4]
            others = [other for j, other in enumerate(scores) if j // 4 == i // 4 and j != i]
            expected = score - statistics.mean(group if advantage == "group_mean" else others)
            if scale == "group":
                expected /= statistics.stdev(group) + 1e-6
            assert found[i] == pytest.approx(expected, rel=1e-3, abs=2e-3)
    batch = groups.group_advantages(table, 4, "group_mean", "batch")
    plain = groups.group_advantages(table, 4, "group_mean", "none")
    assert torch.allclose(batch * (statistics.stdev(scores) + 1e-6), plain, atol=1e-4)
    assert groups.with_signal(table, 4).tolist() == [max(g) - min(g) > 1e-6 for g in (scores[:4], scores[4:])]


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("dapo", (1 + 2 + 3 + 4 + 5 + 6) / 6),  # the mean of all six tokens
        ("grpo", (statistics.mean([1, 2, 3, 4, 5]) + 6) / 2),  # of each completion, and of the two
        ("dr_grpo", (15 / 8 + 6 / 8) / 2),  # divided by max_new_tokens, whatever the length
    ],
)
def test_each_loss_type_is_its_papers_mean(loss_type: str, expected: float) -> None:
    losses = torch.tensor([[1.0, 2, 3, 4, 5], [6, 99, 99, 99, 99]])
    mask = rl.length_mask(torch.tensor([5, 1]), 5)
    weights, divisor = groups.token_weights(mask, torch.tensor([True, True]), loss_type, 8)
    assert ((losses * weights).sum() / divisor.sum()).item() == pytest.approx(expected)
    filtered, divisor = groups.token_weights(mask, torch.tensor([True, False]), loss_type, 8)
    assert filtered[1].sum() == 0 and divisor.sum() == (5 if loss_type == "dapo" else 2)


def test_overlong_penalty_falls_to_minus_one_over_the_buffer() -> None:
    found = groups.overlong_penalty(torch.tensor([1, 6, 8, 10]), 10, 4)
    assert found.tolist() == [0, 0, -0.5, -1]
    assert groups.overlong_penalty(torch.tensor([10]), 10, 0).tolist() == [0]


def test_the_upper_bound_is_its_own_and_a_sequence_has_one_ratio() -> None:
    old = torch.zeros(3)
    for new, learns in ((0.25, True), (0.30, False)):  # ratios 1.28 and 1.35, both above 1.2
        logprobs = torch.full((3,), new, requires_grad=True)
        rl.policy_loss(logprobs, old, torch.ones(3), 0.2, clip_high=0.29).loss.backward()
        assert logprobs.grad is not None and bool(logprobs.grad.abs().sum() > 0) == learns
    ratios = rl.sequence_ratio(torch.tensor([0.1, 0.3, -0.4]), torch.tensor([2, 2, 0]))
    assert torch.allclose(ratios, torch.tensor([0.2, 0.2, -0.4]).exp())


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GRPOTrainConfig(samples_per_prompt=1), "train.samples_per_prompt"),
        (lambda: GRPOLossConfig(epsilon_low=0), "grpo.epsilon_low"),
        (lambda: GRPOLossConfig(dynamic_sampling=-1), "grpo.dynamic_sampling"),
        (lambda: GRPOKLConfig(coef=-1), "kl.coef"),
    ],
)
def test_bad_values_are_refused_by_key(make: Any, key: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        make()


def test_the_last_number_of_an_answer_counts() -> None:
    rows = [{"number": 12}, {"number": "1,200"}, {"number": -3}, {"number": 2.5}]
    assert right_number([""] * 4, ["5 + 7 = 12.", "It is 1200", "3", "none"], rows) == [1, 1, 0, 0]


# ── The known optimum of one-token answers ──

VOCAB, GROUP, ROWS, STEPS = 6, 16, 256, 40
REWARDS = torch.tensor([0.0, 1.0, 0.3, -0.5, 0.8, -1.0])


def optimum_of(place: str, estimator: str, start: torch.Tensor, beta: float) -> torch.Tensor:
    """What the expected gradient leaves unchanged.

    KL(π‖π_ref) in the reward, or by k2 in the loss: π_ref·exp(r/β)/Z. k3 in the loss has the gradient of KL(π_ref‖π):
    β·π_ref/(λ − r), with the λ that makes the sum 1.
    """
    if (place, estimator) != ("loss", "k3"):
        tilted = start * (REWARDS / beta).exp()
        return tilted / tilted.sum()
    low, high = REWARDS.max().item() + 1e-6, REWARDS.max().item() + 10 * beta
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (beta * start / (middle - REWARDS)).sum() > 1 else (low, middle)
    return beta * start / (low - REWARDS)


@pytest.mark.parametrize(("place", "estimator"), [("reward", "k1"), ("loss", "k2"), ("loss", "k3")])
def test_the_known_optimum_is_reached(place: str, estimator: str) -> None:
    beta = 0.5
    torch.manual_seed(0)
    model = from_config(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=8, initializer_range=0.3,
        )
    )  # fmt: skip
    reference = Actor(copy.deepcopy(model))

    def policy(actor: Actor) -> torch.Tensor:
        with torch.no_grad():
            return actor.model(input_ids=torch.tensor([[1]])).logits[0, -1].float().softmax(-1)

    start = policy(reference)
    optimum = optimum_of(place, estimator, start, beta)
    with open_strategy(StrategyConfig(name="naive"), precision="fp32", stage="grpo") as strategy:
        options = OptimizerConfig(lr=3e-2, eps=1e-5, max_grad_norm=1.0)
        in_loss = beta if place == "loss" else 0.0
        actor = strategy.prepare(
            Actor(model, kl_coef=in_loss, kl_estimator=estimator), options, lambda step: 1 - step / STEPS, name="actor"
        )
        for step in range(STEPS):
            now = policy(actor.inner)
            drawn = torch.multinomial(now, ROWS, replacement=True)
            tokens = torch.stack([torch.ones_like(drawn), drawn], dim=1)
            data = Completions(tokens, (1,) * ROWS, (1,) * ROWS, torch.ones(ROWS).bool(), ("row",) * ROWS)
            logprobs = now.log()[drawn][:, None]
            ref_logprobs = evaluate_actions(data, 10_000, lambda batch: reference.action_logprobs(batch)[0])
            scores = REWARDS[drawn]
            if place == "reward":
                scores = scores - beta * rl.kl_estimate(logprobs, ref_logprobs, estimator)[:, 0]
            advantages = groups.group_advantages(scores, GROUP, "leave_one_out", "none")[:, None]
            weight, divisor = groups.token_weights(data.mask, data.mask[:, 0], "dapo", 1)
            experience = Experience(
                data, logprobs, advantages, scores, scores, ref_logprobs, weights=weight, divisor=divisor
            )
            stats = UpdateStats()
            for minibatch in plan(strategy, data, epochs=1, minibatch_size=ROWS, budget=10_000, seed=(0, step)):
                update(strategy, actor, None, experience, minibatch, stats)
    found = policy(Actor(model))
    assert 0.5 * (found - optimum).abs().sum().item() < 0.03, f"{found.tolist()} is not {optimum.tolist()}"
    assert 0.5 * (start - optimum).abs().sum().item() > 0.1  # there was a way to go


# ── Runs ──

LETTERS = "0123456789+="


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("actor"), letters=LETTERS)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    sums = [(1, 2), (4, 3), (5, 4), (0, 6)]
    rows = [{"prompt": f"{a}+{b}=", "number": a + b} for a, b in sums]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "more.py").write_text(
        "def short(prompts, completions, rows, limit=9):\n    return [float(len(c) < limit) for c in completions]\n"
    )
    return tmp_path


def settings(model: Path, files: Path, **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "model": str(model),
        "data": [str(files / "sums.jsonl")],
        "strategy": "naive",
        "run_dir": str(files / "run"),
        "reward": {"function": "training.ppo.rules:right_number"},
        "generation": {"max_new_tokens": 2},
        "train": {
            "max_steps": 4, "rollout_batch_size": 24, "minibatch_size": 24, "samples_per_prompt": 4, "lr": 3e-3,
            "lr_schedule": "constant", "max_prompt_length": 8, "epochs": 99,
        },
        "log": {"every": 1, "tensorboard": False},
    }  # fmt: skip
    for section, value in changes.items():
        old = tree.get(section)
        tree[section] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return tree


def start(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    tree = settings(*args, **kwargs)
    grpo.run(load_config("grpo", tree))
    return events(Path(tree["run_dir"]))


def test_sums_are_learned_from_a_rule(model: Path, files: Path) -> None:
    train = {"max_steps": 20, "rollout_batch_size": 96, "minibatch_size": 96, "samples_per_prompt": 24, "lr": 1e-2}
    told = start(model, files, generation={"max_new_tokens": 1}, train=train)
    rewards = metrics(told, "reward")
    assert sum(rewards[:3]) / 3 < 0.2 and sum(rewards[-3:]) / 3 > 0.8, rewards
    assert metrics(told, "ratio_max") == pytest.approx([1] * 20, abs=1e-4)  # one update a step: always on policy
    assert set(metrics(told, "clip_fraction")) == {0} and not metrics(told, "kl")  # no reference was loaded
    assert (files / "run" / "model" / "model.safetensors").exists() and not (files / "run" / "critic").exists()


@pytest.mark.parametrize(
    "switches",
    [
        {"grpo": {"dynamic_sampling": 2}, "kl": {"coef": 0.1}, "train": {"ppo_epochs": 2, "minibatch_size": 12}},
        {"grpo": {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon_low": 3e-4}, "lora": 2},
    ],
)
def test_resume_is_bitwise(model: Path, files: Path, switches: dict[str, Any]) -> None:
    whole = start(model, files, run_dir=str(files / "whole"), **switches)
    cut = {**switches, "run_dir": str(files / "cut")}
    train = switches.get("train", {})
    start(model, files, **{**cut, "train": {**train, "max_steps": 2}}, checkpoint={"at_end": True})
    resumed = start(model, files, **cut, resume="auto")
    for name in ("reward", "policy_loss", "entropy", "rollouts", "groups_with_signal"):
        assert metrics(resumed, name)[-2:] == metrics(whole, name)[-2:], name
    one, other = weights(files / "whole"), weights(files / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_groups_without_signal_are_drawn_again_within_bounds(model: Path, files: Path) -> None:
    told = start(model, files, grpo={"dynamic_sampling": 3}, train={"max_steps": 3})
    plain = start(model, files, run_dir=str(files / "plain"), train={"max_steps": 3})
    assert sum(metrics(told, "groups_with_signal")) > sum(metrics(plain, "groups_with_signal"))
    assert max(metrics(told, "rollouts")) == 4 and set(metrics(plain, "rollouts")) == {1}


def test_several_functions_are_summed_by_weight(model: Path, files: Path) -> None:
    more = [{"function": f"{files}/more.py:short", "weight": 0.5, "arguments": {"limit": 2}}]
    told = start(model, files, reward={"functions": more}, train={"max_steps": 2})
    parts = zip(metrics(told, "reward_right_number"), metrics(told, "reward_short"), strict=True)
    assert metrics(told, "reward") == pytest.approx([right + 0.5 * short for right, short in parts], abs=1e-5)
    assert 0 < metrics(told, "reward_short")[0] < 1


def test_what_cannot_work_is_refused_in_words(model: Path, files: Path) -> None:
    for changes, words in [
        ({"kl": {"coef": 0.1, "estimator": "k1"}}, "gradient is zero on average"),
        ({"generation": {"top_k": 5}}, "top_k"),
        ({"grpo": {"overlong_buffer": 2}}, "overlong_buffer"),
        ({"critic": {"lr": 1}}, "Unknown key critic"),
        ({"reward": {"function": None}}, "reward needs"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load_config("grpo", settings(model, files, **changes))
