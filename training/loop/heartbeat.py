"""Ranks tell each other that they live, so that a dead one is named and the others end instead of waiting for ever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from training.errors import RankFailed

INTERVAL_S = 1.0
PATIENCE_S = 20.0
"""A rank that has been silent for this long counts as dead, and this process ends."""
DONE, FAILED = "done", "failed: "


class Heartbeat:
    """A thread that writes this rank's beat to torchrun's store and watches the others'.

    `lost(message)` is called from the thread when a rank falls silent: it should end the process, which may be stuck
    in a collective.
    """

    def __init__(self, rank: int, size: int, lost: Callable[[str], None], *, patience_s: float = PATIENCE_S) -> None:
        self.rank, self.size, self.lost, self.patience_s = rank, size, lost, patience_s
        self._stop = threading.Event()
        self._word = ""
        self._seen: dict[int, tuple[str, float]] = {}
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30), wait_for_workers=False)
        self._store = dist.PrefixStore(f"navarch/alive/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._beat(0)
        self._store.set(f"host/{rank}", os.environ.get("NAVARCH_HOST", ""))
        self._thread.start()

    def close(self, failure: str | None = None) -> None:
        """Say goodbye: done, or why this rank failed."""
        self._stop.set()
        self._thread.join(timeout=2 * INTERVAL_S)
        with suppress(RuntimeError):
            self._store.set(str(self.rank), f"{FAILED}{failure}" if failure else DONE)

    def culprits(self, wait_s: float = 4 * INTERVAL_S) -> list[str]:
        """Which ranks are at fault after a collective broke: those that said why they failed, else the silent ones.

        Takes up to `wait_s`; [] when all others still beat.
        """
        before = {rank: self._read(rank) for rank in self._others()}
        deadline = time.monotonic() + wait_s
        while True:
            time.sleep(INTERVAL_S / 2)
            now = {rank: self._read(rank) for rank in self._others()}
            failed = [
                f"{self._named(r)} failed ({word.removeprefix(FAILED)})"
                for r, word in now.items()
                if word.startswith(FAILED)
            ]
            if failed:
                return failed
            if time.monotonic() > deadline:
                return [f"{self._named(r)} died" for r in now if now[r] == before[r] and now[r] != DONE]

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _beat(self, number: int) -> None:
        self._store.set(str(self.rank), f"{os.getpid()} {number}")

    def _read(self, key: object) -> str:
        with suppress(RuntimeError):
            if self._store.check([str(key)]):
                return self._store.get(str(key)).decode("utf-8", "replace")
        return ""

    def _named(self, rank: int) -> str:
        """The rank, and its host where there are several."""
        host = self._read(f"host/{rank}")
        return f"rank {rank} on {host}" if host else f"rank {rank}"

    def _run(self) -> None:
        number, store_lost = 0, 0.0
        while not self._stop.wait(INTERVAL_S):
            number += 1
            try:
                self._beat(number)
                store_lost = 0.0
            except RuntimeError:
                store_lost = store_lost or time.monotonic()
                if time.monotonic() - store_lost > self.patience_s:
                    self.lost("The rendezvous store is gone: the first node or its torchrun died.")
                    return
                continue
            now = time.monotonic()
            for rank in self._others():
                word = self._read(rank)
                if word in ("", DONE):
                    continue
                last, since = self._seen.get(rank, ("", now))
                if word != last:
                    self._seen[rank] = (word, now)
                elif now - since > self.patience_s:
                    reason = word.removeprefix(FAILED) if word.startswith(FAILED) else f"silent for {now - since:.0f} s"
                    named = self._named(rank).removeprefix("r")
                    self.lost(f"R{named} died ({reason}); this rank ends too.")
                    return


def explained(heartbeat: Heartbeat, error: RankFailed) -> RankFailed:
    """The same failure with the rank that caused it, where that can be found out."""
    named = heartbeat.culprits()
    if not named:
        return error
    return RankFailed(f"{'; '.join(named)}. This rank ends because of it.")
