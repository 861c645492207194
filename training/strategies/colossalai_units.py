"""Gathers Gemini's weights once per block instead of once per operation, and gives blocks plain tensors.

Gemini keeps a parameter's memory only while an operation needs it, and learns of operations through the parameter's
`__torch_function__`. Compiled code and custom autograd functions don't go through that. So every block (and every other
module that owns weights) is treated as *one* operation: its parameters enter through ColossalAI's own `pre_op`, the
block runs on plain tensors that share their memory, and its result leaves through `post_op`. The autograd nodes that
these two insert gather the block's weights again in backward and hand its gradients over when all of them are there.

A block may therefore be compiled (`block.compile()`). Activation checkpointing may be around its call, or inside:
in backward the block holds its plain tensors again from the moment that its weights are back until its gradients are
there, so that what is recomputed sees what was computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from colossalai.tensor.colo_tensor import ColoTensor
from colossalai.tensor.param_op_hook import ColoParamOpHook, ColoParamOpHookManager
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Slot = tuple[dict[str, Any], str]
"""Where a module keeps a parameter: its `_parameters` and the key."""


def install_units(module: nn.Module) -> ColoParamOpHook:
    """Makes a unit of every member of the outermost ModuleLists and of every other module that owns parameters.

    Returns the hook that must run after Gemini's own.
    """
    return _InBackward([_Unit(unit) for unit in find_units(module)])


def find_units(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    if isinstance(module, nn.ModuleList):
        return [block for block in module if next(block.parameters(), None) is not None]
    if module._parameters and not module._modules:
        return [module]
    for child in module.children():
        found.extend(find_units(child))
    return found


def slots_of(module: nn.Module) -> tuple[list[Slot], list[nn.Parameter]]:
    """All places of `module` that hold a parameter, and the parameters in them (a shared one more than once)."""
    slots = [
        (owner._parameters, key)
        for owner in module.modules()
        for key, parameter in owner._parameters.items()
        if parameter is not None
    ]
    return slots, [table[key] for table, key in slots]


@contextmanager
def replaced(slots: list[Slot], tensors: list[Tensor]) -> Iterator[None]:
    """The slots hold `tensors` inside the block, and what they held before afterwards."""
    before = [table[key] for table, key in slots]
    for (table, key), tensor in zip(slots, tensors, strict=True):
        table[key] = tensor
    try:
        yield
    finally:
        for (table, key), parameter in zip(slots, before, strict=True):
            table[key] = parameter


def plain(value: Any) -> Any:
    """`value` without ColossalAI's tensor class, in the same memory and the same autograd graph."""
    return value.as_subclass(torch.Tensor) if isinstance(value, ColoTensor) else value


def alias(tensor: Tensor) -> Tensor:
    """The same memory as a tensor of its own: not a view (compiled code looks at a view's base, which is sharded)."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        fresh = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return fresh.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())  # type: ignore


class _Enter(torch.autograd.Function):
    """ColoParamOpHookManager.pre_op's node, with plain tensors on the other side."""

    @staticmethod
    def forward(ctx: Any, parameters: list[nn.Parameter], *trained: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.parameters = parameters
        return tuple(alias(parameter) for parameter in trained)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        ColoParamOpHookManager._trigger_post_backward(ctx.parameters)
        return (None, *gradients)


class _Unit:
    """Stands in front of a module's call (which may be compiled) while Gemini's hooks are on."""

    def __init__(self, module: nn.Module) -> None:
        self.slots, parameters = slots_of(module)
        self.unique = list(dict.fromkeys(parameters))
        place = {id(parameter): index for index, parameter in enumerate(self.unique)}
        self.order = [place[id(parameter)] for parameter in parameters]
        self.inside: list[list[Tensor]] = []
        self.call = module._compiled_call_impl or module._call_impl
        module._compiled_call_impl = self  # nn.Module.__call__ prefers it over the class's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not ColoParamOpHookManager.has_hook():
            return self.call(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            ColoParamOpHookManager._trigger_pre_forward(self.unique)
            tensors = self._enter()
            args, kwargs = tree_map(plain, args), tree_map(plain, kwargs)
        placed = [tensors[index] for index in self.order]
        if torch.is_grad_enabled():
            self.inside.append(placed)
        with replaced(self.slots, placed):
            result = self.call(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return ColoParamOpHookManager.post_op(self.unique, result)

    def _enter(self) -> list[Tensor]:
        """The gathered weights as plain tensors; those that are trained through the node that hands over gradients."""
        trained = [parameter for parameter in self.unique if parameter.requires_grad]
        if not trained or not torch.is_grad_enabled():
            return [alias(parameter) for parameter in self.unique]
        entered = iter(_Enter.apply(self.unique, *trained))  # type: ignore[no-untyped-call]
        return [next(entered) if parameter.requires_grad else alias(parameter) for parameter in self.unique]

    def enter_backward(self) -> None:
        self.before = [table[key] for table, key in self.slots]
        self._place(self.inside[-1] if self.inside else self.before)

    def leave_backward(self) -> None:
        self._place(self.before)
        if self.inside:
            self.inside.pop()

    def _place(self, values: list[Any]) -> None:
        for (table, key), value in zip(self.slots, values, strict=True):
            table[key] = value


class _InBackward(ColoParamOpHook):  # type: ignore[misc]
    """Puts a unit's plain tensors in place while its backward runs; other operations on weights pass by."""

    def __init__(self, units: list[_Unit]) -> None:
        self.units = {id(unit.unique): unit for unit in units}

    def pre_forward(self, params: list[Tensor]) -> None:
        return None

    def post_forward(self, params: list[Tensor]) -> None:
        return None

    def pre_backward(self, params: list[Tensor]) -> None:
        if id(params) in self.units:
            self.units[id(params)].enter_backward()

    def post_backward(self, params: list[Tensor]) -> None:
        if id(params) in self.units:
            self.units[id(params)].leave_backward()
