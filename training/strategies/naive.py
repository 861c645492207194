"""One process, plain PyTorch: the strategy that every other one is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from training.config.strategies import OptimizerConfig
from training.optimizer.adamw import LossScale, MasterAdamW, undecayed
from training.strategies.base import Schedule, Strategy, Trained, cast_weights
from training.strategies.state import KEYS, PieceReader, read_rng, write_pieces, write_rng


class NaiveStrategy(Strategy):
    """Weights in the run's precision with fp32 masters; the loss scale of fp16 lives on the device."""

    def prepare(
        self, module: nn.Module, optimizer: OptimizerConfig, schedule: Schedule, *, name: str = "model"
    ) -> Trained:
        wide = {key: p.detach() for key, p in module.named_parameters() if p.requires_grad and p.dtype == torch.float32}
        cast_weights(module, self.device, self.dtype)
        adam = MasterAdamW(module.named_parameters(), optimizer, undecayed(module))
        if self.dtype != torch.float32:
            state = adam.state()
            for key, weight in wide.items():
                state[key]["master"].copy_(weight.reshape(-1))
        trained = Trained(name, self._wrap(module), module, adam, optimizer, schedule)
        trained.extra = LossScale(self.device) if self.precision == "fp16" else None
        return trained

    def _wrap(self, module: nn.Module) -> nn.Module:
        return module

    def accumulate(self, trained: Trained, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, trained: Trained, loss: Tensor) -> None:
        (loss if trained.extra is None else loss * trained.extra.scale).backward()

    def step(self, trained: Trained) -> Tensor:
        norm: Tensor = trained.optimizer.step(trained.learning_rate, loss_scale=trained.extra)
        trained.steps += 1
        return norm

    def full_state_dict(self, trained: Trained, *, masters: bool = False) -> dict[str, Tensor]:
        if not self.is_main:
            return {}
        weights = trained.inner.state_dict()
        if masters:
            state = trained.optimizer.state()
            for key, parameter in trained.inner.named_parameters(remove_duplicate=False):
                if key in state:
                    weights[key] = state[key]["master"].view(parameter.shape)
        return weights

    def save(self, trained: Sequence[Trained], directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_rng(directory, self.rank)
        if self.is_main:
            for each in trained:
                facts = {
                    "strategy": self.config.name,
                    "precision": self.precision,
                    "steps": each.steps,
                    "adam_steps": int(each.optimizer.step_count),
                    "loss_scale": each.extra.state() if each.extra else None,
                }
                write_pieces(directory / each.name, each.optimizer.state(), rank=0, ranks=1, facts=facts)
        self.barrier()

    def load(self, trained: Sequence[Trained], directory: Path) -> None:
        for each in trained:
            with PieceReader(directory / each.name) as reader:
                for name, entry in each.optimizer.state().items():
                    for key in KEYS:
                        entry[key].copy_(reader.read(name, key, 0, entry[key].numel()))
                facts = reader.facts
            each.optimizer.refresh_weights()
            each.steps = facts["steps"]
            each.optimizer.step_count.fill_(facts["adam_steps"])
            if each.extra is not None and facts.get("loss_scale"):
                each.extra.restore(facts["loss_scale"])
        read_rng(directory, self.rank)
