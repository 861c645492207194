"""Names and options of the strategies, and the table of what each can do. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from training.errors import ConfigError

Precision = Literal["bf16", "fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "fp32")


class StrategyError(ConfigError, ValueError):
    """A strategy, or a combination of options, that can't work: says which, why, and what to do instead."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay, which is for matrices only: never for biases, norms and embeddings."""

    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns clipping off."""


@dataclass(frozen=True)
class StrategyConfig:
    """How one model is spread over processes. YAML: `strategy: ddp` or `strategy: {name: colossalai_3d, tp: 2}`."""

    name: str = "ddp"
    """naive (one process), ddp, or colossalai_ zero1, zero2, zero2_cpu, gemini, gemini_auto, 3d."""
    tp: int = 1
    """colossalai_3d: tensor-parallel ranks (each holds a slice of every matrix)."""
    pp: int = 1
    """colossalai_3d: pipeline stages (each holds some of the layers)."""
    sp: str = "none"
    """colossalai_3d: sequence parallelism over the tensor-parallel ranks: none or split_gather."""
    zero: int = 1
    """colossalai_3d: ZeRO stage over the data-parallel ranks: 0, 1, or 2."""
    microbatches: int = 0
    """colossalai_3d with pp > 1: pieces that a batch is cut into; 0 = one per row."""
    bucket_mb: float = 64
    """MiB of gradients that ddp and ZeRO reduce in one message, and of weights in the smallest Gemini chunk."""
    offload_optimizer: float = 0.0
    """colossalai_gemini: share of optimizer states kept in host memory (0 to 1)."""
    offload_parameters: float = 0.0
    """colossalai_gemini: share of parameters kept in host memory (0 to 1); needs offload_optimizer: 1.0."""
    timeout_s: int = 1800
    """A collective that waits longer than this ends the run with an error."""

    @classmethod
    def shorthand(cls, value: Any) -> Mapping[str, Any]:
        """`strategy: ddp` means `strategy: {name: ddp}`."""
        return {"name": str(value)}


@dataclass(frozen=True)
class Capabilities:
    """What a strategy can do. `True` in `cpu` means: also without a GPU, unmodified."""

    precisions: tuple[Precision, ...]
    lora: bool
    no_sync: bool
    """Micro-batches are accumulated without any communication until the last one."""
    cpu: bool
    many_ranks: bool
    """Runs on more than one process (every strategy runs on one)."""
    packed: bool
    """Takes packed rows; otherwise stages must give it `batch.padded()`."""
    compile_blocks: bool
    """The model's blocks may be compiled (`torch.compile`) before `prepare`."""
    resume: Literal["bitwise", "exact_state"]
    """All restore weights, masters, moments and generators bit for bit. bitwise: so N+M steps equal N, save, load, M
    wherever the device's kernels add in a fixed order (on a GPU, attention's backward doesn't). exact_state: sums over
    ranks may be taken in another order, too."""
    resize: bool
    """A checkpoint may be loaded by another number of ranks (colossalai_3d: of data-parallel ones only)."""
    rollouts: bool
    """The trained model can generate (PPO, GRPO)."""
    note: str = ""


_ALL = PRECISIONS
CAPABILITIES: dict[str, Capabilities] = {
    "naive": Capabilities(
        precisions=_ALL, lora=True, no_sync=True, cpu=True, many_ranks=False, packed=True, compile_blocks=True,
        resume="bitwise", resize=True, rollouts=True, note="one process, plain PyTorch",
    ),
    "ddp": Capabilities(
        precisions=_ALL, lora=True, no_sync=True, cpu=True, many_ranks=True, packed=True, compile_blocks=True,
        resume="bitwise", resize=True, rollouts=True, note="every rank holds everything; gradients are averaged",
    ),
    "colossalai_zero1": Capabilities(
        precisions=_ALL, lora=True, no_sync=True, cpu=False, many_ranks=True, packed=True, compile_blocks=True,
        resume="exact_state", resize=True, rollouts=True, note="optimizer states are sharded",
    ),
    "colossalai_zero2": Capabilities(
        precisions=_ALL, lora=True, no_sync=False, cpu=False, many_ranks=True, packed=True, compile_blocks=True,
        resume="exact_state", resize=True, rollouts=True, note="optimizer states and gradients are sharded",
    ),
    "colossalai_zero2_cpu": Capabilities(
        precisions=_ALL, lora=True, no_sync=False, cpu=False, many_ranks=True, packed=True, compile_blocks=True,
        resume="exact_state", resize=True, rollouts=True, note="as zero2, with optimizer states in host memory",
    ),
    "colossalai_gemini": Capabilities(
        precisions=("bf16", "fp16"), lora=False, no_sync=False, cpu=False, many_ranks=True, packed=True,
        compile_blocks=True, resume="exact_state", resize=True, rollouts=True,
        note="weights, gradients and optimizer states are sharded in chunks, offloaded by fixed shares",
    ),
    "colossalai_gemini_auto": Capabilities(
        precisions=("bf16", "fp16"), lora=False, no_sync=False, cpu=False, many_ranks=True, packed=True,
        compile_blocks=True, resume="exact_state", resize=True, rollouts=True,
        note="as gemini, placed on GPU or host by the memory that the first step used",
    ),
    "colossalai_3d": Capabilities(
        precisions=_ALL, lora=False, no_sync=False, cpu=False, many_ranks=True, packed=False, compile_blocks=False,
        resume="exact_state", resize=False, rollouts=False, note="tensor, pipeline and sequence parallelism with ZeRO",
    ),
}  # fmt: skip
STRATEGIES: tuple[str, ...] = tuple(CAPABILITIES)


@dataclass(frozen=True)
class Wanted:
    """The rest of a run, as far as a strategy cares."""

    precision: str = "bf16"
    lora: bool = False
    stage: str = "sft"
    world_size: int = 1
    device: Literal["cuda", "cpu", "unknown"] = "unknown"
    accumulation: int = 1


def check_strategy(config: StrategyConfig, wanted: Wanted | None = None) -> Capabilities:
    """The capabilities of `config`; raises StrategyError naming what can't work, why, and what to do.

    Needs no GPU and no torch, so the control plane calls it at submit (device "unknown") and a stage calls it again
    with what it found.
    """
    wanted = wanted or Wanted()
    name = config.name
    if name not in CAPABILITIES:
        raise StrategyError(f"there is no strategy '{name}'; choose one of {', '.join(STRATEGIES)}")
    can = CAPABILITIES[name]
    for problem in (_options(config, wanted), _combination(config, can, wanted), _machine(config, can, wanted)):
        if problem:
            raise StrategyError(f"strategy '{name}': {problem}")
    return can


def _options(config: StrategyConfig, wanted: Wanted) -> str:
    if config.name != "colossalai_3d":
        for option, default in (("tp", 1), ("pp", 1), ("sp", "none"), ("microbatches", 0)):
            if getattr(config, option) != default:
                return f"'{option}' belongs to colossalai_3d; use 'name: colossalai_3d' or leave it out"
    if config.name != "colossalai_gemini" and (config.offload_optimizer or config.offload_parameters):
        return "offload_optimizer and offload_parameters belong to colossalai_gemini; colossalai_zero2_cpu offloads all"
    for option in ("offload_optimizer", "offload_parameters"):
        if not 0.0 <= getattr(config, option) <= 1.0:
            return f"{option} is {getattr(config, option)}; it is a share, from 0 to 1"
    if config.offload_parameters and config.offload_optimizer < 1.0:
        return "offload_parameters needs offload_optimizer: 1.0 (Gemini moves parameters only after all states)"
    if config.bucket_mb <= 0:
        return f"bucket_mb is {config.bucket_mb}; it must be above 0"
    if config.timeout_s < 1:
        return f"timeout_s is {config.timeout_s}; it must be at least 1"
    return _options_3d(config) if config.name == "colossalai_3d" else ""


def _options_3d(config: StrategyConfig) -> str:
    if config.tp < 1 or config.pp < 1:
        return f"tp and pp are counts of ranks and start at 1 (tp={config.tp}, pp={config.pp})"
    if config.zero not in (0, 1, 2):
        return f"zero is {config.zero}; choose 0, 1 or 2 (sharded weights are colossalai_gemini's)"
    if config.pp > 1 and config.zero == 2:
        return "pipeline parallelism works with zero 0 or 1 only, ZeRO-2 reduces after every micro-batch; set zero: 1"
    if config.sp not in ("none", "split_gather"):
        return f"sp is '{config.sp}'; choose none or split_gather"
    if config.sp != "none" and config.tp == 1:
        return "sequence parallelism runs over the tensor-parallel ranks; set tp to 2 or more, or sp: none"
    return ""


def _combination(config: StrategyConfig, can: Capabilities, wanted: Wanted) -> str:
    if wanted.precision not in PRECISIONS:
        return f"there is no precision '{wanted.precision}'; choose one of {', '.join(PRECISIONS)}"
    if wanted.precision not in can.precisions:
        return (
            f"precision {wanted.precision} is not possible; choose {' or '.join(can.precisions)}, or another strategy"
        )
    if wanted.lora and not can.lora:
        if "gemini" in config.name:
            return (
                "Gemini can't train LoRA adapters or a head alone (it shards all weights); use colossalai_zero2 or ddp"
            )
        return "LoRA is not possible with tensor or pipeline parallelism; use colossalai_zero2 or ddp with lora"
    if wanted.stage in ("ppo", "grpo") and not can.rollouts:
        name = wanted.stage.upper()
        return f"{name} generates with the model it trains, which needs whole layers; use ddp, zero1, zero2 or gemini"
    if wanted.stage == "rm" and config.pp > 1:
        return "rm compares two rows in one loss, which pipeline stages can't; set pp: 1, or use colossalai_zero2"
    if wanted.stage == "dpo" and config.tp * config.pp > 1:
        return (
            "dpo reads log-probs from the whole head, which tp and pp split; use colossalai_zero2 or colossalai_gemini"
        )
    return ""


def _machine(config: StrategyConfig, can: Capabilities, wanted: Wanted) -> str:
    if wanted.world_size > 1 and not can.many_ranks:
        return f"runs on one process and {wanted.world_size} were started; use ddp or a colossalai strategy"
    if wanted.world_size % (config.tp * config.pp):
        return (
            f"tp × pp is {config.tp} × {config.pp} and can't divide {wanted.world_size} processes; "
            "start a multiple of it, or lower tp or pp"
        )
    if wanted.device == "cpu" and not can.cpu:
        return "ColossalAI's ZeRO and Gemini need a GPU and none is visible; use naive or ddp on a CPU"
    if wanted.device == "cpu" and wanted.precision == "fp16":
        return "fp16 needs a GPU; use bf16 or fp32 on a CPU"
    return ""
