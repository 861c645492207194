"""Closed-loop clients for the server's benchmark: several processes of raw sockets, so that they are never the limit.

python -m tests.bench.gpu_serve_load URL_HOST PORT --clients 64 --new 128 [--stream] --warm 1 --seconds 4
Prints one JSON line: what was answered within the window, tokens, latencies, and the clients' CPU seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

WORDS = ("tell", "how", "a", "small", "model", "learns", "to", "write", "of", "rivers", "stones", "and", "roads")
START_SECONDS = 0.5
"""From the start of the processes to their first request."""


def question(number: int) -> str:
    return " ".join(WORDS[(number * 7 + i * 5) % len(WORDS)] for i in range(30 + number % 40))


@dataclass(frozen=True)
class Plan:
    """What each client does: ask, wait for the answer, ask again."""

    host: str
    port: int
    clients: int
    new: int
    stream: bool
    warm: float
    seconds: float
    processes: int = 4


@dataclass
class Seen:
    """What the clients of one process saw within the window."""

    requests: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cpu: float = 0.0


def message(plan: Plan, number: int) -> bytes:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question(number)}], "max_tokens": plan.new, "temperature": 0.7,
        "ignore_eos": True,
    }  # fmt: skip
    if plan.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {plan.host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def read_whole(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """(status, body); of a stream too, put together."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return status, await reader.readexactly(int(line[15:]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return status, body


async def read_stream(reader: asyncio.StreamReader) -> tuple[int, int, float]:
    """(status, tokens of the usage event, when the first text came)."""
    status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
    first, last = 0.0, b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        event = (await reader.readexactly(size + 2))[:-2]
        if not first and b'"content": "' in event and b'"content": ""' not in event:
            first = time.monotonic()
        if b'"completion_tokens"' in event:
            last = event
    await reader.readexactly(2)
    tokens = int(last.split(b'"completion_tokens": ')[1].split(b",")[0]) if last else 0
    return status, tokens, first


async def client(plan: Plan, number: int, begin: float, end: float, seen: Seen) -> None:
    """One connection. Only what is asked and answered between `begin` and `end` counts (`time.monotonic()`)."""
    reader, writer = await asyncio.open_connection(plan.host, plan.port)
    turn = 0
    while (start := time.monotonic()) < end:
        writer.write(message(plan, number * 1000 + turn))
        turn += 1
        first = 0.0
        if plan.stream:
            status, tokens, first = await read_stream(reader)
        else:
            status, body = await read_whole(reader)
            tokens = json.loads(body).get("usage", {}).get("completion_tokens", 0) if status == 200 else 0
        now = time.monotonic()
        if status != 200 or tokens != plan.new:
            seen.failed.append(f"status {status}, {tokens} tokens")
            break
        if begin <= now < end:
            seen.requests += 1
            seen.tokens += tokens
            seen.whole.append(now - start)
            if first:
                seen.first.append(first - start)
    writer.close()


async def _clients(plan: Plan, process: int, start: float) -> Seen:
    await asyncio.sleep(max(0.0, start - time.monotonic()))
    begin = start + plan.warm
    seen, before = Seen(), 0.0

    async def count_cpu() -> None:
        nonlocal before
        await asyncio.sleep(plan.warm)
        before = time.process_time()
        await asyncio.sleep(plan.seconds)
        seen.cpu = time.process_time() - before

    mine = range(process, plan.clients, plan.processes)
    await asyncio.gather(count_cpu(), *(client(plan, i, begin, begin + plan.seconds, seen) for i in mine))
    return seen


def _process(plan: Plan, process: int, start: float, found: Any) -> None:
    try:
        found.put(asyncio.run(_clients(plan, process, start)))
    except Exception as error:
        found.put(Seen(failed=[f"{type(error).__name__}: {error}"]))


def run_load(plan: Plan) -> dict[str, Any]:
    """Blocks for about START_SECONDS + warm + seconds. The figures of the window."""
    context = multiprocessing.get_context("fork")
    found: Any = context.Queue()
    start = time.monotonic() + START_SECONDS
    workers = [context.Process(target=_process, args=(plan, i, start, found)) for i in range(plan.processes)]
    for worker in workers:
        worker.start()
    parts: list[Seen] = [found.get(timeout=plan.warm + plan.seconds + 60) for _ in workers]
    for worker in workers:
        worker.join()
    facts: dict[str, Any] = {
        "clients": plan.clients,
        "stream": plan.stream,
        "requests": sum(part.requests for part in parts),
        "requests_per_second": round(sum(part.requests for part in parts) / plan.seconds, 1),
        "tokens_per_second": round(sum(part.tokens for part in parts) / plan.seconds),
        "client_cpu_s": round(sum(part.cpu for part in parts), 2),
    }
    facts |= percentiles("request", [seconds for part in parts for seconds in part.whole])
    facts |= percentiles("ttft", [seconds for part in parts for seconds in part.first])
    failed = [text for part in parts for text in part.failed]
    return {**facts, "failed": failed[:3]} if failed else facts


def percentiles(name: str, seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        f"{name}_p50_ms": round(statistics.median(ordered) * 1e3, 1),
        f"{name}_p95_ms": round(ordered[int(len(ordered) * 0.95)] * 1e3, 1),
        f"{name}_max_ms": round(ordered[-1] * 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--warm", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--processes", type=int, default=4)
    print(json.dumps(run_load(Plan(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
