"""For tests only: makes ColossalAI's ZeRO, Gemini and hybrid plugins run on a CPU over gloo.

Call `install()` before a strategy is opened. It registers an accelerator through ColossalAI's public
`set_accelerator`: host memory plays the device, streams and events do nothing. What a green run under it does not show:
overlap on streams, device memory and offload, NCCL, CUDA kernels, speed.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch


class _Nothing:
    """A stream or event on which everything has already happened."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: True if name == "query" else None


def _accelerator() -> Any:
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator

    class HostAsDevice(CpuAccelerator):
        """Answers what ColossalAI asks of a GPU with the host's own facts. ZeRO asserts the name cuda or npu."""

        support_set_device = False

        def __init__(self) -> None:
            super().__init__()
            self._name = "cuda"

        def current_device(self) -> str:
            return "cpu"

        def device_count(self) -> int:
            return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

        def get_device_name(self, device: Any = None) -> str:
            return "host"

        def get_device_capability(self, device: Any = None) -> tuple[int, int]:
            return (0, 0)

        def get_version(self) -> str:
            return "0"

        def get_rng_state(self, device: Any = None) -> torch.Tensor:
            return torch.get_rng_state()

        def set_rng_state(self, new_state: torch.Tensor, device: Any = None) -> None:
            torch.set_rng_state(new_state)

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def Stream(self, *args: Any, **kwargs: Any) -> _Nothing:
            return _Nothing()

        def Event(self, *args: Any, **kwargs: Any) -> _Nothing:
            return _Nothing()

        def current_stream(self, device: Any = None) -> _Nothing:
            return _Nothing()

        def default_stream(self, device: Any = None) -> _Nothing:
            return _Nothing()

        def set_stream(self, stream: Any) -> None:
            return None

        def stream(self, stream: Any) -> Any:
            return contextlib.nullcontext()

        def set_device(self, device: Any = None) -> None:
            return None

        def synchronize(self, device: Any = None) -> None:
            return None

        def empty_cache(self) -> None:
            return None

        def memory_allocated(self, device: Any = None) -> int:
            return 0

        def max_memory_allocated(self, device: Any = None) -> int:
            return 0

        def reset_peak_memory_stats(self, device: Any = None) -> None:
            return None

        def reset_max_memory_allocated(self, device: Any = None) -> None:
            return None

        def autocast(
            self, enabled: bool = True, dtype: torch.dtype = torch.bfloat16, cache_enabled: bool = True
        ) -> Any:
            return torch.autocast("cpu", enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)

    return HostAsDevice()


def install() -> None:
    """Puts the stand-in accelerator in place, and what else ColossalAI calls without asking its accelerator."""
    from colossalai.accelerator import set_accelerator

    if torch.cuda.is_available():
        raise RuntimeError("a GPU is visible: run the real thing")
    set_accelerator(_accelerator())
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign,assignment]
    import torch.distributed as dist

    if not hasattr(dist, "is_hccl_available"):  # pipeline/p2p.py asks for Huawei's library, which stock torch lacks
        dist.is_hccl_available = lambda: False  # type: ignore[attr-defined]
    if not hasattr(dist.Backend, "HCCL"):
        dist.Backend.HCCL = "hccl"  # type: ignore[attr-defined]
    # Gemini's "auto" placement measures memory through torch.cuda and the legacy helpers directly
    torch.cuda.synchronize = lambda device=None: None  # type: ignore[assignment]
    torch.cuda.reset_peak_memory_stats = lambda device=None: None  # type: ignore[assignment]
    torch.cuda.max_memory_allocated = lambda device=None: 0  # type: ignore[assignment]
    from colossalai.legacy.utils import memory

    memory.colo_device_memory_capacity = lambda device: 1 << 34
    memory.colo_device_memory_used = lambda device: 1 << 20
    _keep_shards_on_the_device()


def _keep_shards_on_the_device() -> None:
    """Gemini tells a chunk's place by the device's type, which is "cpu" for both here; shards stay on it."""
    from colossalai.zero.gemini.chunk import Chunk

    def shard_move(self: Any, device: torch.device, force_copy: bool = False, non_blocking: bool = False) -> None:
        if self.cuda_shard is None:
            source = self.cpu_shard if self.optim_sync_flag else self.paired_chunk.payload
            self.cuda_shard, self.cpu_shard = source.to(self.dtype), None
        self.optim_sync_flag = True

    close_chunk = Chunk.close_chunk

    def close_on_the_device(self: Any) -> None:
        close_chunk(self)
        if not self.is_gathered:
            shard_move(self, torch.device("cpu"))

    Chunk.shard_move, Chunk.close_chunk = shard_move, close_on_the_device
