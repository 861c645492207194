"""The bridge to the stages' configuration: which keys a stage has, what is wrong with their values. No torch."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from jobs.mistakes import Mistake
from training.config.load import load_config
from training.config.load import own_name as own_name_here
from training.config.stages import config_class
from training.config.strategies import Wanted, check_strategy
from training.config.tree import write_out_shorthand
from training.errors import ConfigError

__all__ = ["check_training", "own_name", "training_keys", "write_out_shorthand"]


@cache
def training_keys(stage: str) -> frozenset[str]:
    """The top-level keys of a stage's configuration."""
    return frozenset(field.name for field in dataclasses.fields(config_class(stage)))


def own_name(key: str, stage: str) -> str:
    """What a key of another tool, or of another section, is called in a stage: a clause for a sentence, or ""."""
    found = own_name_here(key, stage).rstrip(".")
    return found[:1].lower() + found[1:]


def check_training(stage: str, sections: Mapping[str, Any], *, world_size: int = 1, gpus: int = 0) -> list[Mistake]:
    """What training.config.stages, and the strategy, have against these sections; empty when nothing."""
    try:
        config = load_config(stage, sections)
        strategy = getattr(config, "strategy", None)
        if strategy is not None:
            check_strategy(strategy, _wanted(stage, config, world_size, gpus))
    except ConfigError as error:
        return [Mistake("", str(error).rstrip("."))]
    return []


def _wanted(stage: str, config: Any, world_size: int, gpus: int) -> Wanted:
    precision = getattr(config.train, "precision", "auto")
    if precision == "auto":
        precision = "bf16" if gpus else "fp32"
    return Wanted(
        precision=precision,
        lora=config.partly_frozen,
        stage=stage,
        world_size=world_size,
        device="cuda" if gpus else "cpu",
        accumulation=getattr(config.train, "accumulate", 1),
    )
