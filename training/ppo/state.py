"""Saves and restores a run of PPO or GRPO exactly: weights, optimizers, prompt cursor, KL, normaliser, engine check.

A completion's random stream is made from the run's seed, the step and the completion's number, so it needs no state of
its own and doesn't depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import ConfigError, RankFailed, Stopped
from training.loop.checkpoint import Checkpoints, find_resume, read_state
from training.models.export import write_weights
from training.ppo.export import actor_weights
from training.ppo.rewards import RewardFailed
from training.ppo.update import any_rank

if TYPE_CHECKING:
    from training.ppo.learner import Learner


class State:
    """The checkpoints of one run, and when they are written."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        keep = learner.config.checkpoint.keep
        self.checkpoints = Checkpoints(learner.run.run_dir, keep=keep, keep_best=False)

    def remember(self) -> dict[str, Any]:
        """What changes from step to step besides the models."""
        learner = self.learner
        return {
            "prompts": learner.prompts.state_dict(),
            "ptx": learner.ptx.state_dict() if learner.ptx is not None else None,
            "kl": learner.kl.state_dict(),
            "shaping": learner.shaping.state_dict(),
            "trust_engine": learner.roller.trust_engine,
        }

    def save(self, state: Mapping[str, Any], *, weights: bool = True) -> Path:
        """A checkpoint after the steps that are done, whole or not at all, the same on every rank."""
        learner, strategy = self.learner, self.learner.strategy

        def write(folder: Path) -> None:
            strategy.save(learner.players.trained, folder / "trainer")
            if weights:
                plain = actor_weights(strategy, learner.players.actor)
                if strategy.is_main:
                    write_weights(folder, learner.players.actor.inner.model, plain, learner.codec)

        path = self.checkpoints.save(
            learner.step,
            write,
            {"stage": learner.run.stage, "world_size": strategy.world_size, "total_steps": learner.total, **state},
            is_main=strategy.is_main,
            barrier=strategy.barrier,
            agree=lambda fine: not any_rank(strategy, not fine),
        )
        learner.telemetry.artifact(path, "checkpoint", learner.figures)
        return path

    def save_when_due(self) -> None:
        """After a step: what the `checkpoint` section asks for."""
        step, config = self.learner.step, self.learner.config.checkpoint
        last = step == self.learner.total
        if (config.every and step % config.every == 0) or (last and config.at_end):
            self.save(self.remember())

    def stop_if_asked(self, cursor: Mapping[str, Any] | None = None) -> None:
        """Save what a resume needs and end, when any rank was told to; a step that was only begun is repeated then."""
        learner = self.learner
        if learner.step == learner.total or not any_rank(learner.strategy, learner.run.stop.is_set()):
            return
        path = self.save(self.remember() if cursor is None else cursor, weights=False)
        raise Stopped(f"Stopped at step {learner.step} of {learner.total}; resume from {path} with resume: auto.")

    @contextmanager
    def kept(self, cursor: Mapping[str, Any]) -> Iterator[None]:
        """Where the reward fails inside: saves the run as it was before this step, which a resume repeats."""
        try:
            yield
        except (RewardFailed, RankFailed):
            self.save(cursor)
            raise

    def resume(self) -> int:
        """Restore the checkpoint that the configuration names, if any; returns how many steps are done."""
        learner = self.learner
        found = find_resume(learner.config.resume, learner.run.run_dir)
        if found is None:
            return 0
        state = read_state(found)
        if state["stage"] != learner.run.stage:
            raise ConfigError(f"{found} is a checkpoint of {state['stage']}, not of {learner.run.stage}.")
        learner.strategy.load(learner.players.trained, found / "trainer")
        learner.prompts.load_state_dict(state["prompts"])
        if learner.ptx is not None and state["ptx"] is not None:
            learner.ptx.load_state_dict(state["ptx"])
        learner.kl.load_state_dict(state["kl"])
        learner.shaping.load_state_dict(state["shaping"])
        learner.roller.trust_engine = state["trust_engine"]
        learner.run.note(f"resumed from {found} at step {state['step']} of {learner.total}")
        return int(state["step"])
