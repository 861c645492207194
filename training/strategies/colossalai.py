"""Every strategy that ColossalAI provides, through its Booster: opening one, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.booster import Booster
from colossalai.booster.plugin import LowLevelZeroPlugin
from torch import Tensor, nn

from training.config.strategies import Capabilities, OptimizerConfig, StrategyConfig
from training.optimizer.adamw import undecayed
from training.strategies.base import Schedule, Strategy, Trained, buffers_kept, cast_weights
from training.strategies.colossalai_zero import Shard, ZeroOptimizer
from training.strategies.state import KEYS, PieceReader, read_rng, write_pieces, write_rng
from training.strategies.world import open_world


def accelerator_kind() -> str:
    """ "cuda" when ColossalAI has a GPU to work with, else "cpu"."""
    return "cuda" if get_accelerator().name in ("cuda", "npu") else "cpu"


def open_colossalai(config: StrategyConfig, can: Capabilities, precision: str, accumulation: int = 1) -> Strategy:
    """Joins the process group (ColossalAI's own launch would open another port, reseed and ignore timeouts)."""
    device = torch.device(get_accelerator().get_current_device()).type
    world = open_world(device=device, timeout_s=config.timeout_s, always_group=True)
    if config.name in ("colossalai_zero1", "colossalai_zero2", "colossalai_zero2_cpu"):
        return ZeroStrategy(config, world, can, precision)
    if config.name in ("colossalai_gemini", "colossalai_gemini_auto"):
        from training.strategies.colossalai_gemini import GeminiStrategy

        return GeminiStrategy(config, world, can, precision, accumulation=accumulation)
    from training.strategies.colossalai_3d import HybridStrategy

    return HybridStrategy(config, world, can, precision)


def wide_weights(module: nn.Module) -> dict[str, Tensor]:
    """The fp32 weights that will be trained, by name, before they are cast."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad and p.dtype == torch.float32}


class ShardedStrategy(Strategy):
    """What ZeRO and Gemini share: state is a set of `Shard`s, saved and read in one format by any number of ranks."""

    def _shards(self, trained: Trained) -> Iterable[Shard]:
        raise NotImplementedError

    def _refresh(self, trained: Trained) -> None:
        """Rounds the masters, just written, into the weights."""
        raise NotImplementedError

    def save(self, trained: Sequence[Trained], directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_rng(directory, self.rank)
        for each in trained:
            pieces = {
                shard.name: {key: tensor[: shard.stop - shard.start] for key, tensor in shard.state.items()}
                for shard in self._shards(each)
                if shard.stop > shard.start
            }
            scale = each.optimizer.loss_scale
            facts = {
                "strategy": self.config.name,
                "precision": self.precision,
                "steps": each.steps,
                "adam_steps": int(each.optimizer.step_count),
                "loss_scale": None if scale is None else scale.state(),
            }
            write_pieces(directory / each.name, pieces, rank=self.dp_rank, ranks=self.dp_size, facts=facts)
        self.barrier()

    def load(self, trained: Sequence[Trained], directory: Path) -> None:
        for each in trained:
            with PieceReader(directory / each.name) as reader:
                for shard in self._shards(each):
                    for key in KEYS:
                        if shard.stop > shard.start:
                            kept = shard.state[key][: shard.stop - shard.start]
                            kept.copy_(reader.read(shard.name, key, shard.start, shard.stop))
                facts = reader.facts
            each.steps = facts["steps"]
            each.optimizer.step_count.fill_(facts["adam_steps"])
            if each.optimizer.loss_scale is not None and facts.get("loss_scale"):
                each.optimizer.loss_scale.restore(facts["loss_scale"])
            self._refresh(each)
        read_rng(directory, self.rank)

    def _gather_masters(self, trained: Trained) -> dict[str, Tensor]:
        """Whole fp32 masters on rank 0's host, parameter by parameter."""
        shapes = {name: p.shape for name, p in trained.inner.named_parameters()}
        found: dict[str, Tensor] = {}
        for shard in self._shards(trained):
            piece = shard.state["master"]
            if self.dp_size > 1:
                whole = torch.empty(piece.numel() * self.dp_size, dtype=piece.dtype)
                dist.all_gather_into_tensor(whole, piece.cpu(), group=self.dp_group)
                piece = whole
            if self.is_main:
                found[shard.name] = piece[: shapes[shard.name].numel()].view(shapes[shard.name])
        return found

    def full_state_dict(self, trained: Trained, *, masters: bool = False) -> dict[str, Tensor]:
        wide = self._gather_masters(trained) if masters else {}
        if not self.is_main:
            return {}
        first = {id(p): name for name, p in trained.inner.named_parameters()}
        same = {name: first[id(p)] for name, p in trained.inner.named_parameters(remove_duplicate=False)}
        weights: dict[str, Tensor] = trained.inner.state_dict()
        return {name: wide.get(same.get(name, name), weight) for name, weight in weights.items()}


class ZeroStrategy(ShardedStrategy):
    """ZeRO-1 (states), ZeRO-2 (states and gradients), the latter also with states on the host. Weights stay whole."""

    @property
    def stage(self) -> int:
        return 1 if self.config.name == "colossalai_zero1" else 2

    def prepare(
        self, module: nn.Module, optimizer: OptimizerConfig, schedule: Schedule, *, name: str = "model"
    ) -> Trained:
        wide = wide_weights(module)
        cast_weights(module, self.device, self.dtype)
        element = torch.empty((), dtype=self.dtype).element_size()
        bucket_m = self.config.bucket_mb / element
        offload = self.config.name == "colossalai_zero2_cpu"
        plugin = LowLevelZeroPlugin(
            stage=self.stage,
            precision=self.precision,
            reduce_bucket_size_in_m=max(1, int(bucket_m)),
            overlap_communication=True,
            cpu_offload=offload,
            cast_inputs=False,
            master_weights=True,
        )
        zero = ZeroOptimizer(
            [(key, p) for key, p in module.named_parameters() if p.requires_grad],
            optimizer,
            undecayed(module),
            stage=self.stage,
            bucket_elements=int(bucket_m * 1024 * 1024),
            cpu_offload=offload,
        )
        # boost keeps an optimizer that is already wrapped, so ours goes through the front door
        with buffers_kept(module, self.device):
            model, boosted, *_ = Booster(plugin=plugin).boost(
                model=module, optimizer=zero, criterion=None, dataloader=None, lr_scheduler=None
            )
        if self.dtype != torch.float32:
            for shard in zero.shards():
                if shard.name in wide and shard.stop > shard.start:
                    piece = wide[shard.name].reshape(-1)[shard.start : shard.stop]
                    shard.state["master"][: shard.stop - shard.start].copy_(piece)
        return Trained(name, model, module, boosted, optimizer, schedule)

    def accumulate(self, trained: Trained, *, last: bool) -> AbstractContextManager[Any]:
        # ZeRO-2 shards gradients, so it must reduce every micro-batch; a lone rank reduces nothing
        return trained.optimizer.no_sync() if self.stage == 1 and not last else nullcontext()

    def backward(self, trained: Trained, loss: Tensor) -> None:
        trained.optimizer.backward(loss)

    def step(self, trained: Trained) -> Tensor:
        norm: Tensor = trained.optimizer.step_with(trained.learning_rate)
        trained.steps += 1
        return norm

    def _shards(self, trained: Trained) -> Iterable[Shard]:
        return trained.optimizer.shards()

    def _refresh(self, trained: Trained) -> None:
        trained.optimizer.refresh_weights()
