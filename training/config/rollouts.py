"""What PPO and GRPO are both told: where scores come from, how much is rolled out, how it is learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.config.generation import GenerationConfig


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_pure_sampling(generation: GenerationConfig) -> None:
    """Raise ValueError unless completions are drawn from the very distribution that is trained."""
    require(
        not generation.filtered and not generation.penalised and generation.temperature > 0,
        "generation: PPO and GRPO must draw from the distribution that they train. Set a temperature above 0 and leave "
        "out top_k, top_p and repetition_penalty: recorded log-probs would be of another distribution",
    )


def _require_function(key: str, function: str) -> None:
    require(":" in function, f"{key} must be module:function or file.py:function, not {function!r}")


@dataclass(frozen=True)
class RewardFunction:
    """One of several reward functions."""

    function: str
    """`package.module:function` or `/path/to/file.py:function`."""
    weight: float = 1.0
    """Its scores are multiplied by it before they are added."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that the function also gets."""

    def __post_init__(self) -> None:
        _require_function("reward.functions[].function", self.function)

    @classmethod
    def shorthand(cls, value: Any) -> Mapping[str, Any]:
        """A function's name alone."""
        if not isinstance(value, str):
            raise ValueError(f"must be a function's name or a mapping, not {value!r}")
        return {"function": value}


@dataclass(frozen=True)
class RewardConfig:
    """Where the score of a completion comes from: `model` or `function`, or a weighted sum with `functions`."""

    model: str | None = None
    """A reward model with its head, as the rm stage writes it."""
    function: str | None = None
    """`package.module:function` or `/path/to/file.py:function`, called as function(prompts, completions, rows)."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that the function also gets."""
    weight: float = 1.0
    """Of the score of `model` or `function`, beside `functions`."""
    functions: tuple[RewardFunction, ...] = ()
    """More functions, each with function, weight and arguments; the score is the weighted sum of all sources."""
    retokenize: bool = False
    """Allow a reward model with another tokenizer or template: completions are decoded and tokenised again for it."""
    clip: float | None = 10.0
    """Scores are limited to ± this, after normalisation; null: not at all."""
    normalize: Literal["none", "running", "rollout"] = "none"
    """running: by the mean and variance of every score so far (kept in checkpoints); rollout: of this rollout alone."""
    missing_eos_penalty: float | None = None
    """Taken off the score of a completion that reached max_new_tokens without a stop token."""

    def __post_init__(self) -> None:
        require(self.clip is None or self.clip > 0, f"reward.clip must be above 0 or null, not {self.clip}")
        require(
            self.normalize in ("none", "running", "rollout"),
            f"reward.normalize must be none, running or rollout, not {self.normalize!r}",
        )
        if self.function is not None:
            _require_function("reward.function", self.function)
        require(
            self.model is None or self.function is None,
            "reward takes one of model and function, not both: remove one, or move the function to reward.functions",
        )

    def require_source(self) -> None:
        """Raise ValueError unless a source of scores is named."""
        require(
            self.model is not None or self.function is not None or bool(self.functions),
            "reward needs a model (a reward model's folder or artifact) or a function (module:function)",
        )

    @property
    def all_functions(self) -> tuple[RewardFunction, ...]:
        """`function` and `functions` alike."""
        own = (RewardFunction(self.function, self.weight, self.arguments),) if self.function is not None else ()
        return own + self.functions


@dataclass(frozen=True)
class RolloutTrainConfig:
    """What the `train` sections of PPO and GRPO share."""

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
    """Where linear and cosine end (a critic's ends at the same share of its own rate)."""
    weight_decay: float = 0.0
    """On matrices only; never on biases, norms and embeddings."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the means of gradients and of their squares."""
    eps: float = 1e-5
    """AdamW's smallest divisor."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    dual_clip: float | None = None
    """Lower bound c·A of the objective where A < 0 (c above 1, usually 3); null: off."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy, which is to stay high."""
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
            require(value is None or value >= 1, f"train.{name} must be at least 1, is {value}")
        require(self.epochs > 0, f"train.epochs must be above 0, is {self.epochs}")
        require(
            self.max_steps is None or self.max_steps >= 1, f"train.max_steps must be at least 1, is {self.max_steps}"
        )
        require(
            self.rollout_batch_size % self.samples_per_prompt == 0,
            f"train.rollout_batch_size ({self.rollout_batch_size}) must be a multiple of "
            f"train.samples_per_prompt ({self.samples_per_prompt})",
        )
        require(
            self.rollout_batch_size % self.minibatch_size == 0,
            f"train.rollout_batch_size ({self.rollout_batch_size}) must be a multiple of "
            f"train.minibatch_size ({self.minibatch_size})",
        )
        require(self.dual_clip is None or self.dual_clip > 1, f"train.dual_clip must be above 1, is {self.dual_clip}")
        require(self.lr >= 0, f"train.lr must not be negative, is {self.lr}")
        require(self.max_grad_norm > 0, f"train.max_grad_norm must be above 0, is {self.max_grad_norm}")

    @property
    def accumulate(self) -> int:
        """An update may take several backward passes: strategies that must know beforehand are told so."""
        return max(2, -(-self.minibatch_size // 8))
