"""Learning-rate schedules and step counts: pure functions of the step number."""

from __future__ import annotations

import math
from collections.abc import Callable

from training.config.stages import TrainConfig


def total_steps(train: TrainConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run: max_steps, or what `epochs` comes to."""
    return train.max_steps or max(1, math.ceil(train.epochs * steps_per_epoch - 1e-9))


def warmup_steps(train: TrainConfig, total: int) -> int:
    return round(train.warmup * total) if train.warmup < 1 else min(int(train.warmup), total)


def learning_rate_schedule(train: TrainConfig, total: int) -> Callable[[int], float]:
    """Multiplier of `train.lr` for steps from 0: warm-up (never 0), then constant, linear or cosine to min_lr."""
    warm = warmup_steps(train, total)
    floor = train.min_lr / train.lr if train.lr else 0.0

    def multiplier(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        if train.lr_schedule == "constant":
            return 1.0
        progress = min((step - warm) / max(total - warm, 1), 1.0)
        shape = 1 - progress if train.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return floor + (1 - floor) * shape

    return multiplier
