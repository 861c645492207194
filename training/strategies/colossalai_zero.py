"""ColossalAI's ZeRO-1/2 optimizer with a step that never waits for the device and, on one rank, never talks.

Sharding, gradient buckets and their overlap with backward are ColossalAI's. Replaced are the parts where 0.5.0 loses
its time or its exactness:

- `step` took the norm gradient by gradient in fp64 with several host syncs, scaled, cast and copied weights tensor by
  tensor. Here masters and moments are flat, so that norm, clipping, update and rounding are a few large kernels, and
  the updated shards of one chunk travel while the next one is computed.
- `backward` ended with a device-wide synchronize. Here `step` makes its own stream wait for the reductions.
- One rank has nobody to reduce with: gradients stay where autograd put them, and the step is the naive strategy's.
- The optimizer's checkpoint lacked the fp32 masters; `shards()` gives them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.zero.low_level import LowLevelZeroOptimizer
from torch import Tensor, nn

from training.config.strategies import OptimizerConfig
from training.optimizer.adamw import (
    CHUNK_ELEMENTS,
    Chunk,
    FlatAdam,
    LossScale,
    MasterAdamW,
    Update,
    begin_update,
    global_norm,
)


@dataclass(frozen=True)
class Shard:
    """This rank's piece of one parameter: elements [start, stop) of it, then `padding` zeros."""

    name: str
    start: int
    stop: int
    padding: int
    state: dict[str, Tensor]


class ZeroOptimizer(LowLevelZeroOptimizer):
    """Shards of masters and moments of `named` parameters, which already have the training precision."""

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        undecayed: Collection[str],
        *,
        stage: int,
        bucket_elements: int,
        cpu_offload: bool,
        group: dist.ProcessGroup | None = None,
        at_step: bool = False,
    ) -> None:
        """`at_step` leaves gradients where autograd puts them and reduces them in `step_with` (ZeRO-1 only)."""
        self.config = config
        self.at_step = at_step
        self.lone = dist.get_world_size(group) == 1
        # a group of one among others (tensor or pipeline ranks) still sums norms over them
        self.alone = MasterAdamW(named, config, undecayed) if dist.get_world_size() == 1 and not cpu_offload else None
        self.flats: list[FlatAdam] = []
        self._names = {id(parameter): name for name, parameter in named}
        self._undecayed = undecayed
        groups = [
            {"params": [p for name, p in named if name not in undecayed], "weight_decay": config.weight_decay},
            {"params": [p for name, p in named if name in undecayed], "weight_decay": 0.0},
        ]
        # the inner optimizer only carries the groups; `step` below does the update on the flat state
        holder = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr)  # type: ignore[arg-type]
        super().__init__(
            optimizer=holder,
            dp_process_group=group,
            reduce_bucket_size=bucket_elements,
            partition_grad=stage == 2 and not self.lone,
            overlap_communication=not self.lone and not at_step,
            cpu_offload=cpu_offload,
            clip_grad_norm=0.0,
            master_weights=True,
        )
        self.mixed_precision_mixin = None  # the loss scale is ours, on the device
        self.device = torch.device(get_accelerator().get_current_device())
        self.home = torch.device("cpu") if cpu_offload else self.device
        self.loss_scale = LossScale(self.device) if self.dtype is torch.float16 else None
        self.step_count = torch.zeros((), dtype=torch.float32, device=self.home)
        if self.alone is not None:
            self.step_count = self.alone.step_count
        widest = max((flat.widest for flat in self.flats), default=0)
        self._wide = torch.empty(widest, dtype=torch.float32, device=self.home)
        pinned = cpu_offload and self.device.type == "cuda"
        self._host = torch.empty(widest, dtype=self.dtype, pin_memory=pinned) if cpu_offload else None

    # building

    def _create_master_param_current_rank(self, param_list: list[nn.Parameter]) -> list[Tensor]:
        """As ColossalAI's, with the shards of one group side by side in one buffer."""
        if self.alone is not None:
            return self._masters_alone(param_list)
        store = self.pid_to_bucket_store[id(param_list[0])]
        ranks, rank = store.world_size, store.local_rank
        shards = []
        for parameter in param_list:
            padding = -parameter.numel() % ranks
            self.record_param_padding_size(parameter, padding)
            padded = parameter.data.contiguous().view(-1)
            if padding:
                padded = torch.nn.functional.pad(padded, [0, padding])
            parameter.data = padded[: parameter.numel()].view(parameter.shape)
            self._working_param_to_padded_working_param[parameter] = padded
            shards.append(padded.chunk(ranks)[rank])
        home = torch.device("cpu" if self._cpu_offload else get_accelerator().get_current_device())
        decay = 0.0 if self._names[id(param_list[0])] in self._undecayed else self.config.weight_decay
        flat = FlatAdam(
            [s.numel() for s in shards], home, weight_decay=decay, chunk_elements=max(1, CHUNK_ELEMENTS // ranks)
        )
        assert flat.master is not None
        masters = flat.pieces(flat.master)
        for master, shard, parameter in zip(masters, shards, param_list, strict=True):
            master.copy_(shard)
            self.link_master_and_working_param(master, parameter)
        self.flats.append(flat)
        return masters

    def _masters_alone(self, param_list: list[nn.Parameter]) -> list[Tensor]:
        """The masters of MasterAdamW, as ColossalAI's books want them."""
        assert self.alone is not None
        state = self.alone.state()
        masters = [state[self._names[id(parameter)]]["master"] for parameter in param_list]
        for parameter, master in zip(param_list, masters, strict=True):
            self.record_param_padding_size(parameter, 0)
            self._working_param_to_padded_working_param[parameter] = parameter.data.view(-1)
            self.link_master_and_working_param(master, parameter)
        return masters

    # one step

    def backward(self, loss: Tensor, inputs: Any = None, retain_graph: bool = False) -> None:
        scaled = loss if self.loss_scale is None else loss * self.loss_scale.scale
        scaled.backward(inputs=inputs, retain_graph=retain_graph)
        if self.require_grad_sync and not self.lone and not self.at_step:
            self._reduce_grad(self._partition_grads)

    def step_with(self, lr: float) -> Tensor:
        """Clips, updates, publishes the new weights and clears the gradients; returns the norm before clipping."""
        if self.alone is not None:
            return self.alone.step(lr, loss_scale=self.loss_scale)
        if self.at_step and not self.lone:
            self._reduce_grad(False)
        if not self.lone:
            for store in self.pg_to_bucket_store.values():
                get_accelerator().current_stream().wait_stream(store.comm_stream)
        with torch.no_grad():
            gradients = [self._gradients(index) for index in range(len(self.flats))]
            norm = self._norm(gradients)
            if self._cpu_offload:
                scale = None if self.loss_scale is None else self.loss_scale
                update, norm = begin_update(norm.to(self.device), lr, self.config, self.step_count, scale)
                update = Update(lr, update.divisor.cpu(), update.not_finite.cpu(), self.step_count)
            else:
                update, norm = begin_update(norm, lr, self.config, self.step_count, self.loss_scale)
            publish = _Publisher(self)
            for index, flat in enumerate(self.flats):
                for chunk in flat.chunks:
                    own = gradients[index][chunk.first : chunk.last]
                    master = flat.update_chunk(chunk, self._at_home(own), self._wide, update, self.config)
                    publish.chunk(index, chunk, master)
            publish.finish()
            self.step_count -= update.not_finite
            if self.loss_scale is not None:
                self.loss_scale.update(update.not_finite.to(self.device))
        self.zero_grad()
        return norm

    def _norm(self, gradients: list[list[Tensor]]) -> Tensor:
        """Of all ranks' shards together; `gradients` are this rank's, group by group."""
        norm = global_norm([g for group in gradients for g in group])
        if not self.lone:
            square = norm.square()
            for group in self.pg_to_param_list:
                dist.all_reduce(square, group=group)
            norm = square.sqrt()
        return norm

    def _gradients(self, index: int) -> list[Tensor]:
        """This rank's flattened gradient shards of one group; zeros where a parameter took no part."""
        found = []
        for parameter, piece in zip(self._working_param_groups[index], self._shards_of(index), strict=True):
            if self.lone:
                own = None if parameter.grad is None else parameter.grad.reshape(-1)
            else:
                store = self.pid_to_grad_store[id(parameter)]
                held = store.get_partitioned_gradients_by_param_id(index, id(parameter))
                own = held[0 if self._partition_grads else store.local_rank] if held else None
            found.append(torch.zeros_like(piece) if own is None else own)
        return found

    def _shards_of(self, index: int) -> list[Tensor]:
        """The slices of the padded weights that this rank updates, flattened."""
        found = []
        for parameter in self._working_param_groups[index]:
            store = self.pid_to_bucket_store[id(parameter)]
            padded = self._working_param_to_padded_working_param[parameter]
            found.append(padded.chunk(store.world_size)[store.local_rank])
        return found

    def _at_home(self, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients where the masters are: offloaded ones cross to the host in one copy."""
        if self._host is None:
            return gradients
        sizes = [g.numel() for g in gradients]
        packed = torch.cat(gradients) if len(gradients) > 1 else gradients[0]
        host = self._host[: sum(sizes)]
        host.copy_(packed)
        return list(host.split(sizes))

    # state

    def shards(self) -> list[Shard]:
        """This rank's masters and moments, by parameter name."""
        if self.alone is not None:
            state = self.alone.state()
            return [Shard(name, 0, entry["master"].numel(), 0, entry) for name, entry in state.items()]
        found = []
        for index, flat in enumerate(self.flats):
            assert flat.master is not None
            pieces = zip(
                self._working_param_groups[index], flat.pieces(flat.master), flat.pieces(flat.exp_avg),
                flat.pieces(flat.exp_avg_sq), strict=True,
            )  # fmt: skip
            for parameter, master, exp_avg, exp_avg_sq in pieces:
                rank = self.pid_to_bucket_store[id(parameter)].local_rank
                start = min(rank * master.numel(), parameter.numel())
                stop = min(start + master.numel(), parameter.numel())
                state = {"master": master, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
                padding = master.numel() - (stop - start)
                found.append(Shard(self._names[id(parameter)], start, stop, padding, state))
        return found

    @torch.no_grad()
    def refresh_weights(self) -> None:
        """Rounds the masters into the weights of every rank, after the masters were written from outside."""
        if self.alone is not None:
            self.alone.refresh_weights()
            return
        publish = _Publisher(self)
        for index, flat in enumerate(self.flats):
            assert flat.master is not None
            for chunk in flat.chunks:
                publish.chunk(index, chunk, flat.master[chunk.start : chunk.stop])
        publish.finish()


class _Publisher:
    """Brings updated masters into the weights of all ranks, one chunk under way while the next is computed."""

    def __init__(self, optimizer: ZeroOptimizer) -> None:
        self.optimizer = optimizer
        self.pending: tuple[Any, list[tuple[Tensor, Tensor]]] | None = None

    def chunk(self, index: int, chunk: Chunk, master: Tensor) -> None:
        zero = self.optimizer
        weights = zero._working_param_groups[index][chunk.first : chunk.last]
        sizes = zero.flats[index].sizes[chunk.first : chunk.last]
        if zero.lone:
            self._scatter([(w.data.view(-1), m) for w, m in zip(weights, master.split(sizes), strict=True)])
            return
        store = zero.pid_to_bucket_store[id(weights[0])]
        own = master.to(device=zero.device, dtype=zero.dtype)
        whole = torch.empty(own.numel() * store.world_size, dtype=zero.dtype, device=zero.device)
        work = dist.all_gather_into_tensor(whole, own, group=store.torch_pg, async_op=True)
        columns = whole.view(store.world_size, own.numel()).split(sizes, dim=1)
        padded = [zero._working_param_to_padded_working_param[w] for w in weights]
        targets = [p.view(store.world_size, size) for p, size in zip(padded, sizes, strict=True)]
        self.finish()
        self.pending = (work, list(zip(targets, columns, strict=True)))

    def finish(self) -> None:
        if self.pending is not None:
            work, pairs = self.pending
            work.wait()
            self._scatter(pairs)
            self.pending = None

    @staticmethod
    def _scatter(pairs: list[tuple[Tensor, Tensor]]) -> None:
        torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])
