"""Many HTTP clients in one process, for the control plane's benchmark: raw sockets, which cost next to nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Latencies in milliseconds, and how many requests a second were answered."""

    latencies: list[float]
    per_second: float
    statuses: dict[int, int]

    def percentile(self, part: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    def figures(self) -> dict[str, float]:
        return {
            "p50_ms": round(self.percentile(0.5), 2),
            "p99_ms": round(self.percentile(0.99), 2),
            "max_ms": round(max(self.latencies), 2),
            "per_second": round(self.per_second, 1),
            "requests": len(self.latencies),
        }


Request = Callable[[int], tuple[str, str, object | None]]
"""The number of a request → method, path, JSON body."""


def run_load(
    host: str, port: int, token: str, request: Request, *, clients: int, requests: int, pause_s: float = 0.0
) -> Load:
    """`requests` in all from `clients` connections; each pauses `pause_s` between an answer and its next request."""
    return asyncio.run(_run(host, port, token, request, clients, requests, pause_s))


async def _run(host: str, port: int, token: str, request: Request, clients: int, requests: int, pause_s: float) -> Load:
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    numbers = iter(range(requests))

    async def client(index: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        if pause_s:
            await asyncio.sleep(pause_s * index / clients)
        for number in numbers:
            message = _message(host, token, *request(number))
            start = time.perf_counter()
            writer.write(message)
            status = await _answer(reader)
            latencies.append((time.perf_counter() - start) * 1000)
            statuses[status] = statuses.get(status, 0) + 1
            if pause_s:
                await asyncio.sleep(pause_s)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client(index) for index in range(clients)))
    return Load(latencies, len(latencies) / (time.perf_counter() - start), statuses)


def _message(host: str, token: str, method: str, path: str, body: object | None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n"
    head += f"Authorization: Bearer {token}\r\n"
    return (head + ("Content-Type: application/json\r\n" if content else "") + "\r\n").encode() + content


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head[9:12])
