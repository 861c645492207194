"""Rolls out: this rank's prompts, their completions from the engine, and the old policy's log-probs of them."""

from __future__ import annotations

import math

from torch import Tensor

from training.config.rollouts import RolloutTrainConfig
from training.data.batch import PromptRow
from training.data.prompts import PromptLoader
from training.data.template import TextCodec
from training.loop.run import Run
from training.ppo import formulas as rl
from training.ppo.experience import Completions, FixedShapes
from training.ppo.models import Actor, action_logprobs
from training.ppo.players import CACHE_SHARE
from training.rollout import RolloutEngine
from training.rollout.engine import row_seed
from training.strategies.base import Trained


def steps_of(train: RolloutTrainConfig, prompts: int) -> int:
    """Steps of a whole run over so many prompts."""
    per_step = train.rollout_batch_size // train.samples_per_prompt
    total = max(1, math.ceil(train.epochs * prompts / per_step - 1e-9))
    return min(total, train.max_steps or total)


class Roller:
    """One rank's rollouts. `trust_engine`: whether the engine's log-probs count as the old policy's; None: not compared
    yet. It is a decision that a resume must not take anew."""

    def __init__(self, run: Run, codec: TextCodec, prompts: PromptLoader, actor: Trained, micro_tokens: int) -> None:
        self.run, self.codec, self.prompts, self.actor = run, codec, prompts, actor
        self.strategy, self.generation = run.strategy, run.config.generation
        self.train: RolloutTrainConfig = run.config.train
        self.local = self.train.rollout_batch_size // run.strategy.dp_size
        self.max_length = max(len(row.tokens) for row in prompts.rows) + self.generation.max_new_tokens
        fixed = FixedShapes.fitting(self.local, self.max_length, micro_tokens, self.train.score_tokens)
        self.shapes = fixed if run.compiled else None
        self.engine: RolloutEngine | None = None
        self.trust_engine: bool | None = None if self.train.rollout_logprobs == "auto" else False

    def __call__(self, step: int, *, groups: int | None = None, again: int = 0) -> tuple[
        list[PromptRow], Completions, Tensor
    ]:  # fmt: skip
        """This rank's next prompts, each `samples_per_prompt` times in a row, their completions, and log-probs [b, r].

        `groups` prompts instead of a whole step's share; `again` numbers the rollouts of a step after its first one.
        A completion's random stream depends on seed, step and its number among those of all ranks, and on nothing else.
        """
        per_prompt, strategy = self.train.samples_per_prompt, self.strategy
        prompts = self.prompts.next(self.local // per_prompt if groups is None else groups)
        rows = [row for row in prompts for _ in range(per_prompt)]
        seed = row_seed(self.train.seed, again) if again else self.train.seed
        first = step * self.train.rollout_batch_size
        numbers = [
            (group * strategy.dp_size + strategy.dp_rank) * per_prompt + i
            for group in range(len(prompts))
            for i in range(per_prompt)
        ]
        with strategy.generation(self.actor) as policy:
            if self.engine is None or self.engine.source is not policy.model:
                self.engine = RolloutEngine(
                    policy.model, stop_ids=self.codec.stop_ids, decode=self.codec.decode, max_length=self.max_length,
                    max_batch=min(self.local, 256), memory_share=CACHE_SHARE, note=self.run.note,
                )  # fmt: skip
            rollout = self.engine.generate(
                [row.tokens for row in rows], self.generation, seeds=[row_seed(seed, first + n) for n in numbers]
            )
            completions = Completions(
                rollout.tokens,
                tuple(rollout.prompt_lengths.tolist()),
                tuple(rollout.response_lengths.tolist()),
                rollout.finished_by_stop,
                tuple(row.row for row in rows),
                self.shapes,
            )
            return rows, completions, self._old_logprobs(policy, completions, rollout.logprobs)

    def _old_logprobs(self, policy: Actor, completions: Completions, sampled: Tensor) -> Tensor:
        """The engine's own log-probs where they passed comparison with a trainer forward, else that forward's."""
        if self.trust_engine:
            return sampled
        scored = action_logprobs(policy, completions, self.train.score_tokens)
        if self.trust_engine is None:
            error = rl.masked_mean((sampled - scored).abs(), completions.mask, self.strategy.all_reduce_sum).item()
            allowed = self.train.logprob_tolerance or (1e-4 if self.train.precision == "fp32" else 2e-2)
            self.trust_engine = error <= allowed and self.train.rollout_logprobs == "auto"
            verdict = "are used as they are" if self.trust_engine else "are scored again by the trainer"
            self.run.note(
                f"log-probs of the rollout engine differ from a trainer forward by {error:.2g} a token on average "
                f"(allowed {allowed:g}): they {verdict}"
            )
        return scored
