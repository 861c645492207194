"""Every rank holds the whole model; DistributedDataParallel averages gradients while the backward pass runs."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.strategies.base import Trained
from training.strategies.naive import NaiveStrategy


class DDPStrategy(NaiveStrategy):
    """Naive on each rank with averaged gradients. A lone process isn't wrapped: there is nobody to talk to."""

    def _wrap(self, module: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return module
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers, torch 2.5 to 2.12 know only this name
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                bucket_cap_mb=max(1, int(self.config.bucket_mb)),
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
            )

    def accumulate(self, trained: Trained, *, last: bool) -> AbstractContextManager[None]:
        wrapped = isinstance(trained.module, DistributedDataParallel)
        return trained.module.no_sync() if wrapped and not last else nullcontext()
