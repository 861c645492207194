"""Saves and restores a PPO run exactly: weights, optimizers, prompt cursor, KL coefficient, normaliser, engine check.

A completion's random stream is made from the run's seed, the step and the completion's number, so it needs no state of
its own and doesn't depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import ConfigError
from training.loop.checkpoint import Checkpoints, find_resume, read_state
from training.models.export import write_weights
from training.ppo.export import actor_weights
from training.ppo.update import any_rank

if TYPE_CHECKING:
    from training.stages.ppo import PPO


class PPOState:
    """The checkpoints of one run, and the one decision that a resume must not take anew."""

    def __init__(self, ppo: PPO) -> None:
        self.ppo = ppo
        keep = ppo.config.checkpoint.keep
        self.checkpoints = Checkpoints(ppo.run.run_dir, keep=keep, keep_best=False)
        self.trust_engine: bool | None = None if ppo.train.rollout_logprobs == "auto" else False
        """Whether the rollout engine's log-probs count as the old policy's; None: not compared yet."""

    def remember(self) -> dict[str, Any]:
        """What changes from step to step besides the models."""
        ppo = self.ppo
        return {
            "prompts": ppo.prompts.state_dict(),
            "ptx": ppo.ptx.state_dict() if ppo.ptx is not None else None,
            "kl": ppo.kl.state_dict(),
            "shaping": ppo.shaping.state_dict(),
            "trust_engine": self.trust_engine,
        }

    def save(self, step: int, state: Mapping[str, Any], *, weights: bool = True) -> Path:
        """A checkpoint after `step` steps, whole or not at all, the same on every rank."""
        ppo, strategy = self.ppo, self.ppo.strategy

        def write(folder: Path) -> None:
            strategy.save([ppo.actor, ppo.critic], folder / "trainer")
            if weights:
                plain = actor_weights(ppo.strategy, ppo.actor)
                if strategy.is_main:
                    write_weights(folder, ppo.actor.inner.model, plain, ppo.codec)

        path = self.checkpoints.save(
            step,
            write,
            {"stage": "ppo", "world_size": strategy.world_size, "total_steps": ppo.total, **state},
            is_main=strategy.is_main,
            barrier=strategy.barrier,
            agree=lambda fine: not any_rank(strategy, not fine),
        )
        ppo.telemetry.artifact(path, "checkpoint", ppo.figures)
        return path

    def resume(self) -> int:
        """Restore the checkpoint that the configuration names, if any; returns how many steps are done."""
        ppo = self.ppo
        found = find_resume(ppo.config.resume, ppo.run.run_dir)
        if found is None:
            return 0
        state = read_state(found)
        if state["stage"] != "ppo":
            raise ConfigError(f"{found} is a checkpoint of {state['stage']}, not of ppo.")
        ppo.strategy.load([ppo.actor, ppo.critic], found / "trainer")
        ppo.prompts.load_state_dict(state["prompts"])
        if ppo.ptx is not None and state["ptx"] is not None:
            ppo.ptx.load_state_dict(state["ptx"])
        ppo.kl.load_state_dict(state["kl"])
        ppo.shaping.load_state_dict(state["shaping"])
        self.trust_engine = state["trust_engine"]
        ppo.run.note(f"resumed from {found} at step {state['step']} of {ppo.total}")
        return int(state["step"])
