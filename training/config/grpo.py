"""What GRPO and RLOO can be told: switches by the names of the papers that brought them (imports no torch).

GRPO      DeepSeekMath, arXiv 2402.03300         grpo: {loss_type: grpo, epsilon_high: 0.2}, kl: {coef: 0.04}
RLOO      Ahmadian et al., arXiv 2402.14740      grpo: {advantage: leave_one_out}, kl: {coef: 0.05, place: reward}
DAPO      arXiv 2503.14476, the defaults, with   grpo: {dynamic_sampling: 8, overlong_buffer: …}
Dr. GRPO  arXiv 2503.20783                       grpo: {loss_type: dr_grpo, scale_rewards: none}
GSPO      arXiv 2507.18071                       grpo: {importance_sampling_level: sequence, loss_type: grpo,
                                                        epsilon_low: 3e-4, epsilon_high: 4e-4}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from training.config.generation import GenerationConfig
from training.config.rollouts import RewardConfig, RolloutTrainConfig, require, require_pure_sampling


@dataclass(frozen=True)
class GRPOTrainConfig(RolloutTrainConfig):
    """The `train` section of a GRPO run: how much is rolled out, and how it is learned from."""

    samples_per_prompt: int = 8
    """Completions of each prompt: the group G in which they are compared."""
    minibatch_size: int = 128
    """Completions per optimizer update, over all ranks; as many as rollout_batch_size: one update a step, on policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.samples_per_prompt >= 2,
            f"train.samples_per_prompt is {self.samples_per_prompt}: completions are compared within their group, "
            "give at least 2",
        )


@dataclass(frozen=True)
class GRPOLossConfig:
    """How completions of one prompt are compared, and what of it is learned."""

    advantage: Literal["group_mean", "leave_one_out"] = "group_mean"
    """A score minus the mean of its group (GRPO), or minus the mean of the others in it (RLOO)."""
    scale_rewards: Literal["auto", "group", "batch", "none"] = "auto"
    """Advantages are divided by the scores' deviation in the group (GRPO) or in the rollout, or not at all (Dr. GRPO);
    auto: group with group_mean, none with leave_one_out."""
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """Mean over all tokens (DAPO), mean over each completion and then over completions (GRPO), or sums divided by
    max_new_tokens, so that no length is favoured (Dr. GRPO)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Ratios of new to old probability of each token, or their geometric mean over the completion (GSPO)."""
    epsilon_low: float = 0.2
    """A ratio counts down to 1 − this (GSPO: 3e-4)."""
    epsilon_high: float = 0.28
    """And up to 1 + this: DAPO's clip-higher leaves unlikely tokens room to grow (GRPO: 0.2, GSPO: 4e-4)."""
    dynamic_sampling: int = 0
    """Groups whose scores are all alike teach nothing: draw other prompts instead, in at most this many further
    rollouts of a step (DAPO); 0: keep them."""
    overlong_filtering: bool = False
    """Learn nothing from completions that reached max_new_tokens without a stop token (DAPO)."""
    overlong_buffer: int = 0
    """Score falls by up to 1 over the last this many tokens before max_new_tokens (DAPO's soft punishment); 0: off."""

    def __post_init__(self) -> None:
        require(0 < self.epsilon_low < 1, f"grpo.epsilon_low must lie between 0 and 1, is {self.epsilon_low}")
        require(self.epsilon_high > 0, f"grpo.epsilon_high must be above 0, is {self.epsilon_high}")
        require(self.dynamic_sampling >= 0, f"grpo.dynamic_sampling must not be negative, is {self.dynamic_sampling}")
        require(self.overlong_buffer >= 0, f"grpo.overlong_buffer must not be negative, is {self.overlong_buffer}")

    @property
    def scale(self) -> str:
        """`scale_rewards` with auto decided."""
        if self.scale_rewards != "auto":
            return self.scale_rewards
        return "group" if self.advantage == "group_mean" else "none"


@dataclass(frozen=True)
class GRPOKLConfig:
    """The penalty for leaving the reference; with `coef: 0` no reference is loaded."""

    coef: float = 0.0
    """Weight of the KL (DeepSeekMath: 0.04; rules that can be checked need none, a reward model does)."""
    place: Literal["loss", "reward"] = "loss"
    """Each token's KL is added to the loss (GRPO), or a completion's is taken off its score (RLOO)."""
    estimator: Literal["auto", "k1", "k2", "k3"] = "auto"
    """How a token's KL is estimated from one sample (Schulman 2020); auto: k3 in the loss, k1 in the reward."""

    def __post_init__(self) -> None:
        require(self.coef >= 0, f"kl.coef must not be negative, is {self.coef}")

    @property
    def estimate(self) -> str:
        """`estimator` with auto decided."""
        if self.estimator != "auto":
            return self.estimator
        return "k3" if self.place == "loss" else "k1"


@dataclass(frozen=True)
class GRPOSections:
    """The sections that only GRPO has; GRPOConfig joins them with the common ones."""

    train: GRPOTrainConfig = field(default_factory=GRPOTrainConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    grpo: GRPOLossConfig = field(default_factory=GRPOLossConfig)
    kl: GRPOKLConfig = field(default_factory=GRPOKLConfig)
    reference: str | None = None
    """The model that KL is measured from; default: the actor as it starts (its adapter off, under LoRA)."""

    def __post_init__(self) -> None:
        self.reward.require_source()
        require(
            self.kl.place == "reward" or self.kl.estimate != "k1" or not self.kl.coef,
            "kl.estimator: k1 in the loss pulls nowhere (its gradient is zero on average): choose k3, or set "
            "kl.place: reward",
        )
        generation: GenerationConfig | None = getattr(self, "generation", None)  # GRPOConfig has it
        if generation is not None:
            require_pure_sampling(generation)
            require(
                self.grpo.overlong_buffer < generation.max_new_tokens,
                f"grpo.overlong_buffer is {self.grpo.overlong_buffer}: it must be below generation.max_new_tokens "
                f"({generation.max_new_tokens})",
            )
