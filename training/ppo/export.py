"""Writes what a PPO run made: the actor as a model that serves, its adapter under LoRA, and the critic."""

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
    from training.stages.ppo import PPO

PROBED = 32
"""Tokens on which the exported actor is compared with the trained one."""
SHOWN = ("reward", "kl", "response_length", "eos_fraction", "loss")


def actor_weights(strategy: Strategy, trained: Trained, *, raw: bool = False) -> dict[str, Tensor]:
    """The inner model's weights by its plain names (adapters merged unless `raw`), on rank 0; every rank must call."""
    state = strategy.full_state_dict(trained)
    inner: Any = trained.inner.model
    plain = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return plain if raw or not plain or not lora_layers(inner) else merged_state_dict(inner, plain)


def rehearse(ppo: PPO) -> None:
    """Try what `export` will need, before the first rollout."""
    if ppo.strategy.is_main:
        folder, dtype = ppo.run.run_dir, ppo.strategy.dtype
        rehearse_model(folder, ppo.actor.inner.model, ppo.codec, dtype=dtype)
        rehearse_reward_model(folder, ppo.critic.inner.model, ppo.codec, dtype=dtype)


def export(ppo: PPO) -> None:
    """`model/`, `adapter/` and `critic/` in the run folder; then the model is checked by its logits, and announced."""
    strategy, config, folder = ppo.strategy, ppo.config, ppo.run.run_dir
    raw, critic = actor_weights(strategy, ppo.actor, raw=True), actor_weights(strategy, ppo.critic)
    model: Any = ppo.actor.inner.model
    metrics = {name: ppo.figures[name] for name in SHOWN if name in ppo.figures}
    results = Results(ppo.telemetry)
    if strategy.is_main:
        facts = manifest(
            "model", stage="ppo", base=config.model, step=ppo.step, metrics=metrics, config=config_dict(config)
        )
        adapted = bool(lora_layers(model))
        if adapted:
            save_adapter(model, raw, folder / "adapter", base=config.model)
            results.add(folder / "adapter", "adapter")
        if not adapted or config.lora is None or config.lora.merge:
            save_model(folder / "model", model, merged_state_dict(model, raw) if adapted else raw, ppo.codec, facts)
            results.add(folder / "model", "model", facts)
        with results.kept():
            save_reward_model(folder / "critic", ppo.critic.inner.model, critic, ppo.codec, {**facts, "kind": "critic"})
    with results.kept():
        expected, tokens = _probe(ppo)
        if any(kind == "model" for _, kind, _ in results.folders):
            tolerance = 1e-3 if ppo.train.precision == "fp32" else 5e-2
            error = check_export(folder / "model", expected, tokens, tolerance=tolerance)
            ppo.run.note(
                f"exported {folder / 'model'}: its logits agree with the trained actor's "
                f"(difference {error:.1e} of their spread)"
            )
    results.announce(metrics)


def _probe(ppo: PPO) -> tuple[Tensor, Tensor]:
    """Logits [s, V] of the trained actor for a few tokens [s], to compare the export with; every rank must call."""
    tokens = torch.tensor(ppo.prompts.rows[0].tokens[:PROBED], device=ppo.strategy.device)
    with ppo.strategy.generation(ppo.actor) as policy, uncompiled(policy):
        logits = policy.model(input_ids=tokens[None]).logits[0].float()
    return logits, tokens
