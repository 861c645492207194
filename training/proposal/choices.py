"""Chooses the values of a first configuration from what was measured, each with its reason. Pure functions.

Rules of thumb, said where they are used: they make a run that works and learns, and that is then tuned by its curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.config.data import DataConfig
from training.config.rollouts import RewardConfig
from training.config.stages import config_class
from training.errors import OutOfMemory
from training.models.footprint import state_bytes
from training.proposal.facts import LORA_RANK, DataFacts, Machine, ModelFacts

GIB = 2**30
STEP = 64
"""Lengths and batches are multiples of it."""
USABLE = 0.85
"""Part of the free memory that is planned: the rest is for what fragments and for the libraries."""
STATE_SHARE = 0.6
"""Part of that which weights and optimizer may take before a LoRA is proposed instead."""
LARGEST_BATCH, LARGEST_ON_CPU = 32_768, 8192
"""Tokens of a micro-batch: larger ones are hardly faster."""
EFFICIENCY = 0.5
"""Part of the speed of large matrix products that training reaches, roughly (0.4 to 0.7 was seen)."""
LORA_RATES = {"pt": 1e-4, "sft": 2e-4, "rm": 1e-4, "dpo": 5e-6, "ppo": 1e-5, "grpo": 1e-5}
SMALL = 20_000
"""Fewer conversations than this are learned from three times in sft."""


@dataclass(frozen=True)
class Choice:
    """One line of the file. key: its dotted path; why: the comment behind it."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Plan:
    """choices, in the order of the file; steps: optimizer steps of the whole run; seconds: about how long they take, or
    None where the machine isn't here to be measured."""

    choices: tuple[Choice, ...]
    steps: int
    seconds: float | None


def rounded_up(value: float, step: int = STEP) -> int:
    return max(step, math.ceil(value / step) * step)


def plan(stage: str, data: DataFacts, model: ModelFacts, machine: Machine) -> Plan:
    """Raises OutOfMemory when not even an adapter can be trained in the memory that there is."""
    if stage in ("ppo", "grpo"):
        return _plan_rollouts(stage, data, model, machine)
    length, why_length = longest_document(data, model.context)
    unit = length * data.per_row  # a pair stays together
    memory = share_memory(model, machine, unit)
    batch, accumulate, why_batch = batches(data, machine, unit, memory.tokens)
    epochs = 3 if stage == "sft" and data.documents < SMALL else 1
    held_out = round(min(max(200 / data.rows, 0.01), 0.1), 3) if data.rows >= 50 else 0.0
    bins = data.bins(length, batch) * (1 - held_out)
    per_epoch = max(1, round(bins / (accumulate * max(machine.gpus, 1))))
    steps = per_epoch * epochs
    each = (4 if memory.lora else 6) * model.weights * batch * accumulate
    seconds = steps * each / (EFFICIENCY * machine.speed) if machine.speed else None
    rate = LORA_RATES[stage] if memory.lora else default(stage, "train.lr")
    choices = [
        *_data_choices(stage, data, length, held_out),
        *memory.choices(machine),
        Choice("train.epochs", epochs, f"about {per_epoch:,} optimizer steps each, {steps:,} in all"),
        Choice("train.lr", rate, "usual with LoRA" if memory.lora else "usual when all weights are trained"),
        Choice("train.max_length", length, why_length),
        Choice("train.tokens_per_batch", batch, why_batch),
        Choice("train.accumulate", accumulate, "micro-batches of an optimizer step"),
        *memory.checkpointing(),
        *_rhythm(steps, seconds, bool(held_out)),
    ]
    return Plan(tuple(choices), steps, seconds)


def longest_document(data: DataFacts, context: int | None) -> tuple[int, str]:
    """train.max_length: all documents where the longest is not far out, else 99 % of them; never over the context."""
    most, nearly = data.percentile(100), data.percentile(99)
    length = rounded_up(most if most <= 2 * nearly else nearly)
    if context is not None and length > context:
        length, what = context, "the model's context"
    else:
        what = "the longest document" if length >= most else "99 % of the documents"
    over = data.over(length)
    return length, f"tokens; {what}" + (f": {over:.1%} are longer" if over else "")


@dataclass(frozen=True)
class Memory:
    """How a model is trained in the memory that there is. tokens: of a micro-batch that fits."""

    lora: bool
    sharded: bool
    recompute: bool
    state: int
    tokens: int

    def choices(self, machine: Machine) -> Iterator[Choice]:
        state = f"{self.state / GIB:.1f} of {machine.memory / GIB:.1f} GiB"
        if self.lora:
            yield Choice(
                "lora", LORA_RANK, f"weights, adapters and their optimizer take {state}; all weights: too much"
            )
        if machine.gpus <= 1:
            name, why = "naive", "one process"
        elif self.sharded:
            name, why = "colossalai_zero2", f"gradients and optimizer are shared out over {machine.gpus} GPUs"
        else:
            name, why = "ddp", f"{machine.gpus} GPUs, each with the whole model"
        yield Choice("strategy", name, why if self.lora else f"{why}; weights and optimizer take {state}")

    def checkpointing(self) -> Iterator[Choice]:
        if self.recompute:
            yield Choice("train.activation_checkpointing", "full", "else the longest document would not fit")


def share_memory(model: ModelFacts, machine: Machine, length: int) -> Memory:
    """All weights where they fit on a device or shared out, else LoRA; recomputation where `length` tokens need it."""
    usable = int(USABLE * machine.memory)
    ranks = max(machine.gpus, 1)
    whole = state_bytes(model.weights, model.weights, machine.size)
    shared = model.weights * machine.size + (whole - model.weights * machine.size) // ranks
    adapters = state_bytes(model.weights, model.adapters, machine.size)
    head = head_bytes(model, machine)
    found = None
    for lora, sharded, state in ((False, False, whole), (False, True, shared), (True, False, adapters)):
        if (sharded and ranks == 1) or (not lora and state > STATE_SHARE * usable):
            continue
        for recompute in (False, True):
            each = model.recomputed_bytes if recompute else model.token_bytes
            tokens = max(usable - state - head, 0) // each
            if tokens >= length:
                return Memory(lora, sharded, recompute, state, tokens)
            found = state + head + each * length
    raise OutOfMemory(
        f"{model.name} has {model.size}: LoRA on {length:,} tokens takes "
        f"about {(found or adapters) / GIB:.1f} GiB, and {usable / GIB:.1f} GiB can be used on {machine.name}. Take a "
        "smaller model, shorter documents or a larger GPU (--memory and --gpus say of which)."
    )


def head_bytes(model: ModelFacts, machine: Machine) -> int:
    """A chunk of logits with what becomes of them, and the head's gradient in fp32."""
    chunk = 8192 if machine.on_gpu else 512
    return model.vocabulary * (chunk * 10 + model.width * 4)


def batches(data: DataFacts, machine: Machine, least: int, fitting: int) -> tuple[int, int, str]:
    """(train.tokens_per_batch, train.accumulate, why): about a thirtieth of the rows a step, 8 to 64 of them."""
    documents = min(max(data.rows // 30, 8), 64) * data.per_row
    mean = float(data.lengths.mean())
    wanted = documents * mean / max(machine.gpus, 1)
    most = min(fitting // STEP * STEP, LARGEST_BATCH if machine.on_gpu else LARGEST_ON_CPU)
    batch = max(min(rounded_up(wanted), most), least)
    accumulate = max(1, round(wanted / batch))
    told = round(batch / mean)
    return batch, accumulate, f"about {told:,} documents; up to {fitting // STEP * STEP:,} tokens fit"


def _data_choices(stage: str, data: DataFacts, length: int, held_out: float) -> Iterator[Choice]:
    if held_out:
        yield Choice("data.eval_fraction", held_out, f"about {round(data.rows * held_out):,} rows are held out")
    if data.bad:
        yield Choice("data.bad_rows", "skip", f"{data.bad:,} can't be used, the first: {data.problem}")
    if stage in ("rm", "dpo", "ppo", "grpo"):
        yield from _left_out(stage, data.over(length))


def _left_out(stage: str, share: float) -> Iterator[Choice]:
    """Rows that are too long to be cut."""
    if share > default(stage, "data.max_left_out"):
        allowed = min(1.0, math.ceil(20 * share + 1) / 20)
        yield Choice("data.max_left_out", allowed, f"{share:.0%} are too long, and are left out")


def _rhythm(steps: int, seconds: float | None, held_out: bool) -> Iterator[Choice]:
    """How often it is evaluated, saved and told."""
    if held_out:
        yield Choice("eval.every", max(1, steps // 10), "steps; ten times in all")
    if steps >= 100 or (seconds or 0) > 1200:
        yield Choice("checkpoint.every", max(1, steps // 5), "steps; a run that was stopped goes on with --resume auto")
    yield Choice("log.every", max(1, min(10, steps // 20)), "steps between lines of figures")


def _plan_rollouts(stage: str, data: DataFacts, model: ModelFacts, machine: Machine) -> Plan:
    """ppo and grpo."""
    critic = stage == "ppo"
    context = model.engine_context or 1 << 20
    new = min(256, context // 2)
    prompt = min(longest_document(data, None)[0], context - new)
    over = data.over(prompt)
    ranks = max(machine.gpus, 1)
    group = default(stage, "train.samples_per_prompt")
    rollout = ranks * group * 2 ** int(math.log2(max(min(128 // group, data.rows) / ranks, 1)))
    steps = max(1, math.ceil(data.rows / (rollout // group)))
    lora, state = _players(model, machine, 1 + critic)
    rate, why_rate = (
        (LORA_RATES[stage], "the actor's, with LoRA") if lora else (default(stage, "train.lr"), "the actor's")
    )
    models = f"actor, {'critic ' if critic else ''}and frozen models".replace(", and", " and")
    choices = [
        *_data_choices(stage, data, prompt, 0.0),
        *([Choice("lora", LORA_RANK, "whole models with their optimizers would not fit")] if lora else []),
        Choice("strategy", "ddp" if ranks > 1 else "naive", f"{models}: {state / GIB:.1f} GiB"),
        Choice("generation.max_new_tokens", new, "tokens of an answer at most"),
        Choice("train.max_steps", steps, "each prompt once; curves of rewards want some hundred steps"),
        Choice("train.lr", rate, why_rate),
        Choice("train.rollout_batch_size", rollout, "answers of a step"),
        *([] if critic else [Choice("train.samples_per_prompt", group, "answers compared with each other")]),
        Choice("train.minibatch_size", max(ranks, rollout // 4) if critic else rollout, "answers of an update"),
        Choice("train.max_prompt_length", prompt, f"tokens; {over:.1%} of the prompts are longer"),
        *([Choice("train.long_prompts", "drop", "leave those out")] if over else []),
        Choice("kl.coef", default(stage, "kl.coef"), "how strongly the model is held to where it starts"),
        Choice("checkpoint.every", max(1, steps // 5), "steps; a run that was stopped goes on with --resume auto"),
        Choice("log.every", 1, "steps between lines of figures"),
    ]
    return Plan(tuple(choices), steps, None)


def _players(model: ModelFacts, machine: Machine, trained: int) -> tuple[bool, int]:
    """(whether LoRA is needed, bytes of the trained models and of a frozen one beside each)."""
    usable = USABLE * machine.memory
    whole = trained * (state_bytes(model.weights, model.weights, machine.size) + model.weights * machine.size)
    if whole <= STATE_SHARE * usable:
        return False, whole
    adapted = trained * state_bytes(model.weights, model.adapters, machine.size) + model.weights * machine.size
    if adapted > STATE_SHARE * usable:
        who = "Actor, critic and reward model" if trained > 1 else "Actor and reward model"
        raise OutOfMemory(
            f"{who} of the size of {model.name} take about {adapted / GIB:.1f} GiB with LoRA, "
            f"and {STATE_SHARE * usable / GIB:.1f} GiB can be used for them on {machine.name}: take a smaller model or "
            "a larger GPU (--memory says of which)."
        )
    return True, adapted


def default(stage: str, key: str) -> Any:
    """The stage's own default of a key."""
    required: dict[str, Any] = {"model": "", "data": DataConfig()}
    if stage in ("ppo", "grpo"):
        required["reward"] = RewardConfig(model="any")
    value: Any = config_class(stage)(**required)
    for part in key.split("."):
        value = getattr(value, part)
    return value
