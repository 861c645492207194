"""Tensor, pipeline and sequence parallelism with ZeRO over the rest, through ColossalAI's HybridParallelPlugin.

The transformers model *inside* the given module is cut in place by Shardformer and computes its own loss on padded
rows: its head is split over ranks, so no other code can hold whole logits. Masters are the cut weights in fp32.

With pipeline stages, forward and backward are one schedule (1F1B). It runs when the module is called, on the plain sum
of losses; the factor that the stage puts on the loss reaches gradients in `step`, where they are scaled once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule
from colossalai.checkpoint_io.utils import gather_distributed_param
from colossalai.shardformer.layer.utils import SeqParallelUtils
from colossalai.tensor.d_tensor import is_customized_distributed_tensor, is_distributed_tensor
from colossalai.tensor.padded_tensor import is_padded_tensor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from training.config.strategies import Capabilities, OptimizerConfig, StrategyConfig, StrategyError
from training.data.batch import PackedBatch
from training.optimizer.adamw import global_norm, undecayed
from training.strategies.base import Schedule, Trained, buffers_kept, cast_weights
from training.strategies.colossalai import ShardedStrategy, wide_weights
from training.strategies.colossalai_zero import Shard, ZeroOptimizer
from training.strategies.state import read_facts
from training.strategies.world import World


class HybridOptimizer(ZeroOptimizer):
    """ZeRO over data-parallel ranks whose parameters are pieces of tensor- and pipeline-parallel ones."""

    plugin: HybridParallelPlugin
    boosted: HybridParallelModule
    factor: Tensor | None = None
    """What the stage multiplied the loss with, when backward had already run (pipeline); taken in `step_with`."""

    def _norm(self, gradients: list[list[Tensor]]) -> Tensor:
        cut: list[Tensor] = []
        copied: list[Tensor] = []
        partial: list[Tensor] = []
        for index, group in enumerate(gradients):
            for parameter, gradient in zip(self._working_param_groups[index], group, strict=True):
                (cut if _is_cut(parameter) else copied).append(gradient)
                if self.plugin.enable_sequence_parallelism and SeqParallelUtils.is_sp_partial_derived_param(parameter):
                    partial.append(gradient)
        if partial:
            SeqParallelUtils.allreduce_partial_data_grad(process_group=self.plugin.tp_group, grads=partial)
        if self.factor is not None:
            torch._foreach_mul_([*cut, *copied], self.factor.to(self.dtype))
            self.factor = None
        square = torch.zeros((), device=self.device)
        if cut:
            square = square + global_norm(cut).square()
        for gradient, stages in self._shared(gradients):  # each of these stages counts it
            square = square - global_norm([gradient]).square() * (1 - 1 / stages)
        if copied:  # every tensor-parallel rank holds the same
            square = square + global_norm(copied).square() / self.plugin.tp_size
        groups = [self.plugin.tp_group, self.plugin.pp_group]
        if not self.lone:
            groups.append(self.plugin.dp_group)
        for group in groups:
            if dist.get_world_size(group) > 1:
                dist.all_reduce(square, group=group)
        return square.sqrt()

    def _shared(self, gradients: list[list[Tensor]]) -> Iterator[tuple[Tensor, int]]:
        """Gradients of weights that several pipeline stages hold (tied embeddings), and how many do."""
        stage = None if self.plugin.stage_manager is None else self.plugin.stage_manager.stage
        for places in self.boosted.shared_params:
            for index, group in enumerate(gradients):
                for parameter, gradient in zip(self._working_param_groups[index], group, strict=True):
                    if places.get(stage) is parameter:
                        yield gradient, len(places)


def _is_cut(parameter: Tensor) -> bool:
    return is_distributed_tensor(parameter) or is_customized_distributed_tensor(parameter)


class _Applied(torch.autograd.Function):
    """The pipeline's loss: backward, which has already run, only learns the factor that the stage put on it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, loss: Tensor, optimizer: HybridOptimizer) -> Tensor:  # type: ignore[override]
        ctx.optimizer = optimizer
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        ctx.optimizer.factor = gradient
        return None, None, None


class EvenRows(nn.Module):
    """Gives the module batches whose rows are as wide as sequence parallelism needs: a multiple of its ranks."""

    def __init__(self, inner: nn.Module, multiple: int) -> None:
        super().__init__()
        self.inner, self.multiple = inner, multiple

    def forward(self, batch: PackedBatch, *args: Any, **kwargs: Any) -> Any:
        wider = copy(batch)
        object.__setattr__(wider, "padded", partial(batch.padded, multiple_of=self.multiple))
        return self.inner(wider, *args, **kwargs)


class PipelinedLoss(nn.Module):
    """batch → sum of the target tokens' losses, the same on every stage; with gradients on, backward runs too."""

    def __init__(self, inner: nn.Module, booster: Booster, optimizer: HybridOptimizer, config: StrategyConfig) -> None:
        super().__init__()
        self.inner = inner
        self.booster, self.optimizer, self.microbatches = booster, optimizer, config.microbatches
        self.multiple = config.tp if config.sp != "none" else 1
        self.anchor = torch.zeros((), device=optimizer.device, requires_grad=True)

    def forward(self, batch: PackedBatch) -> Tensor:
        rows = batch.padded(self.inner.options.pad_id, multiple_of=self.multiple)  # type: ignore[union-attr]
        count = rows.input_ids.shape[0]
        pieces = self.microbatches if self.microbatches and count % self.microbatches == 0 else count
        plugin = self.optimizer.plugin
        if pieces < plugin.pp_size and torch.is_grad_enabled():
            raise StrategyError(
                f"strategy 'colossalai_3d': {plugin.pp_size} pipeline stages need at least as many rows in a batch and "
                f"this one has {count}; raise train.batch_size or lower strategy.pp"
            )
        self._forget_shapes(count // pieces, pieces)
        data = {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask.long(),
            "labels": rows.unshifted_labels(),
        }
        with self.optimizer.boosted.no_sync(), self.optimizer.no_sync():
            result = self.booster.execute_pipeline(
                data_iter=iter([data]),
                model=self.optimizer.boosted,
                criterion=lambda output, piece: self._loss_sum(output, piece["labels"]) * pieces,
                optimizer=self.optimizer if torch.is_grad_enabled() else None,
                return_loss=True,
                return_outputs=False,
            )
        loss = result["loss"]
        loss = torch.zeros((), device=self.anchor.device) if loss is None else loss.float().reshape(())
        last = dist.get_process_group_ranks(plugin.pp_group)[-1]
        dist.broadcast(loss, src=last, group=plugin.pp_group)
        if not torch.is_grad_enabled():
            return loss
        applied: Tensor = _Applied.apply(self.anchor, loss, self.optimizer)  # type: ignore[no-untyped-call]
        return applied

    def _loss_sum(self, output: Any, labels: Tensor) -> Tensor:
        """Over one micro-batch's targets, in fp32; a head split over ranks has computed the mean by itself."""
        targets = labels[:, 1:]
        if self.optimizer.plugin.tp_size > 1:
            loss: Tensor = output.loss.float() * (targets != -100).sum()
            return loss
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="sum")

    def _forget_shapes(self, microbatch_size: int, microbatches: int) -> None:
        """The schedule remembers the first batch's shape; ours differ from step to step."""
        schedule = self.optimizer.plugin.scheduler
        schedule.microbatch_size, schedule.num_microbatches, schedule.last_batch_size = (
            microbatch_size, microbatches, None,
        )  # fmt: skip
        schedule.enable_metadata_cache = False
        schedule.send_tensor_metadata = schedule.send_grad_metadata = True
        schedule.tensor_metadata_recv = schedule.grad_metadata_recv = None


class HybridStrategy(ShardedStrategy):
    """tp × pp ranks hold one copy of the model between them; the copies see different data."""

    def __init__(self, config: StrategyConfig, world: World, can: Capabilities, precision: str) -> None:
        super().__init__(config, world, can, precision)
        self.plugin = HybridParallelPlugin(
            tp_size=config.tp,
            pp_size=config.pp,
            precision="fp32",  # weights are cut as they were loaded, then cast here, so that masters are exact
            zero_stage=1,
            enable_sequence_parallelism=config.sp != "none",
            sequence_parallelism_mode=None if config.sp == "none" else config.sp,
            microbatch_size=1,
            enable_metadata_cache=False,
            make_vocab_size_divisible_by=8,  # more would leave ranks of a small vocabulary with padding alone
            max_norm=0.0,
        )
        self.booster = Booster(plugin=self.plugin)

    @property
    def dp_rank(self) -> int:
        return dist.get_rank(self.plugin.dp_group)

    @property
    def dp_size(self) -> int:
        return dist.get_world_size(self.plugin.dp_group)

    @property
    def dp_group(self) -> dist.ProcessGroup | None:
        return self.plugin.dp_group

    def prepare(
        self, module: nn.Module, optimizer: OptimizerConfig, schedule: Schedule, *, name: str = "model"
    ) -> Trained:
        model, kept = _the_model(module), undecayed(module)
        with buffers_kept(module, self.device):
            boosted = self._cut(model)
            wide = wide_weights(module)
            cast_weights(module, self.device, self.dtype)
        plugin, zero = self.plugin, self.config.zero
        element = torch.empty((), dtype=self.dtype).element_size()
        adam = HybridOptimizer(
            [(key, p) for key, p in module.named_parameters() if p.requires_grad],
            optimizer,
            kept,
            stage=max(zero, 1),
            bucket_elements=int(self.config.bucket_mb * 1024 * 1024 / element),
            cpu_offload=False,
            group=plugin.dp_group if zero else self._alone(),
            at_step=zero < 2,
        )
        adam.plugin, adam.boosted = plugin, boosted
        if self.dtype != torch.float32:
            for shard in adam.shards():
                if shard.name in wide and shard.stop > shard.start:
                    piece = wide[shard.name].reshape(-1)[shard.start : shard.stop]
                    shard.state["master"][: shard.stop - shard.start].copy_(piece)
        outer = module
        if self.config.pp > 1:
            outer = PipelinedLoss(module, self.booster, adam, self.config)
        elif self.config.sp != "none":
            outer = EvenRows(module, self.config.tp)
        return Trained(name, outer, module, adam, optimizer, schedule)

    def _cut(self, model: PreTrainedModel) -> HybridParallelModule:
        """`model` with its layers replaced by this rank's pieces, in place, in fp32 on the device."""
        plugin = self.plugin
        try:
            wrapped = HybridParallelModule(
                module=model,
                precision="fp32",
                shard_config=plugin.shard_config,
                dp_group=plugin.dp_group,
                tp_group=plugin.tp_group,
                sp_group=plugin.sp_group,
                use_ddp=False,
                ddp_config={},
                custom_policy=None,
            )
        except (NotImplementedError, AssertionError) as error:
            raise StrategyError(
                f"strategy 'colossalai_3d': {type(model).__name__} can't be cut into tp={self.config.tp} × "
                f"pp={self.config.pp}: {error or 'ColossalAI has no policy for it'}"
            ) from error
        boosted, *_ = self.booster.boost(
            model=wrapped, optimizer=None, criterion=None, dataloader=None, lr_scheduler=None
        )
        return boosted

    def _alone(self) -> dist.ProcessGroup:
        """A group of this rank only (every rank must ask)."""
        groups = [dist.new_group([rank]) for rank in range(self.world_size)]
        return groups[self.rank]

    def accumulate(self, trained: Trained, *, last: bool) -> AbstractContextManager[Any]:
        return trained.optimizer.no_sync() if not last and self.config.zero < 2 else nullcontext()

    def backward(self, trained: Trained, loss: Tensor) -> None:
        if self.config.pp > 1:
            loss.backward()
        else:
            trained.optimizer.backward(loss)

    def step(self, trained: Trained) -> Tensor:
        optimizer: HybridOptimizer = trained.optimizer
        if self.config.pp > 1:
            optimizer.boosted.sync_shared_params()
        if self.config.zero == 0:
            optimizer.boosted.sync_dp_grads()
        norm = optimizer.step_with(trained.learning_rate)
        trained.steps += 1
        return norm

    # state: one set of files for each place in the model, so data-parallel ranks may change, tp and pp may not

    def _place(self, directory: Path) -> Path:
        plugin = self.plugin
        tp, pp = dist.get_rank(plugin.tp_group), dist.get_rank(plugin.pp_group)
        return directory / f"tp{tp}of{plugin.tp_size}-pp{pp}of{plugin.pp_size}"

    def save(self, trained: Sequence[Trained], directory: Path) -> None:
        super().save(trained, self._place(directory))

    def load(self, trained: Sequence[Trained], directory: Path) -> None:
        place = self._place(directory)
        if not place.is_dir():
            there = sorted(path.name for path in directory.iterdir() if path.is_dir())
            raise StrategyError(
                f"strategy 'colossalai_3d': {directory} holds {', '.join(there)} and not {place.name}; "
                "resume with the tp and pp of that run, or start from its model/ weights"
            )
        for each in trained:
            read_facts(place / each.name)
        super().load(trained, place)

    def _shards(self, trained: Trained) -> Iterable[Shard]:
        return trained.optimizer.shards()

    def _refresh(self, trained: Trained) -> None:
        trained.optimizer.refresh_weights()

    def full_state_dict(self, trained: Trained, *, masters: bool = False) -> dict[str, Tensor]:
        """Gathers over tensor ranks, then over stages. `masters` gives fp32 copies of the working weights."""
        mine: dict[str, Tensor] = {}
        with torch.no_grad():
            for key, value in trained.inner.state_dict(keep_vars=True).items():
                whole = gather_distributed_param(value, keep_vars=False)
                if is_padded_tensor(value):
                    whole = _unpadded(value, whole)
                mine[key] = whole.detach().to("cpu", torch.float32 if masters and whole.is_floating_point() else None)
        stages = dist.get_world_size(self.plugin.pp_group)
        if stages > 1:
            here = dist.get_process_group_ranks(self.plugin.pp_group)
            parts: list[Any] = [None] * stages
            wanted = here[0] == self.rank
            dist.gather_object(mine, parts if wanted else None, dst=here[0], group=self.plugin.pp_group)
            if wanted:
                mine = {key: value for part in parts for key, value in part.items()}
        return mine if self.is_main else {}

    @contextmanager
    def generation(self, trained: Trained) -> Iterator[nn.Module]:
        raise StrategyError(
            "strategy 'colossalai_3d': no rank holds whole layers, so it can't generate; use zero2 or gemini"
        )
        yield


def _unpadded(parameter: Tensor, whole: Tensor) -> Tensor:
    """A vocabulary that was padded to divide by the ranks, without its padding."""
    whole._padding_dim = parameter._padding_dim  # type: ignore[attr-defined]
    whole._origin_length = parameter._origin_length  # type: ignore[attr-defined]
    whole._current_length = parameter._current_length  # type: ignore[attr-defined]
    return whole.narrow(parameter._padding_dim, 0, parameter._origin_length)  # type: ignore[attr-defined]


def _the_model(module: nn.Module) -> PreTrainedModel:
    """The outermost transformers model inside `module`."""
    for child in module.modules():
        if isinstance(child, PreTrainedModel):
            return child
    raise StrategyError(f"strategy 'colossalai_3d': {type(module).__name__} holds no transformers model to cut")


__all__ = ["HybridOptimizer", "HybridStrategy"]
