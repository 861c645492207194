"""Reinforcement learning from human feedback by proximal policy optimization: roll out, score, learn, again.

for each step:
    completions  ~  π                                      (the rollout engine, on the trainer's own weights)
    score        =  reward model or function, shaped       (normalised, penalised, clipped)
    r_t          =  −β·KL_t, + score on the last token     (KL to the reference, per token)
    A_t, R_t     =  GAE(r, V; γ, λ), A whitened            (over all ranks and the whole rollout)
    for each epoch, each minibatch:
        π  ←  clipped policy objective (+ ptx);   V  ←  clipped regression on R
    β  ←  fixed, or steered to a target KL
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from training.config.stages import PPOConfig, TrainConfig
from training.data.batch import PromptRow
from training.data.loader import build_loader
from training.data.prompts import build_prompts
from training.errors import NanLoss, RankFailed, Stopped
from training.loop.run import Run, open_run
from training.models.lora import adapters_off
from training.ppo import formulas as rl
from training.ppo.experience import Completions, Experience, FixedShapes, build_experience, describe, evaluate_actions
from training.ppo.export import export, rehearse
from training.ppo.models import Actor, action_logprobs
from training.ppo.players import CACHE_SHARE, Players, agree, check, gather, micro_tokens, prompt_limit
from training.ppo.report import COLUMNS, Phases, as_text, keep_samples, sample_table, shown
from training.ppo.rewards import RewardFailed, ScoreShaping, score_completions
from training.ppo.state import PPOState
from training.ppo.update import UpdateStats, any_rank, plan, update
from training.report.phases import phase
from training.rollout import RolloutEngine
from training.rollout.engine import row_seed


def run(config: PPOConfig) -> None:
    """One PPO run from start or checkpoint to the exported actor. Raises TrainingError with an exit code."""
    with open_run("ppo", config) as surroundings:
        PPO(surroundings).fit()


class PPO:
    """One run: what it is made of, the loop (`fit`), and the loop's four verbs."""

    def __init__(self, run: Run) -> None:
        config, strategy = run.config, run.strategy
        check(config, strategy.dp_size)
        self.run, self.config, self.strategy, self.train = run, config, strategy, config.train
        self.codec = run.load_codec()
        self.prompts = build_prompts(
            config.data, self.codec, max_length=prompt_limit(config), long_prompts=self.train.long_prompts,
            seed=self.train.seed, rank=strategy.dp_rank, world_size=strategy.dp_size, note=run.note,
        )  # fmt: skip
        self.max_length = max(len(row.tokens) for row in self.prompts.rows) + config.generation.max_new_tokens
        self.local = self.train.rollout_batch_size // strategy.dp_size
        per_step = self.train.rollout_batch_size // self.train.samples_per_prompt
        total = max(1, math.ceil(self.train.epochs * len(self.prompts) / per_step - 1e-9))
        self.total = min(total, self.train.max_steps or total)
        self.players: Players = gather(run, self.codec, self.total)
        self.actor, self.critic = self.players.actor, self.players.critic
        rehearse(self)
        agree(run, self.players, self.prompts.rows, self.codec.pad_id)
        self.micro_tokens = micro_tokens(run, self.actor.inner.model)
        fixed = FixedShapes.fitting(self.local, self.max_length, self.micro_tokens, self.train.score_tokens)
        self.shapes = fixed if run.compiled else None
        self.ptx = self._ptx_loader()
        self.engine: RolloutEngine | None = None
        self.shaping = ScoreShaping(config.reward, strategy.all_reduce_sum)
        kl = config.kl
        self.kl = rl.KLController(kl.coef, kl.target if kl.controller == "adaptive" else None, kl.horizon)
        self.state = PPOState(self)
        self.step = self.state.resume()
        self.telemetry = run.telemetry(self.total, self.step)
        self.phases = Phases(strategy.device, run.note)
        self.figures: dict[str, float] = {}

    def fit(self) -> None:
        self.run.note(
            f"{len(self.prompts):,} prompts, {self.train.rollout_batch_size} completions a step, {self.total} steps"
        )
        self.telemetry.start_clock()
        while self.step < self.total:
            cursor = self.state.remember()
            with self.phases("generate"):
                rows, completions, sampled = self.roll_out()
            if any_rank(self.strategy, self.run.stop.is_set()):
                self.stop(cursor)
            with self.phases("score"):
                try:
                    experience = self.judge(rows, completions, sampled)
                except (RewardFailed, RankFailed):
                    self.state.save(self.step, cursor)  # as it was before this step, which a resume repeats
                    raise
            with self.phases("train"):
                learned = self.learn(experience)
            self.step += 1
            self.report(rows, experience, learned)
            every, last = self.config.checkpoint.every, self.step == self.total
            if not last and any_rank(self.strategy, self.run.stop.is_set()):
                self.stop(self.state.remember())
            if (every and self.step % every == 0) or (last and self.config.checkpoint.at_end):
                self.state.save(self.step, self.state.remember())
        with phase("exporting the model", self.run.note):
            export(self)
        self.telemetry.close()

    def stop(self, cursor: Any) -> None:
        """Save what a resume needs and end; a step that was only begun is repeated then."""
        path = self.state.save(self.step, cursor, weights=False)
        raise Stopped(f"Stopped at step {self.step} of {self.total}; resume from {path} with resume: auto.")

    def roll_out(self) -> tuple[list[PromptRow], Completions, Tensor]:
        """This rank's prompts, their completions, and the log-probs [b, r] that count as the old policy's."""
        strategy, per_prompt = self.strategy, self.train.samples_per_prompt
        rows = [row for row in self.prompts.next(self.local // per_prompt) for _ in range(per_prompt)]
        first = self.step * self.train.rollout_batch_size + strategy.dp_rank
        seeds = [row_seed(self.train.seed, first + i * strategy.dp_size) for i in range(self.local)]
        with strategy.generation(self.actor) as policy:
            if self.engine is None or self.engine.source is not policy.model:
                self.engine = RolloutEngine(
                    policy.model, stop_ids=self.codec.stop_ids, decode=self.codec.decode, max_length=self.max_length,
                    max_batch=min(self.local, 256), memory_share=CACHE_SHARE, note=self.run.note,
                )  # fmt: skip
            rollout = self.engine.generate([row.tokens for row in rows], self.config.generation, seeds=seeds)
            completions = Completions(
                rollout.tokens,
                tuple(rollout.prompt_lengths.tolist()),
                tuple(rollout.response_lengths.tolist()),
                rollout.finished_by_stop,
                tuple(row.row for row in rows),
                self.shapes,
            )
            return rows, completions, self.old_logprobs(policy, completions, rollout.logprobs)

    def old_logprobs(self, policy: Actor, completions: Completions, sampled: Tensor) -> Tensor:
        """The engine's own log-probs where they passed comparison with a trainer forward, else that forward's."""
        if self.state.trust_engine:
            return sampled
        scored = action_logprobs(policy, completions, self.train.score_tokens)
        if self.state.trust_engine is None:
            error = rl.masked_mean((sampled - scored).abs(), completions.mask, self.strategy.all_reduce_sum).item()
            allowed = self.train.logprob_tolerance or (1e-4 if self.train.precision == "fp32" else 2e-2)
            self.state.trust_engine = error <= allowed and self.train.rollout_logprobs == "auto"
            verdict = "are used as they are" if self.state.trust_engine else "are scored again by the trainer"
            self.run.note(
                f"log-probs of the rollout engine differ from a trainer forward by {error:.2g} a token on average "
                f"(allowed {allowed:g}): they {verdict}"
            )
        return scored

    def judge(self, rows: list[PromptRow], completions: Completions, logprobs: Tensor) -> Experience:
        """Scores, reference log-probs and values of a rollout, made into rewards, advantages and returns."""
        strategy, players, budget = self.strategy, self.players, self.train.score_tokens
        failure: RewardFailed | None = None
        scores = torch.zeros(len(rows), device=strategy.device)
        try:
            scores = score_completions(players.reward, completions, rows, self.codec, budget)
        except RewardFailed as error:
            failure = error
        if any_rank(strategy, failure is not None):
            raise failure or RankFailed("The reward failed on another rank, which names the row.")
        if players.reference is not None:
            ref_logprobs = action_logprobs(players.reference, completions, budget)
        else:
            with strategy.generation(self.actor) as policy, adapters_off(policy):
                ref_logprobs = action_logprobs(policy, completions, budget)
        with strategy.generation(self.critic) as critic:
            values = evaluate_actions(completions, budget, critic.action_values)
        return build_experience(
            completions,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=values,
            scores=scores,
            shaped_scores=self.shaping(scores, completions.finished),
            kl_coef=self.kl.coef,
            estimator=self.config.kl.estimator,
            train=self.train,
            reduce=strategy.all_reduce_sum,
        )

    def learn(self, experience: Experience) -> dict[str, float]:
        """Every epoch and minibatch of one rollout; the means of what they saw."""
        train, stats, rate = self.train, UpdateStats(), self.actor.learning_rate
        for trained in (self.actor, self.critic):
            trained.module.train()
        for minibatch in plan(
            self.strategy, experience.completions, epochs=train.ppo_epochs, minibatch_size=train.minibatch_size,
            budget=self.micro_tokens, seed=(train.seed, self.step),
        ):  # fmt: skip
            update(
                self.strategy, self.actor, self.critic, experience, minibatch, stats,
                train_actor=self.step >= train.critic_warmup_steps,
                ptx=next(iter(self.ptx)) if self.ptx is not None else None, ptx_coef=self.config.ptx.coef,
            )  # fmt: skip
        learned = stats.finish(self.strategy)
        broken = [name for name, value in learned.items() if not math.isfinite(value)]
        if broken:
            raise NanLoss(
                f"{', '.join(broken)} stopped being a number at step {self.step + 1}. Last good checkpoint: "
                f"{self.state.checkpoints.latest() or 'none was saved'}. Lower train.lr or critic.lr, or raise kl.coef."
            )
        return {**learned, "lr": rate}

    def report(self, rows: list[PromptRow], experience: Experience, learned: dict[str, float]) -> None:
        """Tell the step's figures, steer the KL coefficient, show samples."""
        seen = describe(experience, self.strategy.all_reduce_sum)
        completions, tokens = int(seen.pop("completions")), int(seen.pop("tokens"))
        times = self.phases.take()
        figures = {
            "loss": learned.get("policy_loss", 0.0) + self.config.critic.coef * learned["value_loss"],
            **seen, **learned, **times, "kl_coef": self.kl.coef,
            "reward_minus_kl": seen["shaped_reward"] - self.kl.coef * seen["kl"],
            "samples_per_second": completions / times["step_seconds"],
        }  # fmt: skip
        if self.run.on_gpu:
            figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.kl.update(seen["kl"], completions)
        self.figures = figures
        self.telemetry.step(self.step, figures, tokens=tokens)
        every = self.train.sample_every
        if self.run.is_main and every and (self.step % every == 0 or self.step in (1, self.total)):
            table = sample_table(experience, rows, self.codec, self.train.sample_rows, self.step)
            keep_samples(self.run.run_dir / "samples.jsonl", table)
            self.telemetry.sample(f"step {self.step}", shown(table), columns=COLUMNS)
            self.telemetry.note(as_text(f"step {self.step}", table))

    def _ptx_loader(self) -> Any:
        """The side loss's documents, one micro-batch a rank and update; None while ptx.coef is 0."""
        ptx = self.config.ptx
        if not ptx.coef:
            return None
        data = dataclasses.replace(self.config.data, sources=ptx.data, eval=(), eval_fraction=0.0)
        size = self.strategy.dp_size
        train = TrainConfig(
            packing=False, batch_size=ptx.batch_size // size, seed=self.train.seed, max_length=self.max_length
        )
        rank, note = self.strategy.dp_rank, self.run.note
        return build_loader("sft", data, train, self.codec, rank=rank, world_size=size, note=note)
