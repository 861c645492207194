"""The processes of one run: who am I, on which device, and the process group's birth and clean end."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes, `local_rank` on this host, and the device that this process uses."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def planned_world_size() -> int:
    """How many processes torchrun started (1 without it); known before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def visible_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_world(*, device: str = "auto", timeout_s: int = 1800, always_group: bool = False) -> World:
    """Joins the process group that torchrun's environment describes; a lone process needs no torchrun.

    A lone process gets a group of one only when `always_group` (ColossalAI's plugins ask for one), from a store in
    its own memory: no port, no host name. With CUDA, tensors on the GPU go through NCCL and host tensors through gloo.
    """
    size, rank = planned_world_size(), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    kind = visible_device() if device == "auto" else device
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"rank {rank} is process {local_rank} on this host, which shows {torch.cuda.device_count()} GPUs; "
                "start as many processes as there are GPUs"
            )
        torch.cuda.set_device(local_rank)
        here = torch.device("cuda", local_rank)
    else:
        here = torch.device("cpu")
    if (size > 1 or always_group) and not dist.is_initialized():
        store = dist.HashStore() if size == 1 else None
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            device_id=here if kind == "cuda" else None,
            store=store,
            rank=rank if store is not None else -1,
            world_size=size if store is not None else -1,
        )
        atexit.register(close_world)
    return World(rank=rank, size=size, local_rank=local_rank, device=here)


def close_world() -> None:
    """Ends the process group, if there is one. Leaving it to the interpreter's exit can abort the process."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Ends a rank at once, without the interpreter's own clean-up.

    Threads that are inside torch's C++ while Python takes itself down are unwound through code that can't be, and abort
    the process ("terminate called without an active exception") after all its work is done.
    """
    close_world()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
