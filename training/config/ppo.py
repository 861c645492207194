"""What PPO can be told, section by section: frozen dataclasses that import no torch.

`training.config.stages` composes these with the sections that every stage has (model, data, generation, strategy, lora,
checkpoint) into one PPOConfig. Bad values raise ValueError whose text names the key and says what is allowed.

Counterparts of coati's `train_prompts.py` arguments (a "step" here is one rollout with its updates):

| coati                             | here                                                                        |
| --------------------------------- | --------------------------------------------------------------------------- |
| prompt_dataset                    | data                                                                        |
| pretrain_dataset                  | ptx.data                                                                    |
| strategy                          | strategy                                                                    |
| model                             | none: the architecture is read from the model's own config.json             |
| pretrain                          | model (the actor, usually from SFT)                                         |
| rm_model, rm_path, rm_pretrain    | reward.model (one artifact holds architecture, weights, head, tokenizer)     |
| save_path                         | none: the run folder's `model/` (and `adapter/` under LoRA)                 |
| need_optim_ckpt                   | checkpoint (always holds the optimizers; resume is exact)                   |
| num_episodes × max_timesteps      | train.epochs over the prompts, or train.max_steps × train.rollout_batch_size |
| update_timesteps                  | train.rollout_batch_size = update_timesteps × experience_batch_size × ranks |
| experience_batch_size             | train.score_tokens (scoring goes by token budget), generation's batch       |
| max_epochs                        | train.ppo_epochs                                                            |
| train_batch_size                  | train.minibatch_size = train_batch_size × ranks                             |
| ptx_batch_size, ptx_coef          | ptx.batch_size, ptx.coef                                                    |
| lora_rank                         | lora.rank (actor), critic.lora_rank                                         |
| kl_coef                           | kl.coef                                                                     |
| max_input_len                     | train.max_prompt_length                                                     |
| max_seq_len                       | generation.max_new_tokens = max_seq_len − max_input_len                     |
| lr (hard-coded 1e-7)              | train.lr, critic.lr                                                         |
| eps_clip, value_clip, vf_coef     | train.clip_range, critic.clip_range, critic.coef                            |
| 16,384 rows at most (hard-coded)  | none: every prompt is used                                                  |
| top_k=50, temperature=1           | generation.temperature; top-k/top-p are refused while training              |
| buffer_limit, offload_*           | none: a rollout is used once and dropped; models stay where they are        |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from training.config.data import DataSource
from training.config.generation import GenerationConfig
from training.config.rollouts import RewardConfig, RolloutTrainConfig, require, require_pure_sampling


@dataclass(frozen=True)
class CriticConfig:
    """The value model: what it starts from and how it learns."""

    model: str | None = None
    """Its initial weights; default: the reward model, or the actor when the reward is a function."""
    head: Literal["zero", "reward"] = "zero"
    """The value head starts at zero, or as the reward model's own head."""
    lr: float = 5e-6
    """The critic's learning rate; it has an optimizer of its own."""
    lora_rank: int | None = None
    """null: as the actor's `lora` section; 0: train all weights; else a rank of its own."""
    clip_range: float | None = 0.2
    """A new value may move this far from the old one before its loss stops counting; null: no clipping."""
    coef: float = 1.0
    """Scales the value loss. The critic has an optimizer of its own, so with Adam it matters little beyond clipping."""

    def __post_init__(self) -> None:
        require(self.head in ("zero", "reward"), f"critic.head must be zero or reward, not {self.head!r}")
        require(self.lr >= 0, f"critic.lr must not be negative, is {self.lr}")
        require(
            self.lora_rank is None or self.lora_rank >= 0, f"critic.lora_rank must be 0 or more, is {self.lora_rank}"
        )
        require(
            self.clip_range is None or self.clip_range > 0, f"critic.clip_range must be above 0, is {self.clip_range}"
        )
        require(self.coef > 0, f"critic.coef must be above 0, is {self.coef}")


@dataclass(frozen=True)
class KLConfig:
    """The penalty for leaving the reference, taken off each token's reward."""

    coef: float = 0.05
    """Reward taken off for each nat of KL."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """adaptive: the coefficient follows the KL towards `target`."""
    target: float = 6.0
    """adaptive: the wanted KL in nats per completion (sum over its tokens)."""
    horizon: int = 10_000
    """adaptive: completions over which the coefficient can about double or halve at ±0.2 of error."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """How a token's KL is estimated from one sample: log r, ½ (log r)², or r − 1 − log r (Schulman 2020)."""

    def __post_init__(self) -> None:
        require(self.coef >= 0, f"kl.coef must not be negative, is {self.coef}")
        require(
            self.controller in ("fixed", "adaptive"),
            f"kl.controller must be fixed or adaptive, not {self.controller!r}",
        )
        require(self.estimator in ("k1", "k2", "k3"), f"kl.estimator must be k1, k2 or k3, not {self.estimator!r}")
        require(self.target > 0 and self.horizon > 0, "kl.target and kl.horizon must be above 0")


@dataclass(frozen=True)
class PtxConfig:
    """InstructGPT's side loss on SFT or PT data, added to each actor update; off while `coef` is 0."""

    data: tuple[DataSource, ...] = ()
    """Documents or conversations, as data.sources."""
    coef: float = 0.0
    """Weight of the language-model loss beside the policy loss (coati's 0.9 beside 0.1 is 9.0 here)."""
    batch_size: int = 8
    """Documents per actor update, over all ranks."""

    def __post_init__(self) -> None:
        require(self.coef >= 0, f"ptx.coef must not be negative, is {self.coef}")
        require(self.batch_size > 0, f"ptx.batch_size must be above 0, is {self.batch_size}")
        require(self.coef == 0 or bool(self.data), "ptx.coef is set but ptx.data names no data")


@dataclass(frozen=True)
class PPOTrainConfig(RolloutTrainConfig):
    """The `train` section of a PPO run: how much is rolled out, and how it is learned from."""

    gamma: float = 1.0
    """Discount of a token's reward for the token before it."""
    lam: float = 0.95
    """GAE's λ: 1 takes whole returns, 0 the critic's next value alone (Schulman et al. 2016)."""
    clip_range: float = 0.2
    """A token's ratio of new to old probability counts within 1 ± this (Schulman et al. 2017)."""
    whiten_advantages: bool = True
    """Over the action tokens of the whole rollout, on all ranks."""
    whiten_rewards: bool = False
    """Divide per-token rewards by their standard deviation over the whole rollout (the mean is kept)."""
    critic_warmup_steps: int = 0
    """Steps at the start that train the critic alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gamma <= 1, f"train.gamma must be in 0..1, is {self.gamma}")
        require(0 <= self.lam <= 1, f"train.lam must be in 0..1, is {self.lam}")
        require(self.clip_range > 0, f"train.clip_range must be above 0, is {self.clip_range}")


@dataclass(frozen=True)
class PPOSections:
    """The sections that only PPO has; PPOConfig inherits or embeds them with the common ones."""

    train: PPOTrainConfig = field(default_factory=PPOTrainConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)
    reference: str | None = None
    """The model that KL is measured from; default: the actor as it starts (its adapter off, under LoRA)."""

    def __post_init__(self) -> None:
        self.reward.require_source()
        generation: GenerationConfig | None = getattr(self, "generation", None)  # PPOConfig has it
        if generation is not None:
            require_pure_sampling(generation)
