"""Writes what a run of PPO or GRPO made: the actor as a model that serves, its adapter under LoRA, and the critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from training.config.tree import config_dict
from training.loop.results import Results
from training.models.compile import uncompiled
from training.models.export import check_export, manifest, save_model, save_reward_model
from training.models.lora import lora_layers, merged_state_dict, save_adapter
from training.models.rehearsal import rehearse_model, rehearse_reward_model
from training.strategies.base import Strategy, Trained

if TYPE_CHECKING:
    from training.ppo.learner import Learner

PROBED = 32
"""Tokens on which the exported actor is compared with the trained one."""
SHOWN = ("reward", "kl", "response_length", "eos_fraction", "loss")


def actor_weights(strategy: Strategy, trained: Trained, *, raw: bool = False) -> dict[str, Tensor]:
    """The inner model's weights by its plain names (adapters merged unless `raw`), on rank 0; every rank must call."""
    state = strategy.full_state_dict(trained)
    inner: Any = trained.inner.model
    plain = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return plain if raw or not plain or not lora_layers(inner) else merged_state_dict(inner, plain)


def rehearse(learner: Learner) -> None:
    """Try what `export` will need, before the first rollout."""
    players, folder, dtype = learner.players, learner.run.run_dir, learner.strategy.dtype
    if learner.strategy.is_main:
        rehearse_model(folder, players.actor.inner.model, learner.codec, dtype=dtype)
        if players.critic is not None:
            rehearse_reward_model(folder, players.critic.inner.model, learner.codec, dtype=dtype)


def export(learner: Learner) -> None:
    """`model/`, `adapter/` and `critic/` in the run folder; then the model is checked by its logits, and announced."""
    strategy, config, folder = learner.strategy, learner.config, learner.run.run_dir
    actor, critic = learner.players.actor, learner.players.critic
    raw = actor_weights(strategy, actor, raw=True)
    values = actor_weights(strategy, critic) if critic is not None else {}
    model: Any = actor.inner.model
    metrics = {name: learner.figures[name] for name in SHOWN if name in learner.figures}
    results = Results(learner.telemetry)
    if strategy.is_main:
        facts = manifest(
            "model", stage=learner.run.stage, base=config.model, step=learner.step, metrics=metrics,
            config=config_dict(config),
        )  # fmt: skip
        adapted = bool(lora_layers(model))
        if adapted:
            save_adapter(model, raw, folder / "adapter", base=config.model)
            results.add(folder / "adapter", "adapter")
        if not adapted or config.lora is None or config.lora.merge:
            save_model(folder / "model", model, merged_state_dict(model, raw) if adapted else raw, learner.codec, facts)
            results.add(folder / "model", "model", facts)
        if critic is not None:
            with results.kept():
                described = {**facts, "kind": "critic"}
                save_reward_model(folder / "critic", critic.inner.model, values, learner.codec, described)
    with results.kept():
        expected, tokens = _probe(learner)
        if any(kind == "model" for _, kind, _ in results.folders):
            tolerance = 1e-3 if learner.train.precision == "fp32" else 5e-2
            error = check_export(folder / "model", expected, tokens, tolerance=tolerance)
            learner.run.note(
                f"exported {folder / 'model'}: its logits agree with the trained actor's "
                f"(difference {error:.1e} of their spread)"
            )
    results.announce(metrics)


def _probe(learner: Learner) -> tuple[Tensor, Tensor]:
    """Logits [s, V] of the trained actor for a few tokens [s], to compare the export with; every rank must call."""
    tokens = torch.tensor(learner.prompts.rows[0].tokens[:PROBED], device=learner.strategy.device)
    with learner.strategy.generation(learner.players.actor) as policy, uncompiled(policy):
        logits = policy.model(input_ids=tokens[None]).logits[0].float()
    return logits, tokens
