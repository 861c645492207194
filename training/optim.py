"""AdamW for low-precision weights: fp32 masters and moments in flat buffers, clipping inside the update, no host sync.

Weights in bf16 or fp16 can't take the small steps of fine-tuning (at lr 1e-6 most of them round to nothing), so the
update is done on an fp32 copy and rounded into the weights afterwards. fp32 weights are their own masters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.strategies.config import OptimizerConfig

CHUNK_ELEMENTS = 64 * 1024 * 1024
"""Gradients are widened to fp32 in pieces of this many elements (256 MiB), not all at once."""


def decays(parameter: Tensor) -> bool:
    """Weight decay is for matrices and embeddings; biases and norms are left alone."""
    return parameter.ndim >= 2


def global_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all `gradients` together, as an fp32 scalar on their device. Raises nothing, never waits."""
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this `norm` are divided by to be clipped to `max_norm` (1 when they are short enough)."""
    if max_norm <= 0:
        return torch.ones_like(norm)
    return (norm / max_norm).clamp_(min=1.0)


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


@dataclass
class _Chunk:
    """Neighbouring parameters of one group: [start, stop) of the group's flat buffers."""

    parameters: list[nn.Parameter]
    start: int
    stop: int


class _Group:
    """Parameters that share dtype, device and weight decay, with flat fp32 state for all of them."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], weight_decay: float) -> None:
        self.named = named
        self.weight_decay = weight_decay
        first = named[0][1]
        total = sum(p.numel() for _, p in named)
        self.has_masters = first.dtype != torch.float32
        self.exp_avg = torch.zeros(total, dtype=torch.float32, device=first.device)
        self.exp_avg_sq = torch.zeros_like(self.exp_avg)
        self.master = torch.empty_like(self.exp_avg) if self.has_masters else None
        self.spans: list[tuple[int, int]] = []
        self.chunks: list[_Chunk] = []
        offset = 0
        for _, parameter in named:
            stop = offset + parameter.numel()
            if not self.chunks or stop - self.chunks[-1].start > CHUNK_ELEMENTS:
                self.chunks.append(_Chunk([], offset, offset))
            self.chunks[-1].parameters.append(parameter)
            self.chunks[-1].stop = stop
            self.spans.append((offset, stop))
            offset = stop
        if self.master is not None:
            for (_, parameter), (start, stop) in zip(named, self.spans, strict=True):
                self.master[start:stop].copy_(parameter.detach().reshape(-1))

    def views(self, flat: Tensor, chunk: _Chunk) -> list[Tensor]:
        """`flat[chunk]` cut into tensors shaped like the chunk's parameters."""
        pieces = flat[chunk.start : chunk.stop].split([p.numel() for p in chunk.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, chunk.parameters, strict=True)]


class MasterAdamW:
    """AdamW over named parameters of any float dtype, in place, with everything that a resume needs addressable by name.

    A step whose gradient norm is not finite changes nothing but the count of skipped steps: a bad batch can't reach the
    weights. Parameters without a gradient count as having a zero one.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> None:
        self.config = config
        grouped: dict[tuple[torch.dtype, torch.device, bool], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in named:
            if parameter.requires_grad:
                key = (parameter.dtype, parameter.device, decays(parameter))
                grouped.setdefault(key, []).append((name, parameter))
        if not grouped:
            raise ValueError("nothing to train: no parameter of the model requires a gradient")
        self.groups = [
            _Group(members, config.weight_decay if decay else 0.0) for (_, _, decay), members in grouped.items()
        ]
        self.device = self.groups[0].exp_avg.device
        self.step_count = torch.zeros((), dtype=torch.float32, device=self.device)
        widest = max(
            (chunk.stop - chunk.start for group in self.groups if group.has_masters for chunk in group.chunks),
            default=0,
        )
        self._wide = torch.empty(widest, dtype=torch.float32, device=self.device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.groups for _, parameter in group.named]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, *, loss_scale: LossScale | None = None) -> Tensor:
        """Clips, updates and clears the gradients; returns their norm before clipping (fp32 scalar on the device)."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = global_norm([p.grad for p in self.parameters])  # type: ignore[misc]
        if loss_scale is not None:
            norm = norm / loss_scale.scale
        divisor = clip_divisor(norm, self.config.max_grad_norm)
        if loss_scale is not None:
            divisor = divisor * loss_scale.scale
        not_finite = (~torch.isfinite(norm)).float()
        self.step_count += 1
        for group in self.groups:
            self._update(group, lr, divisor, not_finite)
        self.step_count -= not_finite
        if loss_scale is not None:
            loss_scale.update(not_finite)
        self.zero_grad()
        return norm

    def _update(self, group: _Group, lr: float, divisor: Tensor, not_finite: Tensor) -> None:
        for chunk in group.chunks:
            gradients = [p.grad for p in chunk.parameters]
            if group.master is None:
                updated: list[Tensor] = [p.data for p in chunk.parameters]
                first, second = group.views(group.exp_avg, chunk), group.views(group.exp_avg_sq, chunk)
            else:
                wide = self._wide[: chunk.stop - chunk.start]
                shapes = [piece.view(p.shape) for piece, p in zip(
                    wide.split([p.numel() for p in chunk.parameters]), chunk.parameters, strict=True
                )]  # fmt: skip
                torch._foreach_copy_(shapes, gradients)  # type: ignore[arg-type]
                gradients = [wide]
                updated = [group.master[chunk.start : chunk.stop]]
                first, second = [group.exp_avg[chunk.start : chunk.stop]], [group.exp_avg_sq[chunk.start : chunk.stop]]
            torch._fused_adamw_(
                updated, gradients, first, second, [], [self.step_count] * len(updated),
                lr=lr, beta1=self.config.betas[0], beta2=self.config.betas[1], eps=self.config.eps,
                weight_decay=group.weight_decay, amsgrad=False, maximize=False,
                grad_scale=divisor, found_inf=not_finite,
            )  # fmt: skip
            if group.master is not None:
                torch._foreach_copy_(list(chunk.parameters), group.views(group.master, chunk))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Per parameter name: flat fp32 `master`, `exp_avg`, `exp_avg_sq` (views, not copies)."""
        found: dict[str, dict[str, Tensor]] = {}
        for group in self.groups:
            for (name, parameter), (start, stop) in zip(group.named, group.spans, strict=True):
                master = parameter.detach().reshape(-1) if group.master is None else group.master[start:stop]
                found[name] = {
                    "master": master,
                    "exp_avg": group.exp_avg[start:stop],
                    "exp_avg_sq": group.exp_avg_sq[start:stop],
                }
        return found

    @torch.no_grad()
    def refresh_weights(self) -> None:
        """Rounds the masters into the weights, after the masters were written from outside."""
        for group in self.groups:
            if group.master is not None:
                for chunk in group.chunks:
                    torch._foreach_copy_(list(chunk.parameters), group.views(group.master, chunk))
