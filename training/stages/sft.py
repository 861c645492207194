"""Supervised fine-tuning: next-token loss on the assistant's turns of conversations."""

from __future__ import annotations

from training.config.stages import SFTConfig
from training.stages.language import run_language_stage


def run(config: SFTConfig) -> None:
    """Fine-tune `config.model` on `config.data`; the result is in the run folder's model/ (and adapter/)."""
    run_language_stage("sft", config)
