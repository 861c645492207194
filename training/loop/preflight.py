"""Looks at all of a run that can be known before its weights are read: what would fail later fails at the start."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from training.config.data import DataConfig
from training.config.serving import ServeConfig
from training.config.stages import GRPOConfig, PPOConfig
from training.data.encode import EncodeOptions, RecordEncoder
from training.data.records import Placed, Problem, open_source
from training.data.stats import coloured
from training.data.template import TextCodec
from training.errors import ConfigError, DataError, MissingInput
from training.loop.checkpoint import STATE
from training.models.families import engine_context, engine_refusal
from training.models.load import from_config, load_config, resolve_model
from training.models.lora import convert_to_lora

LOOKED_AT = 256
"""Rows of each source."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def preflight(stage: str, config: Any, say: Callable[[str], object] = print) -> None:
    """Raises what the run would raise, as far as it needs no weights and no whole data set; tells what it found."""
    facts = load_config(config.model)
    check_weights(config.model)
    for line in check_adapters(facts, config):
        say(line)
    check_resume(config)
    data: DataConfig = config.data
    codec = TextCodec.load(
        config.model, data.template, data.system, add_special_tokens=data.add_special_tokens, today=data.day
    )
    if not codec.added:
        codec.check_vocabulary(facts.vocab_size)
    if codec.notice and stage != "pt":
        say(codec.notice)
    for prompt in getattr(getattr(config, "samples", None), "prompts", ()):
        codec.encode_prompt([{"role": "user", "content": prompt}])
    if isinstance(config, PPOConfig | GRPOConfig):
        check_rollouts(config, codec)
    elif getattr(getattr(config, "samples", None), "prompts", ()) and (refusal := engine_refusal(facts)):
        say(f"samples are generated slowly: {refusal}")
    for line in check_data(stage, config, codec):
        say(line)


def check_served(config: ServeConfig) -> None:
    """Raises what a server would raise before it reads weights."""
    if not config.model:
        raise ConfigError("serve needs a model: give `model: DIR` (or navarch-train serve --model DIR)")
    facts = load_config(config.model)
    TextCodec.load(config.model)
    check_weights(config.model)
    if config.adapter is not None and not (Path(config.adapter) / "adapter_config.json").is_file():
        raise MissingInput(f"{config.adapter} holds no LoRA adapter (adapter_config.json is missing)")
    context = engine_context(facts)
    if config.max_length is not None and context is not None and config.max_length > context:
        raise ConfigError(f"max_length is {config.max_length}, but {config.model} has a context of {context} tokens")


def check_weights(path: str) -> None:
    """Raises MissingInput for a model folder without weights."""
    folder = Path(resolve_model(path))
    if folder.is_dir() and not any(any(folder.glob(form)) for form in _WEIGHTS):
        raise MissingInput(f"There are no weights in {folder}: model.safetensors (or its shards) is missing.")


def check_adapters(facts: Any, config: Any) -> Iterator[str]:
    """The model's name and size; ConfigError where `lora` fits no layer of it. Takes no memory."""
    with torch.device("meta"):
        model = from_config(facts)
    total = sum(parameter.numel() for parameter in model.parameters())
    yield f"model: {type(model).__name__}, {total:,} parameters"
    if config.lora is not None:
        layers = convert_to_lora(model, config.lora)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        yield f"LoRA: rank {config.lora.rank} on {len(layers)} layers, {trained:,} parameters trained"


def check_resume(config: Any) -> None:
    """Raises MissingInput for a checkpoint that isn't there."""
    if config.resume and config.resume != "auto" and not (Path(config.resume) / "trainer" / STATE).is_file():
        raise MissingInput(f"resume: {config.resume} is no whole checkpoint (it has no trainer/{STATE}).")


def check_rollouts(config: PPOConfig | GRPOConfig, codec: TextCodec) -> None:
    """The players' families, lengths and vocabularies, and the reward function."""
    from training.ppo.players import check, prompt_limit
    from training.ppo.rewards import FunctionReward, must_retokenize

    check(config, 1)
    prompt_limit(config)
    for function in config.reward.all_functions:
        FunctionReward(function)
    if config.reward.model is not None:
        check_weights(config.reward.model)
        own = TextCodec.load(config.reward.model)
        must_retokenize(codec, own, config.reward.retokenize, config.reward.model)


def check_data(stage: str, config: Any, codec: TextCodec) -> Iterator[str]:
    """The first rows of every source as the run reads them; the very first one in the colours of what is learned."""
    data: DataConfig = config.data
    if not data.sources:
        raise DataError("data.sources is empty: name at least one file, folder or hf:org/name.")
    limit = getattr(config.train, "max_length", None) or config.train.max_prompt_length
    encoder = RecordEncoder(codec, EncodeOptions(limit, "truncate", data.train_on))
    shown = False
    for source in (*data.sources, *data.eval):
        rows = open_source(source, stage)
        looked = list(islice(rows, LOOKED_AT))
        placed = [item for item in looked if isinstance(item, Placed)]
        made = encoder.encode([item.record for item in placed])
        broken = [str(item) for item in looked if isinstance(item, Problem)]
        broken += [f"{p.raw.place}: {m}" for p, m in zip(placed, made, strict=True) if isinstance(m, str)]
        if broken and data.bad_rows == "stop":
            raise DataError(f"{broken[0]}. Mend or remove the row, or set data.bad_rows: skip.")
        lengths = sorted(len(part) for parts in made if not isinstance(parts, str) for part in parts)
        if not lengths:
            raise DataError(f"{source.path}: none of the first {len(looked)} rows can be used. First: {broken[0]}.")
        rest = sorted({name for item in placed for name in item.rest})
        first = f"{source.path} ({rows.format}): " + ("all" if len(looked) < LOOKED_AT else "the first")
        yield (
            f"{first} {len(looked)} rows looked at, {len(broken)} bad; tokens: half have up to "
            f"{lengths[len(lengths) // 2]:,}, 99 % up to {lengths[math.ceil(len(lengths) * 0.99) - 1]:,}"
            + (f"; fields not used: {', '.join(rest)}" if rest else "")
        )
        if not shown:
            shown = True
            colour = sys.stdout.isatty()
            yield f"{placed[0].raw.place}:\n" + "\n".join(coloured(placed[0].record, codec, colour=colour))
