"""One-token completions, where the best policy is known exactly: π_ref·exp(r/β)/Z. PPO must reach it within 2 %."""

import copy

import pytest
import torch
from transformers import LlamaConfig

from training.config.generation import GenerationConfig
from training.config.ppo import PPOTrainConfig
from training.config.strategies import OptimizerConfig, StrategyConfig
from training.models.heads import RewardModel
from training.models.load import from_config
from training.ppo import formulas as rl
from training.ppo.experience import Completions, build_experience, evaluate_actions
from training.ppo.models import Actor, Critic
from training.ppo.update import UpdateStats, plan, update
from training.rollout import RolloutEngine
from training.strategies.select import open_strategy

VOCAB, ROWS, STEPS = 6, 128, 60
REWARDS = torch.tensor([0.0, 1.0, 0.3, -0.5, 0.8, -1.0])


def policy_of(actor: Actor) -> torch.Tensor:
    with torch.no_grad():
        return actor.model(input_ids=torch.tensor([[1]])).logits[0, -1].float().softmax(-1)


@pytest.mark.parametrize("beta", [0.5, 50.0])
def test_ppo_reaches_the_known_optimum(beta: float) -> None:
    torch.manual_seed(0)
    model = from_config(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=8, initializer_range=0.3,
        )
    )  # fmt: skip
    reference = Actor(copy.deepcopy(model))
    start = policy_of(reference)
    optimum = start * (REWARDS / beta).exp()
    optimum = optimum / optimum.sum()
    train = PPOTrainConfig(clip_range=0.2)
    with open_strategy(StrategyConfig(name="naive"), precision="fp32", stage="ppo") as strategy:
        options = OptimizerConfig(lr=2e-2, eps=1e-5, max_grad_norm=1.0)
        actor = strategy.prepare(Actor(model), options, lambda step: 1 - step / (2 * 2 * STEPS), name="actor")
        critic = Critic(RewardModel(copy.deepcopy(model.base_model), head_init="zero"))
        trained_critic = strategy.prepare(critic, options, lambda step: 1.0, name="critic")
        engine = RolloutEngine(model, max_length=4, max_batch=ROWS, seed=1)
        for step in range(STEPS):
            rollout = engine.generate([[1]] * ROWS, GenerationConfig(max_new_tokens=1))
            data = Completions(rollout.tokens, (1,) * ROWS, (1,) * ROWS, rollout.finished_by_stop, ("row",) * ROWS)
            scores = REWARDS[rollout.tokens[:, 1]]
            experience = build_experience(
                data,
                logprobs=rollout.logprobs,
                ref_logprobs=evaluate_actions(data, 10_000, lambda batch: reference.action_logprobs(batch)[0]),
                values=evaluate_actions(data, 10_000, critic.action_values),
                scores=scores, shaped_scores=scores, kl_coef=beta, estimator="k1", train=train,
            )  # fmt: skip
            stats = UpdateStats()
            for minibatch in plan(strategy, data, epochs=2, minibatch_size=ROWS // 2, budget=10_000, seed=(0, step)):
                update(strategy, actor, trained_critic, experience, minibatch, stats)
    found = policy_of(Actor(model))
    distance = 0.5 * (found - optimum).abs().sum().item()
    assert distance < 0.02, f"{found.tolist()} is not {optimum.tolist()}"
    if beta < 1:
        assert 0.5 * (start - optimum).abs().sum().item() > 0.2  # there was a way to go
    else:
        assert rl.kl_estimate(found.log(), start.log(), "k3").mul(found).sum().item() < 1e-3
