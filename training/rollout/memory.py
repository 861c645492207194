"""Sizes the key/value cache to the device: how many slots of what length fit into the memory that is free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from training.errors import OutOfMemory
from training.rollout.families import Family
from training.rollout.slots import TOP_LOGPROBS

SERVING_SHARE, HOST_SHARE = 0.9, 0.5
"""Part of the free memory that a server's cache may take, on a GPU and in a host's own memory."""
FEWEST_SLOTS = 8
"""Fewer requests at a time than this waste a device: before it comes to that, texts get shorter where they may."""
SHORTEST = 1024
"""But not shorter than this many tokens."""
CONTROL_GROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
GIB = 2**30


@dataclass(frozen=True)
class CachePlan:
    """slots of max_length tokens, the bytes that they take, and the bytes that were free."""

    slots: int
    max_length: int
    size: int
    free: int
    wanted_slots: int
    wanted_length: int

    @property
    def sentence(self) -> str:
        """What was chosen, for the log."""
        told = f"{self.slots} slots of {self.max_length} tokens, {self.size / GIB:.2f} GiB"
        if (self.slots, self.max_length) == (self.wanted_slots, self.wanted_length):
            return told
        return (
            f"{told}: of {self.wanted_slots} slots of {self.wanted_length} tokens that is what fits into the "
            f"{self.free / GIB:.1f} GiB that are free"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated there; in a container, by its own limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    import psutil

    return min(int(psutil.virtual_memory().available), _container_limit())


def _container_limit(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process's control group has left (cgroup v2, then v1); very much where there is no limit."""
    for limit, used in CONTROL_GROUPS:
        try:
            return max(int((folder / limit).read_text()) - int((folder / used).read_text()), 0)
        except (OSError, ValueError):  # absent, or "max"
            continue
    return 1 << 62


def slot_bytes(family: Family, max_length: int) -> int:
    """Bytes of one slot: keys, values, tokens, log-probs, and the most likely tokens of each step."""
    per_token = 2 * len(family.blocks) * family.kv_heads * family.head_size * family.dtype.itemsize
    return per_token * max_length + (max_length + 1) * (8 + 4 + 8 * TOP_LOGPROBS)


def scratch_bytes(family: Family, slots: int) -> int:
    """About what sampling needs besides: some copies of fp32 logits of all slots, for sorting and noise."""
    return 6 * slots * family.vocabulary * 4


def plan_cache(
    family: Family, device: torch.device, *, slots: int, max_length: int, share: float, may_shorten: bool = False
) -> CachePlan:
    """The largest cache up to `slots` × `max_length` that takes at most `share` of the free memory.

    Fewer slots come first: requests then wait. With `may_shorten` texts get shorter before fewer than FEWEST_SLOTS are
    left. Raises OutOfMemory when not even one slot fits.
    """
    free = free_memory(device)
    budget = int(share * free) - scratch_bytes(family, min(slots, FEWEST_SLOTS))
    length = max_length
    if may_shorten:
        while length // 2 >= SHORTEST and _fitting(family, budget, slots, length) < min(slots, FEWEST_SLOTS):
            length //= 2
    fitting = _fitting(family, budget, slots, length)
    if fitting < 1:
        raise OutOfMemory(
            f"One text of {length} tokens takes {2 * slot_bytes(family, length) / GIB:.2f} GiB of cache, and "
            f"{max(budget, 0) / GIB:.2f} of the {free / GIB:.2f} GiB that are free may be used for it: shorten the "
            "texts (serve: max_length; ppo: generation.max_new_tokens), or use a smaller or quantized model."
        )
    return CachePlan(fitting, length, (fitting + 1) * slot_bytes(family, length), free, slots, max_length)


def _fitting(family: Family, budget: int, slots: int, length: int) -> int:
    """Slots of `length` tokens that a budget holds, at most `slots`; one more is always the padding of batches."""
    return min(slots, budget // slot_bytes(family, length) - 1)
