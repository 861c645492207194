"""Every hyper-parameter's name and default: one dataclass tree per stage, and the loader from YAML and overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.config.data import DataConfig
from training.config.generation import GenerationConfig
from training.config.grpo import GRPOSections
from training.config.ppo import PPOSections
from training.config.serving import ServeConfig
from training.config.strategies import StrategyConfig
from training.errors import ConfigError

STAGES = ("pt", "sft", "rm", "dpo", "ppo", "grpo", "serve")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and in which precision to train."""

    epochs: float = 1.0
    """Passes over the data; a fraction is allowed."""
    max_steps: int | None = None
    """Exactly this many optimizer steps, over as many passes as that takes; null: by `epochs`."""
    lr: float = 2e-5
    """Learning rate at its highest, after the warm-up. With LoRA about ten times as much is usual."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls after the warm-up, to min_lr."""
    warmup: float = 0.03
    """Below 1: a fraction of all steps; else a number of steps."""
    min_lr: float = 0.0
    """Where cosine and linear end."""
    weight_decay: float = 0.0
    """On matrices only; never on biases, norms and embeddings."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the means of gradients and of their squares."""
    eps: float = 1e-8
    """AdamW's smallest divisor."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0: no clipping."""
    max_length: int = 2048
    """Tokens of one document at most; data.over_long says what becomes of longer ones: auto splits them in pt and cuts
    them in the other stages, and the log counts them."""
    packing: bool = True
    """Fill rows of fixed length with whole documents, which attend only within themselves."""
    tokens_per_batch: int | None = None
    """Tokens of one packed micro-batch on one rank; null: batch_size × max_length."""
    batch_size: int = 8
    """Documents (pairs, for rm and dpo) of one micro-batch on one rank, without packing."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    seed: int = 42
    """Of the data's order, of new weights and of dropout."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    activation_checkpointing: Literal["off", "selective", "full"] = "off"
    """Recompute instead of keeping: nothing, all but matrix products and attention, or all but block inputs."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each block and of the loss; auto: on a GPU."""
    head_chunk: int | None = None
    """Tokens whose logits exist at one time in the loss; null: 8192, with full activation checkpointing 4096."""
    neftune: float = 0.0
    """NEFTune's alpha: uniform noise of ±alpha/√(length × width) on embeddings while training (usually 5); 0: off."""

    def __post_init__(self) -> None:
        for name in ("max_length", "batch_size", "accumulate"):
            _require(getattr(self, name) >= 1, f"train.{name} must be at least 1, is {getattr(self, name)}")
        _require(self.loss_chunk >= 1, f"train.head_chunk must be at least 1, is {self.head_chunk}")
        _require(self.epochs > 0, f"train.epochs must be above 0, is {self.epochs}")
        _require(
            self.max_steps is None or self.max_steps >= 1, f"train.max_steps must be at least 1, is {self.max_steps}"
        )
        for name in ("lr", "warmup", "min_lr", "weight_decay", "max_grad_norm", "neftune"):
            _require(getattr(self, name) >= 0, f"train.{name} must not be negative, is {getattr(self, name)}")
        _require(self.eps > 0, f"train.eps must be above 0, is {self.eps}")
        _require(all(0 <= b < 1 for b in self.betas), f"train.betas must lie in 0..1, are {self.betas}")
        _require(
            self.tokens_per_batch is None or self.tokens_per_batch >= self.max_length,
            f"train.tokens_per_batch ({self.tokens_per_batch}) must be at least train.max_length ({self.max_length}): "
            "a document is never split over micro-batches",
        )

    @property
    def packed_length(self) -> int:
        """Tokens of one packed micro-batch."""
        return self.tokens_per_batch or self.batch_size * self.max_length

    @property
    def loss_chunk(self) -> int:
        """Tokens of one chunk of the loss."""
        if self.head_chunk is not None:
            return self.head_chunk
        return 4096 if self.activation_checkpointing == "full" else 8192


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on linear layers; everything else stays frozen."""

    rank: int = 16
    """Inner size of the two matrices that are added to each layer; `lora: 16` is short for it."""
    alpha: float | None = None
    """Updates are scaled by alpha / rank; null: 2 × rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are left out while training."""
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    """Names of the layers' last parts (q_proj, c_attn, …); auto: every linear layer inside the blocks."""
    merge: bool = True
    """Also export the merged model (with its logits checked), beside the adapter."""

    def __post_init__(self) -> None:
        _require(self.rank >= 1, f"lora.rank must be at least 1, is {self.rank}")
        _require(0 <= self.dropout < 1, f"lora.dropout must lie in 0..1, is {self.dropout}")

    @classmethod
    def shorthand(cls, value: Any) -> Mapping[str, Any]:
        """`lora: 16` is a rank."""
        if isinstance(value, bool) or not str(value).isdigit():
            raise ValueError(f"must be a mapping or a rank, not {value!r}")
        return {"rank": int(value)}

    @property
    def scale(self) -> float:
        return (self.alpha if self.alpha is not None else 2.0 * self.rank) / self.rank


@dataclass(frozen=True)
class EvalConfig:
    """When held-out data is evaluated, and how much of it."""

    every: int = 0
    """Steps between evaluations; 0: only at the end. Nothing is evaluated when there is no held-out data."""
    max_batches: int | None = None
    """Held-out batches of each evaluation at most; null: all."""
    at_start: bool = False
    """Also before the first step, for the figure to compare with."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"eval.every must not be negative, is {self.every}")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state is saved, and what is kept."""

    every: int = 0
    """Steps between checkpoints; 0: only when stopped by a signal or at the end."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_best: bool = True
    """Also keep the one with the lowest held-out loss."""
    at_end: bool = False
    """Also save the trainer's state after the last step (to train on with more steps)."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"checkpoint.every must not be negative, is {self.every}")
        _require(self.keep >= 1, f"checkpoint.keep must be at least 1, is {self.keep}")


@dataclass(frozen=True)
class LogConfig:
    """Where figures go besides the event lines."""

    every: int = 10
    """Steps between metric lines; each holds the mean since the last."""
    tensorboard: bool = True
    """Write the figures to `tensorboard/` in the run folder."""
    wandb: str | None = None
    """A Weights & Biases project; used when WANDB_API_KEY is set."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"log.every must be at least 1, is {self.every}")


@dataclass(frozen=True)
class SamplesConfig:
    """Prompts that are answered greedily before and after training, to see what changed."""

    prompts: tuple[str, ...] = ()
    """Questions, each the first turn of a conversation."""
    max_new_tokens: int = 48
    """Tokens of an answer at most."""
    every: int = 0
    """Also at each N-th evaluation; 0: only before and after."""

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, f"samples.max_new_tokens must be at least 1, is {self.max_new_tokens}")
        _require(self.every >= 0, f"samples.every must not be negative, is {self.every}")
        _require(all(self.prompts), "samples.prompts holds an empty prompt")

    @classmethod
    def shorthand(cls, value: Any) -> Mapping[str, Any]:
        """A list is the prompts."""
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be a mapping or a list of prompts, not {value!r}")
        return {"prompts": list(value)}


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every training stage has."""

    model: str
    """A Hugging Face model folder, or `hf:org/name`."""
    data: DataConfig
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    adapter: str | None = None
    """An adapter in PEFT's format, of anybody's making, that is merged into the model before anything else."""
    lora: LoraConfig | None = None
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run_dir: str | None = None
    """Where everything is written; null: $NAVARCH_RUN_DIR, or ./run."""
    resume: str | None = None
    """auto: the newest checkpoint of the run folder, if there is one; else a checkpoint's path; null: start anew
    ($NAVARCH_RESUME is used when this is null)."""

    def __post_init__(self) -> None:
        _require(
            not (self.data.add_special_tokens and self.partly_frozen),
            "data.add_special_tokens makes new embeddings, which must be trained: remove lora (reward.trunk: frozen) "
            "or choose a data.template that needs no new tokens",
        )

    @property
    def partly_frozen(self) -> bool:
        """Whether some weights take no gradient, which not every strategy can."""
        return self.lora is not None


@dataclass(frozen=True, kw_only=True)
class PTConfig(StageConfig):
    """Continued pre-training on text."""

    train: TrainConfig = field(default_factory=TrainConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)


@dataclass(frozen=True, kw_only=True)
class SFTConfig(StageConfig):
    """Supervised fine-tuning: loss on the assistant's turns."""

    train: TrainConfig = field(default_factory=TrainConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)


@dataclass(frozen=True)
class RewardLossConfig:
    """The reward model's objective on pairs."""

    loss: Literal["log_sig", "log_exp"] = "log_sig"
    """log_sig: −log σ(r_c − r_r − margin), Ouyang et al. 2022; log_exp: the same as log(1 + exp(r_r − r_c + margin)),
    the form that coati uses."""
    margin: float = 0.0
    """By how much the chosen answer's score should win (Llama 2, eq. 2); a row's own `margin` field comes first."""
    centering: float = 0.0
    """Weight of (r_c + r_r)², which keeps scores around zero (Eisenstein et al. 2023; 0.01 is usual)."""
    head_init: Literal["normal", "zero"] = "normal"
    """normal: N(0, 1/(d+1)), Stiennon et al. 2020."""
    trunk: Literal["train", "frozen"] = "train"
    """frozen: only the head learns. With a few hundred pairs that generalises better than training all weights; it
    wants a larger train.lr (1e-3), about ten epochs and head_init: zero."""


@dataclass(frozen=True, kw_only=True)
class RMConfig(StageConfig):
    """A reward model from pairs of answers."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=1e-5))
    reward: RewardLossConfig = field(default_factory=RewardLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            not (self.reward.trunk == "frozen" and self.lora is not None),
            "reward.trunk: frozen trains the head alone; a lora section trains the trunk too: remove one",
        )

    @property
    def partly_frozen(self) -> bool:
        return super().partly_frozen or self.reward.trunk == "frozen"


@dataclass(frozen=True)
class DPOLossConfig:
    """What is learned from pairs."""

    loss: Literal["dpo", "orpo"] = "dpo"
    """dpo: direct preference optimization, Rafailov et al. 2023, eq. 7; orpo: likelihood of the chosen answer and odds
    ratio of the two, without a reference, Hong et al. 2024, eq. 6 (it wants a larger train.lr, about 8e-6)."""
    beta: float = 0.1
    """dpo: how strongly the model is held to the reference: the smaller, the further it may go; orpo: weight of the
    odds ratio beside the likelihood (the paper's λ)."""
    label_smoothing: float = 0.0
    """Probability that a pair's label is flipped (conservative DPO)."""
    reference: Literal["auto", "precompute", "adapter_off"] = "auto"
    """auto: the model without its adapter under LoRA, else log-probs computed once before training."""

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"dpo.beta must be above 0, is {self.beta}")
        _require(
            self.loss == "dpo" or (not self.label_smoothing and self.reference == "auto"),
            "dpo.loss: orpo has no reference and no label_smoothing: leave dpo.reference and dpo.label_smoothing out",
        )
        _require(0 <= self.label_smoothing < 0.5, f"dpo.label_smoothing must lie in 0..0.5, is {self.label_smoothing}")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(StageConfig):
    """Preference tuning without a reward model."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=5e-7, lr_schedule="linear", warmup=0.1))
    dpo: DPOLossConfig = field(default_factory=DPOLossConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            not (self.dpo.reference == "adapter_off" and self.lora is None),
            "dpo.reference: adapter_off needs a lora section; use auto or precompute",
        )


@dataclass(frozen=True, kw_only=True)
class PPOConfig(PPOSections, StageConfig):
    """Reinforcement learning from a reward model or function."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        PPOSections.__post_init__(self)
        _require(
            not self.data.add_special_tokens,
            "data.add_special_tokens is for sft: ppo starts from a model that knows its template's tokens",
        )


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GRPOSections, StageConfig):
    """Reinforcement learning without a critic: completions of one prompt are compared with each other."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        GRPOSections.__post_init__(self)
        _require(
            not self.data.add_special_tokens,
            "data.add_special_tokens is for sft: grpo starts from a model that knows its template's tokens",
        )


_TREES: dict[str, type[Any]] = {
    "pt": PTConfig,
    "sft": SFTConfig,
    "rm": RMConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "serve": ServeConfig,
}


def config_class(stage: str) -> type[Any]:
    """The dataclass of a stage's tree; its fields are the top-level keys that the stage takes."""
    if stage not in _TREES:
        raise ConfigError(f"There is no stage {stage!r}; stages are {', '.join(STAGES)}.")
    return _TREES[stage]
