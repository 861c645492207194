"""Finds a model's transformer blocks, whatever the architecture calls them."""

from __future__ import annotations

from torch import nn

from training.errors import ConfigError


def find_blocks(model: nn.Module) -> tuple[nn.ModuleList, str]:
    """The repeated blocks and their dotted name (model.layers, transformer.h, …): the longest one-class ModuleList."""
    best: tuple[nn.ModuleList, str] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and len({type(child) for child in module}) == 1:
            best = (module, name) if best is None or len(module) > len(best[0]) else best
    if best is None:
        raise ConfigError(
            f"{type(model).__name__} has no list of repeated blocks: this architecture can't be trained here."
        )
    return best
