"""Gemini through ColossalAI's Booster: weights, gradients and states in chunks over ranks, on GPU or host.

Chunks, placement and their movement are ColossalAI's. Replaced are the parts where 0.5.0 loses its time or exactness:

- The optimizer step runs torch's fused AdamW on whole chunks, with norm and clipping on the device. ColossalAI's took a
  host sync for each chunk's norm and needs HybridAdam, which nvcc builds at the first start.
- fp32 masters start from the weights as loaded, not from their rounded copy, and are saved.
- Blocks are gathered as a whole, so they may be compiled (see colossalai_units).
- One rank that offloads nothing keeps its chunks gathered: there is nobody to scatter them over.
- An evaluation before the first step works under placement "auto", too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.booster import Booster
from colossalai.booster.plugin import GeminiPlugin
from colossalai.zero.gemini import gemini_optimizer
from colossalai.zero.gemini.chunk import Chunk, ChunkManager
from colossalai.zero.gemini.gemini_ddp import GeminiDDP
from colossalai.zero.gemini.gemini_optimizer import GeminiOptimizer
from torch import Tensor, nn

from training.config.strategies import Capabilities, OptimizerConfig, StrategyConfig
from training.optimizer.adamw import LossScale, Update, adamw_, begin_update, global_norm, undecayed
from training.strategies.base import Schedule, Trained, buffers_kept
from training.strategies.colossalai import ShardedStrategy, wide_weights
from training.strategies.colossalai_units import install_units, replaced, slots_of
from training.strategies.colossalai_zero import Shard
from training.strategies.world import World

GATHERED_SHARE = 0.8
"""Part of the GPU's free memory that whole weights may take; the rest is for what is done with them."""


class _Holder(torch.optim.Optimizer):
    """Carries parameters into GeminiOptimizer, which accepts only optimizers on its own list; never steps."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise NotImplementedError("ChunkOptimizer updates the chunks itself")


# GeminiOptimizer checks `type(optim) in _AVAIL_OPTIM_LIST` (HybridAdam, CPUAdam, FusedAdam: all need nvcc)
gemini_optimizer._AVAIL_OPTIM_LIST.add(_Holder)
# Four passes over every reduced chunk; `ChunkOptimizer.step_with` asks the norm instead
Chunk.has_inf_or_nan = property(lambda chunk: False)
_rearrange = ChunkManager.rearrange_accumulated_grad_chunk


def _rearrange_rightly(manager: ChunkManager, chunk: Chunk) -> Chunk:
    """0.5.0 scales gradients accumulated so far by the number of ranks before the next reduction divides by it. That is
    right for a shard, which one rank adds; a chunk that every rank holds whole is added by all of them already."""
    gradients = _rearrange(manager, chunk)
    if chunk.keep_gathered:
        gradients.cuda_global_chunk.div_(chunk.pg_size)
    return gradients


ChunkManager.rearrange_accumulated_grad_chunk = _rearrange_rightly


class ChunkedModel(GeminiDDP):  # type: ignore[misc]
    """GeminiDDP whose backward doesn't wait for the device, and which can be evaluated before it was trained."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        untried = self.gemini_manager.need_warmup and self.gemini_manager.is_warmup()
        if not torch.is_grad_enabled() and untried:
            with self.gathered():
                return self.module(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def _post_backward(self) -> None:
        stream = self.async_reduce_stream
        offloads = any(chunk.device_type == "cpu" for chunk in self.chunk_manager.get_chunks(self.fp32_params))
        if stream is not None and not offloads:
            get_accelerator().current_stream().wait_stream(stream)
            self.enable_async_reduce = False  # for the parent, which would wait for the device
        try:
            super()._post_backward()
        finally:
            self.enable_async_reduce = stream is not None

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All weights whole and on the device, as plain parameters of the module."""
        for chunk in self.chunk_manager.get_chunks(self.fp16_params):
            self.chunk_manager.access_chunk(chunk)
        slots, parameters = slots_of(self.module)
        whole = {id(p): nn.Parameter(_payload(p), requires_grad=False) for p in parameters}
        try:
            with replaced(slots, [whole[id(p)] for p in parameters]):
                yield
        finally:
            self._post_forward()


def _payload(parameter: nn.Parameter) -> Tensor:
    with torch._C.DisableTorchFunction():
        return parameter.detach().as_subclass(torch.Tensor)


@dataclass
class _Owned:
    """A range of a chunk's payload that belongs to one parameter: elements [start, stop) of the parameter."""

    name: str
    begin: int
    end: int
    start: int
    decay: float


class ChunkOptimizer(GeminiOptimizer):  # type: ignore[misc]
    """AdamW on the payloads of Gemini's chunks, wherever they are."""

    def __init__(
        self,
        module: ChunkedModel,
        named: list[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        undecayed: Collection[str],
    ) -> None:
        super().__init__(_Holder([p for _, p in named], config.lr), module, max_norm=0.0)
        self.config = config
        self.device = torch.device(get_accelerator().get_current_device())
        self.loss_scale = LossScale(self.device) if module.mixed_precision is torch.float16 else None
        self.step_count = torch.zeros((), dtype=torch.float32, device=self.device)
        self.owned: dict[Chunk, list[_Owned]] = {}
        for index, (name, _) in enumerate(named):
            if index in self.id_to_fake_params:
                chunk = self.param_to_chunk16[self.id_to_fake_params[index]]
                begin, start, size = self.get_offsets(index)
                decay = 0.0 if name in undecayed else config.weight_decay
                self.owned.setdefault(chunk, []).append(_Owned(name, begin, begin + size, start, decay))
        self.moments: dict[Chunk, tuple[Tensor, Tensor]] = {
            chunk: (torch.zeros_like(self._masters(chunk)), torch.zeros_like(self._masters(chunk)))
            for chunk in self.owned
        }
        self._wide: dict[torch.device, Tensor] = {}

    @staticmethod
    def _masters(chunk: Chunk) -> Tensor:
        masters: Tensor = chunk.paired_chunk.payload
        return masters

    def _gradients(self, chunk: Chunk) -> Tensor:
        holder = chunk if self.chunk_manager.reuse_fp16_chunk else chunk.grad_chunk
        gradients: Tensor = holder.payload
        return gradients

    def backward(self, loss: Tensor) -> None:
        self.module.backward(loss if self.loss_scale is None else loss * self.loss_scale.scale)

    @torch.no_grad()
    def step_with(self, lr: float) -> Tensor:
        """Clips, updates and rounds into the weights; returns the norm before clipping."""
        self._refuse_unused()
        update, norm = begin_update(self._norm(), lr, self.config, self.step_count, self.loss_scale)
        on_host: Update | None = None
        for chunk, owned in self.owned.items():
            masters, gradients = self._masters(chunk), self._gradients(chunk)
            if masters.device.type == self.device.type:
                scalars = update
            else:
                on_host = on_host or Update(lr, update.divisor.cpu(), update.not_finite.cpu(), update.step.cpu())
                scalars = on_host
            wide = self._scratch(masters)
            wide.copy_(gradients)
            exp_avg, exp_avg_sq = self.moments[chunk]
            for begin, end, decay in _joined(owned):
                part = slice(begin, end)
                adamw_([masters[part]], [wide[part]], [exp_avg[part]], [exp_avg_sq[part]], scalars, self.config, decay)
        self.round_masters()
        self.step_count -= update.not_finite
        if self.loss_scale is not None:
            self.loss_scale.update(update.not_finite)
        self.zero_grad()
        self.chunk_manager.accumulating_grads = False
        return norm

    def _refuse_unused(self) -> None:
        unused = [n for p, n in self.module.param2name.items() if not getattr(p, "_gemini_reduced", True)]
        if unused:
            raise RuntimeError(
                f"Gemini needs a gradient for every trained weight and {unused[0]} (of {len(unused)}) took no part in "
                "the loss; freeze it (requires_grad False) before training"
            )

    def _norm(self) -> Tensor:
        """Over all ranks: chunks that each rank holds whole count once, shards are summed."""
        whole: list[Tensor] = []
        shards: list[Tensor] = []
        for chunk, owned in self.owned.items():
            gradients = self._gradients(chunk)
            parts = [gradients[begin:end] for begin, end, _ in _joined(owned)]
            (whole if chunk.keep_gathered else shards).append(global_norm(parts).to(self.device))
        square = torch.zeros((), device=self.device)
        if shards:
            square = torch.stack(shards).square().sum()
        if self.module.zero_group.size() > 1:
            dist.all_reduce(square, group=self.module.zero_group)
        if whole:
            square = square + torch.stack(whole).square().sum()
        return square.sqrt()

    def _scratch(self, like: Tensor) -> Tensor:
        held = self._wide.get(like.device)
        if held is None or held.numel() < like.numel():
            held = self._wide[like.device] = torch.empty_like(like)
        return held[: like.numel()]

    @torch.no_grad()
    def round_masters(self) -> None:
        for chunk in self.chunk16_set:
            if chunk.device_type == chunk.paired_chunk.device_type:
                chunk.optim_update()
            else:  # loading before the first step: masters are offloaded, the weights were not moved yet
                chunk.payload.copy_(chunk.paired_chunk.payload)

    def shards(self) -> list[Shard]:
        """This rank's masters and moments by parameter name, all of them for chunks that every rank holds whole."""
        found = []
        for chunk, owned in self.owned.items():
            masters, (exp_avg, exp_avg_sq) = self._masters(chunk), self.moments[chunk]
            for own in owned:
                part = slice(own.begin, own.end)
                state = {"master": masters[part], "exp_avg": exp_avg[part], "exp_avg_sq": exp_avg_sq[part]}
                found.append(Shard(own.name, own.start, own.start + own.end - own.begin, 0, state))
        return found


def _joined(owned: list[_Owned]) -> list[tuple[int, int, float]]:
    """Neighbouring ranges with the same decay as one."""
    joined: list[tuple[int, int, float]] = []
    for own in owned:
        if joined and joined[-1][1] == own.begin and joined[-1][2] == own.decay:
            joined[-1] = (joined[-1][0], own.end, own.decay)
        else:
            joined.append((own.begin, own.end, own.decay))
    return joined


class GeminiStrategy(ShardedStrategy):
    """Static shares or "auto" placement; accumulation keeps gradients in chunks of their own."""

    def __init__(
        self, config: StrategyConfig, world: World, can: Capabilities, precision: str, *, accumulation: int = 1
    ) -> None:
        super().__init__(config, world, can, precision)
        self.accumulation = accumulation

    def prepare(
        self, module: nn.Module, optimizer: OptimizerConfig, schedule: Schedule, *, name: str = "model"
    ) -> Trained:
        wide = wide_weights(module)
        auto = self.config.name == "colossalai_gemini_auto"
        lone = self.world_size == 1 and not auto and not self.config.offload_optimizer
        chunk_m = self.config.bucket_mb / 2
        plugin = GeminiPlugin(
            chunk_init_device=self.device,
            placement_policy="auto" if auto else "static",
            enable_gradient_accumulation=self.accumulation > 1,
            shard_param_frac=1.0,
            offload_optim_frac=0.0 if auto else self.config.offload_optimizer,
            offload_param_frac=0.0 if auto else self.config.offload_parameters,
            precision=self.precision,
            master_weights=True,
            pin_memory=(auto or self.config.offload_optimizer > 0) and self.device.type == "cuda",
            strict_ddp_mode=lone,
            search_range_m=chunk_m / 4,
            min_chunk_size_m=chunk_m,
            max_norm=0.0,
            # on one rank a chunk is copied and freed on another stream than the one that goes on using its memory
            enable_async_reduce=self.world_size > 1 and self.device.type == "cuda",
        )
        named, kept = [(key, p) for key, p in module.named_parameters() if p.requires_grad], undecayed(module)
        with buffers_kept(module, self.device):
            model = ChunkedModel(
                module, **plugin.gemini_config, zero_group=plugin.zero_group, extra_dp_group=plugin.extra_dp_group
            )
        model.hooks.append(install_units(module))
        # boost keeps a model and an optimizer that are already wrapped, so ours go through the front door
        model, boosted, *_ = Booster(plugin=plugin).boost(
            model=model,
            optimizer=ChunkOptimizer(model, named, optimizer, kept),
            criterion=None,
            dataloader=None,
            lr_scheduler=None,
        )
        trained = Trained(name, model, module, boosted, optimizer, schedule)
        trained.extra = plugin  # it owns the process groups and ends them when it is collected
        for shard in boosted.shards():
            if shard.name in wide:
                shard.state["master"].copy_(wide[shard.name].reshape(-1)[shard.start : shard.stop])
        return trained

    def accumulate(self, trained: Trained, *, last: bool) -> AbstractContextManager[None]:
        if not last and self.accumulation == 1:
            raise ValueError("Gemini accumulates gradients only when the strategy was opened with accumulation > 1")
        return nullcontext()

    def backward(self, trained: Trained, loss: Tensor) -> None:
        trained.optimizer.backward(loss)

    def step(self, trained: Trained) -> Tensor:
        norm: Tensor = trained.optimizer.step_with(trained.learning_rate)
        trained.steps += 1
        return norm

    def shows_whole(self, trained: Trained) -> bool:
        model: ChunkedModel = trained.module
        if self.device.type != "cuda":
            return True
        chunks = model.chunk_manager.get_chunks(model.fp16_params)
        missing = sum(chunk.chunk_mem for chunk in chunks if not chunk.is_gathered)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        fits = missing < GATHERED_SHARE * (torch.cuda.mem_get_info(self.device)[0] + unused)
        return float(self.all_reduce_sum(torch.tensor([0.0 if fits else 1.0]))) == 0

    @contextmanager
    def generation(self, trained: Trained) -> Iterator[nn.Module]:
        with trained.module.gathered(), super().generation(trained) as inner:
            yield inner

    def _shards(self, trained: Trained) -> Iterable[Shard]:
        return trained.optimizer.shards()

    def _refresh(self, trained: Trained) -> None:
        trained.optimizer.round_masters()

    def full_state_dict(self, trained: Trained, *, masters: bool = False) -> dict[str, Tensor]:
        model: ChunkedModel = trained.module
        dtype = torch.float32 if masters else self.dtype
        values: dict[int, Tensor] = {}
        narrow = dict(zip(map(id, model.fp32_params), map(id, model.fp16_params), strict=True))
        for chunk in model.chunk_manager.get_chunks(model.fp32_params):
            whole = chunk.payload.cpu()
            if not chunk.is_gathered and chunk.pg_size > 1:
                parts = torch.empty(chunk.chunk_size, dtype=whole.dtype)
                dist.all_gather_into_tensor(parts, whole.contiguous(), group=chunk.torch_pg)
                whole = parts
            if self.is_main:
                for wide_parameter, info in chunk.tensors_info.items():  # rounded at once: fp32 takes twice the room
                    piece = whole[info.offset : info.end].view(wide_parameter.shape)
                    values[narrow[id(wide_parameter)]] = piece.to(dtype)
        if not self.is_main:
            return {}
        kept = {name for name, _ in trained.inner.named_buffers()} & set(trained.inner.state_dict())
        weights = {
            name: values[id(p)] if id(p) in values else _payload(p)
            for name, p in trained.inner.named_parameters(remove_duplicate=False)
        }
        return weights | {name: b for name, b in trained.inner.named_buffers() if name in kept}
