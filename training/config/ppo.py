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
from typing import Any, Literal

from training.config.data import DataSource
from training.config.generation import GenerationConfig


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class RewardConfig:
    """Where the score of a completion comes from: exactly one of `model` and `function`."""

    model: str | None = None
    """A reward model with its head, as the rm stage writes it."""
    function: str | None = None
    """`package.module:function` or `/path/to/file.py:function`, called as function(prompts, completions, rows)."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that the function also gets."""
    retokenize: bool = False
    """Allow a reward model with another tokenizer or template: completions are decoded and tokenised again for it."""
    clip: float | None = 10.0
    """Scores are limited to ± this, after normalisation; null: not at all."""
    normalize: Literal["none", "running", "rollout"] = "none"
    """running: by the mean and variance of every score so far (kept in checkpoints); rollout: of this rollout alone."""
    missing_eos_penalty: float | None = None
    """Taken off the score of a completion that reached max_new_tokens without a stop token."""

    def __post_init__(self) -> None:
        _require(self.clip is None or self.clip > 0, f"reward.clip must be above 0 or null, not {self.clip}")
        _require(
            self.normalize in ("none", "running", "rollout"),
            f"reward.normalize must be none, running or rollout, not {self.normalize!r}",
        )
        _require(
            self.function is None or ":" in self.function,
            f"reward.function must be module:function or file.py:function, not {self.function!r}",
        )
        _require(
            self.model is None or self.function is None,
            "reward takes one of model and function, not both: remove one",
        )

    def require_source(self) -> None:
        """Raise ValueError unless a source of scores is named."""
        _require(
            self.model is not None or self.function is not None,
            "reward needs a model (a reward model's folder or artifact) or a function (module:function)",
        )


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
        _require(self.head in ("zero", "reward"), f"critic.head must be zero or reward, not {self.head!r}")
        _require(self.lr >= 0, f"critic.lr must not be negative, is {self.lr}")
        _require(
            self.lora_rank is None or self.lora_rank >= 0, f"critic.lora_rank must be 0 or more, is {self.lora_rank}"
        )
        _require(
            self.clip_range is None or self.clip_range > 0, f"critic.clip_range must be above 0, is {self.clip_range}"
        )
        _require(self.coef > 0, f"critic.coef must be above 0, is {self.coef}")


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
        _require(self.coef >= 0, f"kl.coef must not be negative, is {self.coef}")
        _require(
            self.controller in ("fixed", "adaptive"),
            f"kl.controller must be fixed or adaptive, not {self.controller!r}",
        )
        _require(self.estimator in ("k1", "k2", "k3"), f"kl.estimator must be k1, k2 or k3, not {self.estimator!r}")
        _require(self.target > 0 and self.horizon > 0, "kl.target and kl.horizon must be above 0")


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
        _require(self.coef >= 0, f"ptx.coef must not be negative, is {self.coef}")
        _require(self.batch_size > 0, f"ptx.batch_size must be above 0, is {self.batch_size}")
        _require(self.coef == 0 or bool(self.data), "ptx.coef is set but ptx.data names no data")


@dataclass(frozen=True)
class PPOTrainConfig:
    """The `train` section of a PPO run: how much is rolled out, and how it is learned from."""

    epochs: float = 1.0
    """Passes over the prompts."""
    max_steps: int | None = None
    """Stop after this many steps (one step = one rollout with its updates) whatever `epochs` says."""
    rollout_batch_size: int = 128
    """Completions per step, over all ranks."""
    samples_per_prompt: int = 1
    """Completions of each prompt."""
    minibatch_size: int = 32
    """Completions per optimizer update, over all ranks."""
    ppo_epochs: int = 1
    """Passes over each rollout."""
    micro_batch_tokens: int | None = None
    """Most tokens in one forward-backward on one rank; changes speed and memory, not the result. null: as many as fit
    into the GPU's free memory, up to 32768 (16384 on a CPU)."""
    score_tokens: int = 32_768
    """Most tokens in one scoring forward on one rank."""
    max_prompt_length: int = 1024
    """Tokens of a prompt, template included."""
    long_prompts: Literal["refuse", "drop"] = "refuse"
    """Prompts above max_prompt_length: stop at start and name the row, or leave them out and say how many."""

    lr: float = 1e-6
    """The actor's learning rate at its highest, after the warm-up."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How it falls after the warm-up, to min_lr."""
    warmup: float = 0.0
    """Below 1: a fraction of all optimizer updates; else a number of updates."""
    min_lr: float = 0.0
    """Where linear and cosine end (the critic's ends at the same share of its own rate)."""
    weight_decay: float = 0.0
    """On matrices only; never on biases, norms and embeddings."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the means of gradients and of their squares."""
    eps: float = 1e-5
    """AdamW's smallest divisor."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    gamma: float = 1.0
    """Discount of a token's reward for the token before it."""
    lam: float = 0.95
    """GAE's λ: 1 takes whole returns, 0 the critic's next value alone (Schulman et al. 2016)."""
    clip_range: float = 0.2
    """A token's ratio of new to old probability counts within 1 ± this (Schulman et al. 2017)."""
    dual_clip: float | None = None
    """Lower bound c·A of the objective where A < 0 (c above 1, usually 3); null: off."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy, which is to stay high."""
    whiten_advantages: bool = True
    """Over the action tokens of the whole rollout, on all ranks."""
    whiten_rewards: bool = False
    """Divide per-token rewards by their standard deviation over the whole rollout (the mean is kept)."""
    critic_warmup_steps: int = 0
    """Steps at the start that train the critic alone."""
    rollout_logprobs: Literal["auto", "rescore"] = "auto"
    """auto: take the engine's own log-probs when they equal a trainer forward at the first step; rescore: never."""
    logprob_tolerance: float | None = None
    """Largest mean |difference| per token allowed by that check; default 1e-4 in fp32 and 2e-2 in bf16."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    activation_checkpointing: Literal["off", "selective", "full"] = "off"
    """Recompute instead of keeping: nothing, all but matrix products and attention, or all but block inputs."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each block and of the head; packed batches are then filled up to few different lengths."""
    head_chunk: int = 8192
    """Tokens whose logits exist at one time."""
    seed: int = 42
    """Of the prompts' order and of what is sampled."""
    sample_every: int = 10
    """Steps between tables of completions (in the log, and in `samples.jsonl` of the run folder); 0: never."""
    sample_rows: int = 4
    """Completions in such a table."""

    def __post_init__(self) -> None:
        for name in ("rollout_batch_size", "samples_per_prompt", "minibatch_size", "ppo_epochs", "micro_batch_tokens",
                     "score_tokens", "max_prompt_length", "head_chunk", "sample_rows"):  # fmt: skip
            value = getattr(self, name)
            _require(value is None or value >= 1, f"train.{name} must be at least 1, is {value}")
        _require(self.epochs > 0, f"train.epochs must be above 0, is {self.epochs}")
        _require(
            self.max_steps is None or self.max_steps >= 1, f"train.max_steps must be at least 1, is {self.max_steps}"
        )
        _require(
            self.rollout_batch_size % self.samples_per_prompt == 0,
            f"train.rollout_batch_size ({self.rollout_batch_size}) must be a multiple of "
            f"train.samples_per_prompt ({self.samples_per_prompt})",
        )
        _require(
            self.rollout_batch_size % self.minibatch_size == 0,
            f"train.rollout_batch_size ({self.rollout_batch_size}) must be a multiple of "
            f"train.minibatch_size ({self.minibatch_size})",
        )
        _require(0 <= self.gamma <= 1, f"train.gamma must be in 0..1, is {self.gamma}")
        _require(0 <= self.lam <= 1, f"train.lam must be in 0..1, is {self.lam}")
        _require(self.clip_range > 0, f"train.clip_range must be above 0, is {self.clip_range}")
        _require(self.dual_clip is None or self.dual_clip > 1, f"train.dual_clip must be above 1, is {self.dual_clip}")
        _require(self.lr >= 0, f"train.lr must not be negative, is {self.lr}")
        _require(self.max_grad_norm > 0, f"train.max_grad_norm must be above 0, is {self.max_grad_norm}")

    @property
    def accumulate(self) -> int:
        """An update may take several backward passes: strategies that must know beforehand are told so."""
        return max(2, -(-self.minibatch_size // 8))


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
            _require(
                not generation.filtered and not generation.penalised and generation.temperature > 0,
                "generation: PPO must draw from the distribution that it trains. Set a temperature above 0 and leave "
                "out top_k, top_p and repetition_penalty: recorded log-probs would be of another distribution",
            )
