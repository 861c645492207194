"""Writes what a PPO run made: the actor as a model that serves, its adapter under LoRA, and the critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from training.config.stages import config_dict
from training.models.export import check_export, manifest, save_model, save_reward_model
from training.models.lora import lora_layers, merged_state_dict, save_adapter
from training.strategies.base import Strategy, Trained

if TYPE_CHECKING:
    from training.stages.ppo import PPO

SHOWN = ("reward", "kl", "response_length", "eos_fraction", "loss")


def actor_weights(strategy: Strategy, trained: Trained, *, raw: bool = False) -> dict[str, Tensor]:
    """The inner model's weights by its plain names (adapters merged unless `raw`), on rank 0; every rank must call."""
    state = strategy.full_state_dict(trained)
    inner: Any = trained.inner.model
    plain = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return plain if raw or not plain or not lora_layers(inner) else merged_state_dict(inner, plain)


def export(ppo: PPO) -> None:
    """`model/` (checked by its logits), `adapter/` and `critic/` in the run folder, announced as artifacts."""
    strategy, config, folder = ppo.strategy, ppo.config, ppo.run.run_dir
    raw = actor_weights(strategy, ppo.actor, raw=True)
    critic = actor_weights(strategy, ppo.critic)
    expected = _probe(ppo)
    if not strategy.is_main:
        return
    model: Any = ppo.actor.inner.model
    metrics = {name: ppo.figures[name] for name in SHOWN if name in ppo.figures}
    facts = manifest(
        "model", stage="ppo", base=config.model, step=ppo.step, metrics=metrics, config=config_dict(config)
    )
    adapted = bool(lora_layers(model))
    if adapted:
        save_adapter(model, raw, folder / "adapter", base=config.model)
        ppo.telemetry.artifact(folder / "adapter", "adapter", metrics)
    if not adapted or config.lora is None or config.lora.merge:
        save_model(folder / "model", model, merged_state_dict(model, raw) if adapted else raw, ppo.codec, facts)
        error = check_export(folder / "model", *expected, tolerance=1e-3 if ppo.train.precision == "fp32" else 5e-2)
        ppo.run.note(
            f"exported {folder / 'model'}: its logits agree with the trained actor's "
            f"(difference {error:.1e} of their spread)"
        )
        ppo.telemetry.artifact(folder / "model", "model", metrics)
    value_facts = {**facts, "kind": "critic"}
    save_reward_model(folder / "critic", ppo.critic.inner.model, critic, ppo.codec, value_facts)


def _probe(ppo: PPO) -> tuple[Tensor, Tensor]:
    """Logits [s, V] of the trained actor for a few tokens [s], to compare the export with; every rank must call."""
    ids = ppo.codec.encode_prompt([{"role": "user", "content": "Is this what was trained?"}])[:32]
    tokens = torch.tensor(ids, device=ppo.strategy.device)
    with ppo.strategy.generation(ppo.actor) as policy:
        logits = policy.model(input_ids=tokens[None]).logits[0].float()
    return logits, tokens
