"""Makes the strategy that a run's configuration names, after checking that it can work here."""

from __future__ import annotations

from training.config.strategies import StrategyConfig, Wanted, check_strategy
from training.strategies.base import Strategy
from training.strategies.world import open_world, planned_world_size, visible_device


def open_strategy(
    config: StrategyConfig,
    *,
    precision: str = "bf16",
    lora: bool = False,
    stage: str = "sft",
    accumulation: int = 1,
    device: str = "auto",
) -> Strategy:
    """Checks the combination, joins the process group and returns the strategy. Use it as a context manager.

    Raises StrategyError, before any GPU is touched, for what can't work.
    """
    kind = visible_device() if device == "auto" else device
    if config.name.startswith("colossalai") and kind == "cpu":
        from training.strategies.colossalai import accelerator_kind

        kind = accelerator_kind()
    wanted = Wanted(
        precision=precision, lora=lora, stage=stage, accumulation=accumulation,
        world_size=planned_world_size(), device="cuda" if kind == "cuda" else "cpu",
    )  # fmt: skip
    can = check_strategy(config, wanted)
    if config.name.startswith("colossalai"):
        from training.strategies.colossalai import open_colossalai

        return open_colossalai(config, can, precision, accumulation)
    world = open_world(device=kind, timeout_s=config.timeout_s)
    if config.name == "naive":
        from training.strategies.naive import NaiveStrategy

        return NaiveStrategy(config, world, can, precision)
    from training.strategies.ddp import DDPStrategy

    return DDPStrategy(config, world, can, precision)
