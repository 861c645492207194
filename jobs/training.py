"""The bridge to training.config: which keys a stage has, and what is wrong with their values."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from jobs.problems import Problem

_BEFORE_CONFIG = frozenset(
    {"model", "tokenizer", "data", "train", "strategy", "lora", "eval", "checkpoint", "generation", "seed"}
)


@cache
def _has_config() -> bool:
    try:
        import training.config
    except ImportError:
        return False
    return bool(training.config)


def training_keys(stage: str) -> frozenset[str]:
    """The top-level keys of a stage's configuration."""
    if not _has_config():
        return _BEFORE_CONFIG
    from training.config import config_class

    return frozenset(field.name for field in dataclasses.fields(config_class(stage)))


def check_training(stage: str, sections: Mapping[str, Any]) -> list[Problem]:
    """What training.config has against these sections; empty when nothing."""
    if not _has_config():
        return []
    from training.config import load_config
    from training.errors import ConfigError

    try:
        load_config(stage, sections)
    except ConfigError as error:
        return [Problem("", str(error))]
    return []
