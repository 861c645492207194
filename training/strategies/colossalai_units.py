"""Gathers Gemini's weights once per block instead of once per operation, and gives blocks plain tensors.

Gemini keeps a parameter's memory only while an operation needs it, and learns of operations through the parameter's
`__torch_function__`. Compiled code and custom autograd functions don't go through that. So every block (and every other
module that owns weights) is treated as *one* operation: its parameters enter through ColossalAI's own `pre_op`, the
block runs on plain tensors that share their memory, and its result leaves through `post_op`. The autograd nodes that
these two insert gather the block's weights again in backward and hand its gradients over when all of them are there.

A block may therefore be compiled (`block.compile()`), as long as activation checkpointing is outside of its call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from colossalai.tensor.colo_tensor import ColoTensor
from colossalai.tensor.param_op_hook import ColoParamOpHookManager
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Slot = tuple[dict[str, Any], str]
"""Where a module keeps a parameter: its `_parameters` and the key."""


def install_units(module: nn.Module) -> None:
    """Makes a unit of every member of the outermost ModuleLists and of every other module that owns parameters."""
    for unit in find_units(module):
        _Unit(unit)


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


class _Unit:
    """Stands in front of a module's call (which may be compiled) while Gemini's hooks are on."""

    def __init__(self, module: nn.Module) -> None:
        self.slots, parameters = slots_of(module)
        self.unique = list(dict.fromkeys(parameters))
        place = {id(parameter): index for index, parameter in enumerate(self.unique)}
        self.order = [place[id(parameter)] for parameter in parameters]
        self.call = module._compiled_call_impl or module._call_impl
        module._compiled_call_impl = self  # nn.Module.__call__ prefers it over the class's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not ColoParamOpHookManager.has_hook():
            return self.call(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            entered = ColoParamOpHookManager.pre_op(self.unique, *self.unique)
            tensors = [p.detach() if isinstance(p, ColoTensor) else p for p in entered]
            args, kwargs = tree_map(plain, args), tree_map(plain, kwargs)
        with replaced(self.slots, [tensors[index] for index in self.order]):
            result = self.call(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return ColoParamOpHookManager.post_op(self.unique, result)
