"""Rounds a weight matrix to int4 so that the errors of its columns make up for each other (GPTQ, arXiv 2210.17323).

With the layer's inputs X [t, K] the error of a rounded matrix Q is the trace of (Q - W) H (Q - W)^T, H = X^T X. Columns
are rounded one after another, those of the largest inputs first; what a column lost is taken back by those not yet
rounded, as the inverse of H says.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
DAMPING = 0.01
"""Part of H's mean diagonal that is added to it, so that its inverse exists and trusts little data less."""
BLOCK = 128
"""Columns whose corrections of later columns are applied in one matrix product."""


class Grid(NamedTuple):
    """Levels 0…15 stand for level * scale + offset; fp16, as they are stored. [..., groups]"""

    scale: Tensor
    offset: Tensor

    def nearest(self, values: Tensor) -> Tensor:
        """Levels of values [..., groups, size] on each group's grid."""
        wide = (values - self.offset.to(values)[..., None]) / self.scale.to(values)[..., None]
        return wide.round().clamp(0, 15)

    def value(self, levels: Tensor) -> Tensor:
        return levels * self.scale.to(levels)[..., None] + self.offset.to(levels)[..., None]


def choose_grid(values: Tensor, importance: Tensor | None = None) -> Grid:
    """The grid of each group of values [..., size] with the least squared error among some that clip the range.

    Few large weights would otherwise cost all others their precision. `importance` weighs the squared errors.
    """
    low, high = values.amin(dim=-1), values.amax(dim=-1)
    best: tuple[Tensor, Grid] | None = None
    for ratio in CLIP_RATIOS:
        grid = Grid(((high - low) * ratio / 15).clamp(min=1e-7).half(), (low * ratio).half())
        squares = (grid.value(grid.nearest(values)) - values).pow(2)
        error = (squares if importance is None else squares * importance).sum(dim=-1)
        if best is None:
            best = (error, grid)
        else:
            better = error < best[0]
            kept = Grid(*(torch.where(better, new, old) for new, old in zip(grid, best[1], strict=True)))
            best = (torch.where(better, error, best[0]), kept)
    assert best is not None
    return best[1]


def round_to_nearest(matrix: Tensor, group: int) -> tuple[Tensor, Grid]:
    """Levels [N, K] and grids [N, K / group] of a matrix [N, K], each weight for itself."""
    grouped = matrix.view(matrix.shape[0], -1, group)
    grid = choose_grid(grouped)
    return grid.nearest(grouped).view(matrix.shape), grid


class Inputs(NamedTuple):
    """What rounding must know of a layer's inputs."""

    order: Tensor  # [K] columns, the one with the largest input first
    factor: Tensor  # [K, K] upper triangular U with U^T U = inverse of the damped H, both in that order
    power: Tensor  # [K] H's diagonal


def inputs_of(hessian: Tensor) -> Inputs:
    """From H = X^T X [K, K]. Row j of the factor says how the error of the j-th column spreads over later ones."""
    power = hessian.diagonal().clone()
    order = power.argsort(descending=True, stable=True)
    damped = hessian[order][:, order]
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that was always zero
    diagonal += DAMPING * diagonal.mean()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return Inputs(order, factor, power)


def round_compensated(matrix: Tensor, inputs: Inputs, group: int) -> tuple[Tensor, Grid]:
    """Levels [N, K] and grids [N, K / group] of a matrix [N, K]; the grids are chosen before anything is rounded."""
    order, factor = inputs.order, inputs.factor
    grid = choose_grid(matrix.view(matrix.shape[0], -1, group), inputs.power.to(matrix).view(-1, group))
    rest = matrix[:, order]  # the columns not yet rounded, with what the rounded ones lost
    levels = torch.empty_like(rest)
    groups = (order // group).tolist()
    for start in range(0, len(groups), BLOCK):
        end = min(start + BLOCK, len(groups))
        losses = torch.zeros_like(rest[:, start:end])
        for column in range(start, end):
            own = Grid(grid.scale[:, groups[column]], grid.offset[:, groups[column]])
            one = rest[:, column, None]
            levels[:, column, None] = own.nearest(one)
            loss = (one - own.value(levels[:, column, None])) / factor[column, column]
            rest[:, column:end] -= loss * factor[column, column:end]
            losses[:, column - start] = loss[:, 0]
        rest[:, end:] -= losses @ factor[start:end, end:]
    return levels[:, order.argsort()], grid


def layer_error(matrix: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """Squared error of a layer's outputs, summed over the inputs that made H."""
    difference = rounded - matrix
    return float(((difference @ hessian) * difference).sum())
