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
from typing import Any

from torch import Tensor

from training.config.stages import PPOConfig, TrainConfig
from training.data.batch import PromptRow
from training.data.loader import build_loader
from training.data.prompts import build_prompts
from training.loop.run import Run, open_run
from training.ppo import formulas as rl
from training.ppo.experience import Completions, Experience, build_experience, describe
from training.ppo.export import export, rehearse
from training.ppo.players import agree, check, gather, micro_tokens, prompt_limit
from training.ppo.report import Phases, finite, tell
from training.ppo.rewards import ScoreShaping
from training.ppo.rollouts import Roller, steps_of
from training.ppo.state import State
from training.ppo.update import UpdateStats, plan, update
from training.report.phases import phase


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
        self.total = steps_of(self.train, len(self.prompts))
        self.players = gather(run, self.codec, self.total)
        self.actor, self.critic = self.players.actor, self.players.critic
        rehearse(self)
        agree(run, self.players, self.prompts.rows, self.codec.pad_id)
        self.micro_tokens = micro_tokens(run, self.actor.inner.model)
        self.roller = Roller(run, self.codec, self.prompts, self.actor, self.micro_tokens)
        self.ptx = self._ptx_loader()
        self.shaping = ScoreShaping(config.reward, strategy.all_reduce_sum)
        kl = config.kl
        self.kl = rl.KLController(kl.coef, kl.target if kl.controller == "adaptive" else None, kl.horizon)
        self.state = State(self)
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
                rows, completions, logprobs = self.roll_out()
            self.state.stop_if_asked(cursor)
            with self.phases("score"), self.state.kept(cursor):
                experience = self.judge(rows, completions, logprobs)
            with self.phases("train"):
                learned = self.learn(experience)
            self.step += 1
            self.report(rows, experience, learned)
            self.state.stop_if_asked()
            self.state.save_when_due()
        with phase("exporting the model", self.run.note):
            export(self)
        self.telemetry.close()

    def roll_out(self) -> tuple[list[PromptRow], Completions, Tensor]:
        """This rank's prompts, their completions, and the log-probs [b, r] that count as the old policy's."""
        return self.roller(self.step)

    def judge(self, rows: list[PromptRow], completions: Completions, logprobs: Tensor) -> Experience:
        """Scores, reference log-probs and values of a rollout, made into rewards, advantages and returns."""
        strategy, players, budget = self.strategy, self.players, self.train.score_tokens
        scores, parts = players.rewards(completions, rows)
        return build_experience(
            completions,
            logprobs=logprobs,
            ref_logprobs=players.ref_logprobs(strategy, completions, budget),
            values=players.values(strategy, completions, budget),
            scores=scores,
            shaped_scores=self.shaping(scores, completions.finished),
            parts=parts,
            kl_coef=self.kl.coef,
            estimator=self.config.kl.estimator,
            train=self.train,
            reduce=strategy.all_reduce_sum,
        )

    def learn(self, experience: Experience) -> dict[str, float]:
        """Every epoch and minibatch of one rollout; the means of what they saw."""
        train, stats, rate = self.train, UpdateStats(), self.actor.learning_rate
        for trained in self.players.trained:
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
        finite(learned, self, "Lower train.lr or critic.lr, or raise kl.coef.")
        return {**learned, "lr": rate}

    def report(self, rows: list[PromptRow], experience: Experience, learned: dict[str, float]) -> None:
        """Tell the step's figures, and steer the KL coefficient."""
        seen = describe(experience, self.strategy.all_reduce_sum)
        loss = learned.get("policy_loss", 0.0) + self.config.critic.coef * learned["value_loss"]
        kept = seen["shaped_reward"] - self.kl.coef * seen["kl"]
        learned = {"loss": loss, **learned, "kl_coef": self.kl.coef, "reward_minus_kl": kept}
        tell(self, experience, rows, seen, learned)
        self.kl.update(seen["kl"], int(seen["completions"]))

    def _ptx_loader(self) -> Any:
        """The side loss's documents, one micro-batch a rank and update; None while ptx.coef is 0."""
        ptx = self.config.ptx
        if not ptx.coef:
            return None
        data = dataclasses.replace(self.config.data, sources=ptx.data, eval=(), eval_fraction=0.0)
        size = self.strategy.dp_size
        train = TrainConfig(
            packing=False, batch_size=ptx.batch_size // size, seed=self.train.seed, max_length=self.roller.max_length
        )
        rank, note = self.strategy.dp_rank, self.run.note
        return build_loader("sft", data, train, self.codec, rank=rank, world_size=size, note=note)
