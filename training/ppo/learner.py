"""What a stage that learns from its own completions has, as far as saving, exporting and telling need to know."""

from __future__ import annotations

from typing import Any, Protocol

from training.config.rollouts import RolloutTrainConfig
from training.data.prompts import PromptLoader
from training.data.template import TextCodec
from training.loop.run import Run
from training.ppo.formulas import KLController
from training.ppo.players import Players
from training.ppo.report import Phases
from training.ppo.rewards import ScoreShaping
from training.ppo.rollouts import Roller
from training.report.telemetry import Telemetry
from training.strategies.base import Strategy


class Learner(Protocol):
    """A run of PPO or GRPO."""

    run: Run
    config: Any
    strategy: Strategy
    train: RolloutTrainConfig
    codec: TextCodec
    prompts: PromptLoader
    players: Players
    roller: Roller
    shaping: ScoreShaping
    kl: KLController
    ptx: Any
    """A side loss's documents, or None."""
    total: int
    """Steps of the whole run."""
    step: int
    """Steps that are done."""
    telemetry: Telemetry
    phases: Phases
    figures: dict[str, float]
    """Of the last step."""
