"""Reinforcement learning from groups: several completions of each prompt are compared with each other; no critic.

for each step:
    for each prompt:  y_1 … y_G  ~  π                      (the rollout engine, on the trainer's own weights)
    r_i   =  reward models and functions, weighted, shaped  (−β·KL(y_i) where kl.place is reward)
    A_i   =  (r_i − mean r) / std r                         GRPO §4.1.2;  r_i − mean of the others: RLOO
    for each epoch, each minibatch:
        ρ     =  π/π_old of each token, or GSPO's mean over the sequence
        loss  =  Σ w·max(−A·ρ, −A·clip(ρ, 1−ε_low, 1+ε_high))  + β·KL where kl.place is loss
        π     ←  step                                       (w: DAPO's, GRPO's or Dr. GRPO's mean)

[GRPO] arXiv 2402.03300, [RLOO] arXiv 2402.14740, [DAPO] arXiv 2503.14476, [DR] (Dr. GRPO) arXiv 2503.20783,
[GSPO] arXiv 2507.18071
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from training.config.stages import GRPOConfig
from training.data.batch import PromptRow
from training.data.prompts import build_prompts
from training.loop.run import Run, open_run
from training.ppo import formulas as rl
from training.ppo import groups
from training.ppo.experience import Completions, Experience, describe, joined
from training.ppo.export import export, rehearse
from training.ppo.players import agree, check, gather, micro_tokens, prompt_limit
from training.ppo.report import Phases, finite, tell
from training.ppo.rewards import ScoreShaping
from training.ppo.rollouts import Roller, steps_of
from training.ppo.state import State
from training.ppo.update import UpdateStats, over_ranks, plan, update
from training.report.phases import phase


def run(config: GRPOConfig) -> None:
    """One GRPO run from start or checkpoint to the exported model. Raises TrainingError with an exit code."""
    with open_run("grpo", config) as surroundings:
        GRPO(surroundings).fit()


class GRPO:
    """One run: what it is made of, the loop (`fit`), and the loop's verbs."""

    ptx = None
    """PPO's side loss, which is not offered here."""

    def __init__(self, run: Run) -> None:
        config, strategy = run.config, run.strategy
        check(config, strategy.dp_size)
        self.run, self.config, self.strategy, self.train = run, config, strategy, config.train
        self.group, self.longest = config.train.samples_per_prompt, config.generation.max_new_tokens
        self.codec = run.load_codec()
        self.prompts = build_prompts(
            config.data, self.codec, max_length=prompt_limit(config), long_prompts=self.train.long_prompts,
            seed=self.train.seed, rank=strategy.dp_rank, world_size=strategy.dp_size, note=run.note,
        )  # fmt: skip
        self.total = steps_of(self.train, len(self.prompts))
        self.players = gather(run, self.codec, self.total)
        rehearse(self)
        agree(run, self.players, self.prompts.rows, self.codec.pad_id)
        self.micro_tokens = micro_tokens(run, self.players.actor.inner.model)
        self.roller = Roller(run, self.codec, self.prompts, self.players.actor, self.micro_tokens)
        self.shaping = ScoreShaping(config.reward, strategy.all_reduce_sum)
        self.kl = rl.KLController(config.kl.coef)
        self.state = State(self)
        self.step = self.state.resume()
        self.telemetry = run.telemetry(self.total, self.step)
        self.phases = Phases(strategy.device, run.note)
        self.figures: dict[str, float] = {}

    def fit(self) -> None:
        self.run.note(
            f"{len(self.prompts):,} prompts, {self.train.rollout_batch_size} completions a step in groups of "
            f"{self.group}, {self.total} steps"
        )
        self.telemetry.start_clock()
        while self.step < self.total:
            cursor = self.state.remember()
            with self.state.kept(cursor):
                rows, experience, rollouts = self.sample(cursor)
            with self.phases("train"):
                learned = self.learn(experience)
            self.step += 1
            self.report(rows, experience, learned, rollouts)
            self.state.stop_if_asked()
            self.state.save_when_due()
        with phase("exporting the model", self.run.note):
            export(self)
        self.telemetry.close()

    def sample(self, cursor: dict[str, object]) -> tuple[list[PromptRow], Experience, int]:
        """(prompts, experience, rollouts made): groups without signal are drawn again, in bounds. [DAPO] eq. 11"""
        rows, experience = self.judge(*self.roll_out(0))
        self.state.stop_if_asked(cursor)
        for again in range(1, self.config.grpo.dynamic_sampling + 1):
            wanted = ~groups.with_signal(experience.shaped_scores, self.group)  # [groups] those that teach nothing
            missing = int(over_ranks(self.strategy, wanted.sum()).max())
            if not missing:
                return rows, self.compare(experience), again
            more, fresh = self.judge(*self.roll_out(again, missing))
            self.state.stop_if_asked(cursor)
            useful = groups.with_signal(fresh.shaped_scores, self.group)
            old, new = wanted.nonzero().flatten(), useful.nonzero().flatten()
            count = min(len(old), len(new))
            chosen = torch.arange(len(rows) // self.group)
            chosen[old[:count].cpu()] = len(chosen) + new[:count].cpu()  # a group without signal gives way to one with
            index = [int(group) * self.group + i for group in chosen for i in range(self.group)]
            rows, experience = [[*rows, *more][i] for i in index], joined(experience, fresh, index)
        return rows, self.compare(experience), self.config.grpo.dynamic_sampling + 1

    def roll_out(self, again: int, prompts: int | None = None) -> tuple[list[PromptRow], Completions, Tensor]:
        """y ~ π: this rank's prompts, G completions of each in a row, and log π_old [b, r]."""
        with self.phases("generate"):
            return self.roller(self.step, groups=prompts, again=again)

    def judge(
        self, rows: list[PromptRow], completions: Completions, logprobs: Tensor
    ) -> tuple[list[PromptRow], Experience]:
        """r_i [b] of each completion, and log π_ref [b, r] where KL is measured; not compared yet."""
        with self.phases("score"):
            scores, parts = self.players.rewards(completions, rows)
            shaped = self.shaping(scores, completions.finished)
            shaped = shaped + groups.overlong_penalty(  # [DAPO] eq. 13
                completions.responses, self.longest, self.config.grpo.overlong_buffer
            )
            ref_logprobs = kl = None
            if self.kl.coef:
                ref_logprobs = self.players.ref_logprobs(self.strategy, completions, self.train.score_tokens)
                kl = rl.kl_estimate(logprobs, ref_logprobs, self.config.kl.estimate) * completions.mask  # [GRPO] eq. 4
            return rows, Experience(
                completions, logprobs, torch.zeros_like(logprobs), scores, shaped, ref_logprobs, kl, parts
            )

    def compare(self, experience: Experience) -> Experience:
        """A_i of each completion, the same at each of its tokens, and what each token weighs in the loss."""
        data, options = experience.completions, self.config.grpo
        rewards = experience.shaped_scores
        if experience.kl is not None and self.config.kl.place == "reward":
            rewards = rewards - self.kl.coef * experience.kl.sum(1)  # r_i − β·log π(y_i)/π_ref(y_i), [RLOO]
        advantages = groups.group_advantages(
            rewards, self.group, options.advantage, options.scale, self.strategy.all_reduce_sum
        )
        learned = data.finished | (not options.overlong_filtering)
        weights, divisor = groups.token_weights(data.mask, learned, options.loss_type, self.longest)
        return replace(
            experience, advantages=advantages[:, None] * data.mask, weights=weights, divisor=divisor
        )  # fmt: skip

    def learn(self, experience: Experience) -> dict[str, float]:
        """Every epoch and minibatch of one rollout; the means of what they saw."""
        train, stats, actor = self.train, UpdateStats(), self.players.actor
        rate = actor.learning_rate
        actor.module.train()
        for minibatch in plan(
            self.strategy, experience.completions, epochs=train.ppo_epochs, minibatch_size=train.minibatch_size,
            budget=self.micro_tokens, seed=(train.seed, self.step), divisor=experience.divisor,
        ):  # fmt: skip
            update(self.strategy, actor, None, experience, minibatch, stats)  # the loss is in Actor.forward
        learned = stats.finish(self.strategy)
        finite(learned, self, "Lower train.lr, or raise kl.coef.")
        return {**learned, "lr": rate}

    def report(self, rows: list[PromptRow], experience: Experience, learned: dict[str, float], rollouts: int) -> None:
        """Tell the step's figures."""
        seen = describe(experience, self.strategy.all_reduce_sum)
        signal = groups.with_signal(experience.shaped_scores, self.group)
        share = rl.masked_mean(signal.double(), torch.ones_like(signal), self.strategy.all_reduce_sum)
        learned = {"loss": learned["policy_loss"], **learned, "groups_with_signal": share.item(), "rollouts": rollouts}
        tell(self, experience, rows, seen, learned)
