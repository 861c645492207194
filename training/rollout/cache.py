"""One layer's keys and values of all slots, and where the tokens at hand stand in them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LayerCache(NamedTuple):
    """keys, values [slots, G, S, D], contiguous; slots, positions [n] of the tokens that are read, written or both."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    positions: Tensor

    def write(self, k: Tensor, v: Tensor) -> None:
        """Store k and v [n, G, D] where their tokens stand."""
        self.keys[self.slots, :, self.positions] = k.to(self.keys.dtype)
        self.values[self.slots, :, self.positions] = v.to(self.values.dtype)
