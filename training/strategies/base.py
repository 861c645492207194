"""What a stage may ask of a strategy: prepare a module, run backward and step, save, load, export, generate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.config.strategies import Capabilities, OptimizerConfig, StrategyConfig
from training.strategies.world import World, close_world

Schedule = Callable[[int], float]
"""Multiplier of the learning rate for the optimizer step with this number, counted from 0."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Trained:
    """A module under training. Call `module`; never call or change `inner` while training.

    `module` may be a wrapper (DDP, ZeRO, …); `inner` is what the stage gave to `prepare`, and gives the names of its
    parameters. `steps` counts the optimizer steps taken; `name` tells models of one run apart (an actor and a critic).
    """

    name: str
    module: nn.Module
    inner: nn.Module
    optimizer: Any
    config: OptimizerConfig
    schedule: Schedule
    steps: int = 0
    extra: Any = None

    @property
    def learning_rate(self) -> float:
        """The rate that the next step uses."""
        return self.config.lr * self.schedule(self.steps)


def cast_weights(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Moves the module and casts its parameters. Buffers keep their dtype: rounding rotary frequencies to bf16 gives
    wrong angles at far positions."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(device=device, dtype=dtype)
    module.to(device=device)


@contextmanager
def buffers_kept(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Undoes what a library's cast inside the block does to float buffers."""
    kept = [
        (owner, name, buffer.detach().clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.is_floating_point()
    ]
    yield
    for owner, name, buffer in kept:
        owner._buffers[name] = buffer.to(device)


class Strategy(ABC):
    """Spreads training over processes. Stages know this interface and nothing of what is behind it.

    Gradients: at `step`, they are the sum over the `backward` calls since the last step and the *mean* over
    data-parallel ranks. A loss that is a sum over tokens is therefore multiplied by `dp_size` and divided by the number
    of target tokens of all micro-batches and ranks.
    """

    def __init__(self, config: StrategyConfig, world: World, capabilities: Capabilities, precision: str) -> None:
        self.config = config
        self.world = world
        self.capabilities = capabilities
        self.precision = precision
        self.dtype = DTYPES[precision]

    # who am I

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def world_size(self) -> int:
        return self.world.size

    @property
    def is_main(self) -> bool:
        return self.world.is_main

    @property
    def dp_rank(self) -> int:
        """Which share of the data this process takes."""
        return self.world.rank

    @property
    def dp_size(self) -> int:
        """Into how many shares the data are cut."""
        return self.world.size

    @property
    def dp_group(self) -> dist.ProcessGroup | None:
        """The processes that see different data; None is all of them."""
        return None

    # training

    @abstractmethod
    def prepare(
        self, module: nn.Module, optimizer: OptimizerConfig, schedule: Schedule, *, name: str = "model"
    ) -> Trained:
        """Moves `module` to the device and precision and gives it an optimizer. Its forward must compute its loss.

        fp32 masters are taken from the weights *before* they are cast: a module that was loaded in fp32 loses nothing.
        """

    def prepare_frozen(self, module: nn.Module) -> nn.Module:
        """A model that is only read (a reference, a reward model): on the device, in the precision, no gradients."""
        cast_weights(module, self.device, self.dtype)
        return module.eval().requires_grad_(False)

    @abstractmethod
    def accumulate(self, trained: Trained, *, last: bool) -> AbstractContextManager[None]:
        """Wraps forward and backward of one micro-batch; `last`: `step` follows. Saves communication where it can."""

    @abstractmethod
    def backward(self, trained: Trained, loss: Tensor) -> None:
        """Adds this micro-batch's gradients (fp16's loss scale is applied and taken away inside)."""

    @abstractmethod
    def step(self, trained: Trained) -> Tensor:
        """Clips, updates, clears gradients, advances the schedule. Returns the norm before clipping; never waits."""

    # weights

    @abstractmethod
    def full_state_dict(self, trained: Trained, *, masters: bool = False) -> dict[str, Tensor]:
        """All weights under the names of the given module, on rank 0; `{}` elsewhere. Every rank must call it.

        `masters` gives the fp32 values behind the trained weights. Tensors may share memory with the live weights:
        write them before the next step. Tied weights share one tensor.
        """

    def shows_whole(self, trained: Trained) -> bool:
        """Whether `generation` can be entered: the strategy keeps layers whole, and there is room for all of them.

        The same on all ranks; every rank must call it.
        """
        return self.capabilities.rollouts

    @contextmanager
    def generation(self, trained: Trained) -> Iterator[nn.Module]:
        """The given module with whole weights for rollouts, in eval mode, without gradients. Every rank must enter."""
        inner, was_training = trained.inner, trained.inner.training
        inner.eval()
        try:
            with torch.no_grad():
                yield inner
        finally:
            inner.train(was_training)

    # resume

    @abstractmethod
    def save(self, trained: Sequence[Trained], directory: Path) -> None:
        """Writes all that a resume needs besides the stage's own state: masters, moments, counts and each rank's RNG.

        Every rank must call it with one directory that all of them see.
        """

    @abstractmethod
    def load(self, trained: Sequence[Trained], directory: Path) -> None:
        """Restores what `save` wrote into modules prepared alike, weights included."""

    # talk between ranks

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` in place over the data-parallel ranks and returns it. Host tensors go over gloo."""
        if self.dp_size > 1:
            dist.all_reduce(tensor, group=self.dp_group)
        return tensor

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.world.size > 1:
            dist.all_reduce(torch.zeros(1))

    def close(self) -> None:
        """Ends the process group."""
        close_world()

    def __enter__(self) -> Strategy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
