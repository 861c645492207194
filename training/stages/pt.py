"""Continued pre-training: next-token loss on every token of plain text, packed."""

from __future__ import annotations

from training.config.stages import PTConfig
from training.stages.language import run_language_stage


def run(config: PTConfig) -> None:
    """Train `config.model` further on `config.data`; the result is in the run folder's model/ (and adapter/)."""
    run_language_stage("pt", config)
