"""The update: ratio one at first, KL zero at home, and the same step however rows are packed, cut or spread."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PreTrainedModel

from training.config.ppo import PPOTrainConfig
from training.config.strategies import OptimizerConfig, StrategyConfig
from training.models.heads import RewardModel
from training.models.load import from_config
from training.ppo import formulas as rl
from training.ppo.experience import Completions, Experience, build_experience, evaluate_actions, pack
from training.ppo.models import Actor, Critic, PolicyTask, ValueTask
from training.ppo.update import UpdateStats, plan, update
from training.strategies.base import Strategy
from training.strategies.select import open_strategy

VOCAB = 29
SHAPES = [(3, 5), (1, 2), (7, 1), (2, 9), (4, 4), (1, 1), (5, 7), (2, 3)]


def tiny(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    if kind == "gpt2":  # attends through padded rows, and has dropout to be turned off
        return from_config(GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=32, n_layer=2, n_head=4))
    return from_config(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.2,
        )
    )  # fmt: skip


def rollout(shapes: list[tuple[int, int]] = SHAPES, pad: int = 0) -> Completions:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.full((len(shapes), max(p + r for p, r in shapes)), pad)
    for i, (prompt, response) in enumerate(shapes):
        tokens[i, : prompt + response] = torch.randint(0, VOCAB, (prompt + response,), generator=generator)
    prompts, responses = zip(*shapes, strict=True)
    return Completions(tokens, prompts, responses, torch.ones(len(shapes)).bool(), tuple(map(str, range(len(shapes)))))


def scored(actor: Actor, critic: Critic, data: Completions, budget: int = 24) -> Experience:
    torch.manual_seed(5)
    reference = Actor(tiny(seed=9))
    logprobs = evaluate_actions(data, budget, lambda batch: actor.action_logprobs(batch)[0])
    return build_experience(
        data,
        logprobs=logprobs,
        ref_logprobs=evaluate_actions(data, budget, lambda batch: reference.action_logprobs(batch)[0]),
        values=evaluate_actions(data, budget, critic.action_values),
        scores=torch.arange(len(data)).float() / 4,
        shaped_scores=torch.arange(len(data)).float() / 4,
        kl_coef=0.1,
        estimator="k1",
        train=PPOTrainConfig(),
    )


def critic_of(model: PreTrainedModel) -> Critic:
    """With a head away from zero: zeros would hide mistakes behind them."""
    torch.manual_seed(7)
    return Critic(RewardModel(model.base_model))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_first_minibatch_has_ratio_one_and_nothing_clipped(kind: str) -> None:
    actor, critic = Actor(tiny(kind)).train(), critic_of(tiny(kind, 1)).train()
    data = rollout()
    experience = scored(actor, critic, data)
    for rows in ([0, 3, 5], [7, 6, 4, 2, 1]):
        batch = pack(data, rows)
        tables = experience.flat(batch.places)
        step = actor(PolicyTask(batch, tables["logprobs"], tables["advantages"], 1.0))
        assert step.max_ratio.item() == pytest.approx(1, abs=1e-5)
        assert step.clipped.item() == 0
        assert step.approx_kl.item() == pytest.approx(0, abs=1e-6)
        value = critic(ValueTask(batch, tables["values"], tables["returns"], 1.0))
        assert value.clipped.item() == 0
        assert value.value_loss.item() == pytest.approx(
            0.5 * (tables["values"] - tables["returns"]).square().sum().item(), rel=1e-4
        )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_of_actions_do_not_depend_on_packing_padding_or_order(kind: str) -> None:
    actor, critic, data = Actor(tiny(kind)), critic_of(tiny(kind, 1)), rollout()
    for evaluate in (lambda batch: actor.action_logprobs(batch)[0], critic.action_values):
        alone = evaluate_actions(data, 1, evaluate)
        assert torch.allclose(evaluate_actions(data, 24, evaluate), alone, atol=1e-5)
        assert torch.allclose(evaluate_actions(data, 10_000, evaluate), alone, atol=1e-5)
        assert torch.allclose(evaluate_actions(rollout(pad=3), 24, evaluate), alone, atol=1e-5)
        order = [5, 0, 7, 2, 1, 6, 4, 3]
        shuffled = rollout()
        shuffled = Completions(
            data.tokens[order],
            tuple(data.prompt_lengths[i] for i in order),
            tuple(data.response_lengths[i] for i in order),
            shuffled.finished[order],
            shuffled.rows,
        )
        assert torch.allclose(evaluate_actions(shuffled, 24, evaluate), alone[order], atol=1e-5)


def test_action_logprobs_equal_those_of_the_plain_model_at_the_sampling_temperature() -> None:
    data, model = rollout(), tiny()
    table = evaluate_actions(data, 24, lambda batch: Actor(model, temperature=0.7).action_logprobs(batch)[0])
    for row, (prompt, response) in enumerate(SHAPES):
        ids = data.tokens[row, : prompt + response]
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, prompt - 1 : prompt + response - 1].float()
        expected = (logits / 0.7).log_softmax(-1).gather(1, ids[prompt:, None])[:, 0]
        assert torch.allclose(table[row, :response], expected, atol=1e-5)


def test_a_value_never_sees_the_action_it_precedes() -> None:
    data, critic = rollout([(3, 4)]), critic_of(tiny())
    before = evaluate_actions(data, 24, critic.action_values)
    changed = rollout([(3, 4)])
    changed.tokens[0, 5] = (changed.tokens[0, 5] + 1) % VOCAB  # the third action
    after = evaluate_actions(changed, 24, critic.action_values)
    assert torch.equal(before[0, :3], after[0, :3])
    assert abs(before[0, 3] - after[0, 3]).item() > 1e-4


def test_kl_is_zero_at_home_and_entropy_of_a_uniform_model_is_log_v() -> None:
    data, model = rollout(), tiny()
    logprobs = evaluate_actions(data, 24, lambda batch: Actor(model).action_logprobs(batch)[0])
    home = evaluate_actions(data, 11, lambda batch: Actor(tiny()).action_logprobs(batch)[0])
    assert rl.kl_estimate(logprobs, home).abs().max().item() < 1e-5
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    entropy = evaluate_actions(data, 24, lambda batch: Actor(model).action_logprobs(batch)[1])
    assert torch.allclose(entropy[data.mask], torch.tensor(math.log(VOCAB)))


def one_update(strategy: Strategy, budget: int, *, epochs: int = 1) -> dict[str, Tensor | dict[str, float]]:
    """The weights and statistics after one rollout's updates, this rank holding its share of the same eight rows."""
    optimizer = OptimizerConfig(lr=1e-2, eps=1e-5, max_grad_norm=1.0)
    actor = strategy.prepare(Actor(tiny()), optimizer, lambda step: 1.0, name="actor")
    critic = strategy.prepare(critic_of(tiny(seed=1)), optimizer, lambda step: 1.0, name="critic")
    whole = scored(Actor(tiny()), critic_of(tiny(seed=1)), rollout())
    mine = list(range(strategy.dp_rank, len(SHAPES), strategy.dp_size))
    data = whole.completions
    share = Completions(
        data.tokens[mine],
        tuple(data.prompt_lengths[i] for i in mine),
        tuple(data.response_lengths[i] for i in mine),
        data.finished[mine],
        tuple(data.rows[i] for i in mine),
    )
    width = share.width
    tables = {
        name: getattr(whole, name)[mine][:, :width]
        for name in ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns", "kl")
    }
    experience = Experience(share, **tables, scores=whole.scores[mine], shaped_scores=whole.shaped_scores[mine])
    stats = UpdateStats()
    for minibatch in plan(strategy, share, epochs=epochs, minibatch_size=len(SHAPES), budget=budget, seed=(3, 0)):
        update(strategy, actor, critic, experience, minibatch, stats)
    figures = stats.finish(strategy)
    weights = {f"actor.{k}": v.clone() for k, v in strategy.full_state_dict(actor).items()}
    weights |= {f"critic.{k}": v.clone() for k, v in strategy.full_state_dict(critic).items()}
    return {"weights": weights, "figures": figures}


def same(one: dict, other: dict) -> None:
    for name, value in one["figures"].items():
        assert other["figures"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, weight in one["weights"].items():
        assert torch.allclose(other["weights"][name], weight, atol=2e-6), name
    fresh = {f"actor.{name}": weight for name, weight in Actor(tiny()).state_dict().items()}
    assert max((one["weights"][name] - weight).abs().max().item() for name, weight in fresh.items()) > 1e-3


def test_one_micro_batch_or_many_make_the_same_update() -> None:
    with open_strategy(StrategyConfig(name="naive"), precision="fp32", stage="ppo") as strategy:
        whole, cut = one_update(strategy, 10_000, epochs=2), one_update(strategy, 12, epochs=2)
        same(whole, cut)
    assert whole["figures"]["clip_fraction"] >= 0  # type: ignore[index]


def test_one_rank_or_two_make_the_same_update(tmp_path: Path) -> None:
    with open_strategy(StrategyConfig(name="naive"), precision="fp32", stage="ppo") as strategy:
        alone = one_update(strategy, 10_000)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(tmp_path)],
        check=True, timeout=90, env=environment,
    )  # fmt: skip
    together = torch.load(tmp_path / "update.pt")
    same(alone, together)
    assert json.loads((tmp_path / "counts.json").read_text()) == [2, 2]  # micro-batches: as many on either rank


def worker(out: Path) -> None:
    """One of two ranks of the test above."""
    with open_strategy(StrategyConfig(name="ddp"), precision="fp32", stage="ppo") as strategy:
        result = one_update(strategy, 30)
        share = rollout(SHAPES[strategy.dp_rank :: 2])
        counts = torch.zeros(2, dtype=torch.long)
        minibatch = plan(strategy, share, epochs=1, minibatch_size=8, budget=30, seed=(3, 0))[0]
        counts[strategy.dp_rank] = len(minibatch.micro_batches)
        strategy.all_reduce_sum(counts)
        if strategy.is_main:
            torch.save(result, out / "update.pt")
            (out / "counts.json").write_text(json.dumps(counts.tolist()))


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
