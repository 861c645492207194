"""AdamW for low-precision weights: fp32 masters and moments in flat buffers, clipping inside the update, no host sync.

Weights in bf16 or fp16 can't take the small steps of fine-tuning (at lr 1e-6 most of them round to nothing), so the
update is done on an fp32 copy and rounded into the weights afterwards. fp32 weights are their own masters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.config.strategies import OptimizerConfig
from training.optimizer.kernels import PieceKernels

CHUNK_ELEMENTS = 64 * 1024 * 1024
"""Gradients are widened to fp32 in pieces of this many elements (256 MiB), not all at once."""


def undecayed(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay leaves alone: biases, norms, and embeddings (tied heads with them).

    Ask before the module is wrapped or cut, and give the names to the optimizer.
    """
    tables = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters(False)}
    named = module.named_parameters(remove_duplicate=False)
    return frozenset(name for name, p in named if p.ndim < 2 or id(p) in tables)


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all `gradients` together, as an fp32 scalar on their device. Never waits for the device."""
    norms = torch._foreach_norm(list(gradients), 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this `norm` are divided by to be clipped to `max_norm` (1 when they are short enough)."""
    if max_norm <= 0:
        return torch.ones_like(norm)
    return (norm / max_norm).clamp_(min=1.0)


@dataclass(frozen=True)
class Update:
    """One optimizer step's scalars. `divisor` divides the gradients; a `not_finite` of 1 leaves everything as it is."""

    lr: float
    divisor: Tensor
    not_finite: Tensor
    step: Tensor


def adamw_(
    masters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    update: Update,
    config: OptimizerConfig,
    weight_decay: float,
) -> None:
    """torch's fused AdamW (Loshchilov & Hutter) on fp32 tensors, in place; `gradients` are overwritten."""
    torch._fused_adamw_(
        masters, gradients, exp_avgs, exp_avg_sqs, [], [update.step] * len(masters),
        lr=update.lr, beta1=config.betas[0], beta2=config.betas[1], eps=config.eps, weight_decay=weight_decay,
        amsgrad=False, maximize=False, grad_scale=update.divisor, found_inf=update.not_finite,
    )  # fmt: skip


class LossScale:
    """Dynamic loss scale for fp16, kept on the device: doubled after `interval` good steps, halved after a bad one."""

    def __init__(self, device: torch.device, *, initial: float = 2.0**16, interval: int = 1000) -> None:
        self.scale = torch.full((), initial, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)
        self.interval = interval

    def update(self, found_inf: Tensor) -> None:
        torch._amp_update_scale_(self.scale, self.good_steps, found_inf, 2.0, 0.5, self.interval)
        self.scale.clamp_(min=1.0, max=2.0**24)

    def state(self) -> dict[str, float]:
        return {"scale": float(self.scale), "good_steps": int(self.good_steps)}

    def restore(self, state: dict[str, float]) -> None:
        self.scale.fill_(state["scale"])
        self.good_steps.fill_(int(state["good_steps"]))


@dataclass(frozen=True)
class Chunk:
    """Neighbouring pieces `first` to `last` (exclusive), which are elements [start, stop) of the flat buffers."""

    first: int
    last: int
    start: int
    stop: int


class FlatAdam:
    """fp32 masters and moments of a row of flattened pieces, and the update of one chunk of them.

    `masters=False` when the weights are fp32 and are their own masters.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        device: torch.device,
        *,
        weight_decay: float,
        masters: bool = True,
        chunk_elements: int = CHUNK_ELEMENTS,
    ) -> None:
        self.sizes = list(sizes)
        self.weight_decay = weight_decay
        self.chunks: list[Chunk] = []
        first = start = stop = 0
        for index, size in enumerate(self.sizes):
            if index > first and stop + size - start > chunk_elements:
                self.chunks.append(Chunk(first, index, start, stop))
                first, start = index, stop
            stop += size
        self.chunks.append(Chunk(first, len(self.sizes), start, stop))
        self.master = torch.zeros(stop, dtype=torch.float32, device=device) if masters else None
        self.exp_avg = torch.zeros(stop, dtype=torch.float32, device=device)
        self.exp_avg_sq = torch.zeros(stop, dtype=torch.float32, device=device)

    @property
    def widest(self) -> int:
        return max(chunk.stop - chunk.start for chunk in self.chunks)

    def pieces(self, flat: Tensor, chunk: Chunk | None = None) -> list[Tensor]:
        """`flat` (all of it, or one chunk's part) cut into the pieces, still flattened."""
        if chunk is None:
            return list(flat.split(self.sizes))
        return list(flat[chunk.start : chunk.stop].split(self.sizes[chunk.first : chunk.last]))

    def update_chunk(
        self, chunk: Chunk, gradients: Sequence[Tensor], wide: Tensor, update: Update, config: OptimizerConfig
    ) -> Tensor:
        """Updates a chunk from gradients of any dtype, with `wide` as fp32 scratch; returns the chunk's masters."""
        assert self.master is not None
        scratch = wide[: chunk.stop - chunk.start]
        split = scratch.split(self.sizes[chunk.first : chunk.last])
        torch._foreach_copy_([piece.view(g.shape) for piece, g in zip(split, gradients, strict=True)], list(gradients))
        part = slice(chunk.start, chunk.stop)
        master = self.master[part]
        adamw_([master], [scratch], [self.exp_avg[part]], [self.exp_avg_sq[part]], update, config, self.weight_decay)
        return master


class MasterAdamW:
    """AdamW over named parameters of any float dtype, in place; everything that a resume needs is addressable by name.

    A step whose gradient norm is not finite changes nothing: a bad batch can't reach the weights. Parameters without a
    gradient count as having a zero one.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, undecayed: Collection[str]
    ) -> None:
        self.config = config
        grouped: dict[tuple[torch.dtype, torch.device, bool], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in named:
            if parameter.requires_grad:
                key = (parameter.dtype, parameter.device, name not in undecayed)
                grouped.setdefault(key, []).append((name, parameter))
        if not grouped:
            raise ValueError("nothing to train: no parameter of the model requires a gradient")
        self.groups: list[tuple[list[tuple[str, nn.Parameter]], FlatAdam]] = []
        self.kernels: list[PieceKernels | None] = []
        for (dtype, device, decay), members in grouped.items():
            flat = FlatAdam(
                [p.numel() for _, p in members], device,
                weight_decay=config.weight_decay if decay else 0.0, masters=dtype != torch.float32,
            )  # fmt: skip
            if flat.master is not None:
                self._copy(flat.pieces(flat.master), [p.detach() for _, p in members])
            self.groups.append((members, flat))
            possible = PieceKernels.possible(dtype, device)
            self.kernels.append(PieceKernels(flat.sizes, dtype, device) if possible else None)
        self.device = self.groups[0][1].exp_avg.device
        self.step_count = torch.zeros((), dtype=torch.float32, device=self.device)
        self._betas = torch.tensor(config.betas, dtype=torch.float64, device=self.device)
        self._wide = torch.empty(0, dtype=torch.float32, device=self.device)

    @staticmethod
    def _copy(flat: list[Tensor], shaped: list[Tensor], *, into_flat: bool = True) -> None:
        views = [piece.view(tensor.shape) for piece, tensor in zip(flat, shaped, strict=True)]
        torch._foreach_copy_(views, shaped) if into_flat else torch._foreach_copy_(shaped, views)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for members, _ in self.groups for _, parameter in members]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, *, loss_scale: LossScale | None = None) -> Tensor:
        """Clips, updates and clears the gradients; returns their norm before clipping (fp32 scalar on the device)."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ready = [
            kernels is not None and kernels.bind([p for _, p in members], [p.grad for _, p in members])  # type: ignore[misc]
            for kernels, (members, _) in zip(self.kernels, self.groups, strict=True)
        ]
        norms = [
            kernels.norm() if bound and kernels is not None else global_norm([p.grad for _, p in members])  # type: ignore[misc]
            for bound, kernels, (members, _) in zip(ready, self.kernels, self.groups, strict=True)
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
        update, norm = begin_update(norm, lr, self.config, self.step_count, loss_scale)
        corrections = 1.0 - self._betas**update.step if any(ready) else None
        for bound, kernels, (members, flat) in zip(ready, self.kernels, self.groups, strict=True):
            if bound and kernels is not None and flat.master is not None and corrections is not None:
                kernels.adamw(
                    flat.master, flat.exp_avg, flat.exp_avg_sq, update.divisor, update.not_finite, corrections,
                    lr=lr, betas=self.config.betas, eps=self.config.eps, weight_decay=flat.weight_decay,
                )  # fmt: skip
            else:
                self._update_plainly(members, flat, update)
        end_update(update, loss_scale)
        self.zero_grad()
        return norm

    def _update_plainly(self, members: list[tuple[str, nn.Parameter]], flat: FlatAdam, update: Update) -> None:
        """One group by torch's own fused AdamW, gradients widened to fp32 chunk by chunk."""
        if flat.master is not None and self._wide.numel() < flat.widest:
            self._wide = torch.empty(flat.widest, dtype=torch.float32, device=self.device)
        for chunk in flat.chunks:
            weights = [parameter for _, parameter in members[chunk.first : chunk.last]]
            gradients = [p.grad for p in weights if p.grad is not None]
            if flat.master is None:
                first = [m.view(p.shape) for m, p in zip(flat.pieces(flat.exp_avg, chunk), weights, strict=True)]
                second = [m.view(p.shape) for m, p in zip(flat.pieces(flat.exp_avg_sq, chunk), weights, strict=True)]
                adamw_([p.data for p in weights], gradients, first, second, update, self.config, flat.weight_decay)
            else:
                flat.update_chunk(chunk, gradients, self._wide, update, self.config)
                self._copy(flat.pieces(flat.master, chunk), list(weights), into_flat=False)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Per parameter name: flat fp32 `master`, `exp_avg`, `exp_avg_sq` (views, not copies)."""
        found: dict[str, dict[str, Tensor]] = {}
        for members, flat in self.groups:
            first, second = flat.pieces(flat.exp_avg), flat.pieces(flat.exp_avg_sq)
            if flat.master is None:
                masters = [parameter.detach().view(-1) for _, parameter in members]
            else:
                masters = flat.pieces(flat.master)
            for (name, _), master, exp_avg, exp_avg_sq in zip(members, masters, first, second, strict=True):
                found[name] = {"master": master, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        return found

    @torch.no_grad()
    def refresh_weights(self) -> None:
        """Rounds the masters into the weights, after the masters were written from outside."""
        for members, flat in self.groups:
            if flat.master is not None:
                self._copy(flat.pieces(flat.master), [parameter for _, parameter in members], into_flat=False)


def begin_update(
    scaled_norm: Tensor, lr: float, config: OptimizerConfig, step_count: Tensor, loss_scale: LossScale | None
) -> tuple[Update, Tensor]:
    """Counts the step; gives its scalars and the true gradient norm, all as device tensors."""
    norm = scaled_norm if loss_scale is None else scaled_norm / loss_scale.scale
    divisor = clip_divisor(norm, config.max_grad_norm)
    if loss_scale is not None:
        divisor = divisor * loss_scale.scale
    step_count += 1
    return Update(lr=lr, divisor=divisor, not_finite=(~torch.isfinite(norm)).float(), step=step_count), norm


def end_update(update: Update, loss_scale: LossScale | None) -> None:
    """Takes a skipped step out of the count and moves the loss scale."""
    update.step.sub_(update.not_finite)
    if loss_scale is not None:
        loss_scale.update(update.not_finite)
