"""Tries, before each start, what a gang needs of its hosts: each other, their GPUs, one torch, an all-reduce.

Every member meets rank 0 at the master port, and does what that says. What fails is told with the host at fault, where
pairs of hosts show which one it is: the next attempt then avoids it.
"""

import json
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TORCH = ("/opt/navarch/bin/python", "-I", "-m", "training.loop.collective")
CONNECT_S, COME_S, ANSWER_S = 3.0, 60.0, 60.0
"""Seconds for a connection, for all members to come, for an answer of one that is there."""
RANDOM_PORTS = 3
MAX_PEERS = 8
"""To how many others each member tries its way; in a larger gang these are spread evenly."""
BUSY_MIB = 1024
"""GPU memory that another program may hold."""
Member = Mapping[str, Any]
Links = dict[tuple[int, int], str]
"""(from, to) → why that way is closed."""


@dataclass(frozen=True)
class Verdict:
    """Why the gang can't start, and whose fault that is, as far as it is known."""

    message: str
    host: str = ""


@dataclass
class Report:
    """What one member says of itself and of its ways to others."""

    rank: int
    ports: list[int]
    trouble: str = ""
    """What is wrong on its own host."""
    versions: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    """Rank → why the way there is closed."""


class Torch:
    """The program of the training package that all-reduces; its import goes on while others are waited for."""

    def __init__(self, command: Sequence[str] = TORCH) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, task: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Its answer to a task; without one, what it says of itself when it is ready."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            if task is not None:
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], ANSWER_S)
            line = process.stdout.readline() if ready else ""
            return dict(json.loads(line)) if line else {"error": "it does not answer"}
        except (OSError, ValueError) as error:
            return {"error": str(error)}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def check(gang: Mapping[str, Any], held: socket.socket | None, torch: Torch | None) -> tuple[Verdict | None, str]:
    """Takes part, and on rank 0 (which holds the master port) leads. What is wrong, and a line about what was seen."""
    members: Sequence[Member] = gang["members"]
    me = members[gang["rank"]]
    leader = None
    if held is not None:
        leader = Leader(members, held, with_torch=torch is not None)
        leader.thread.start()
    try:
        verdict = take_part(members, me, gang["master_port"], torch)
    except (OSError, ValueError) as error:
        first = members[0]
        where = f"{first['host']} at {first['address']}:{gang['master_port']}"
        verdict = Verdict(f"{named(me)} can't reach rank 0 on {where}: {error}")
    if leader is not None:
        leader.thread.join()
        verdict = leader.verdict or verdict
    return verdict, leader.says if leader is not None else ""


def named(member: Member) -> str:
    return f"rank {member['rank']} on {member['host']}"


# what every member does


def take_part(members: Sequence[Member], me: Member, master_port: int, torch: Torch | None) -> Verdict | None:
    """Reports to rank 0 and does what it says. Raises OSError where it can't be reached."""
    with ExitStack() as held:
        listeners = [held.enter_context(_listener()) for _ in range(RANDOM_PORTS)]
        closed = try_ways(me, [(peer, peer["ssh_port"]) for peer in peers_of(me, members)])
        line = held.enter_context(_Line(_reach(members[0]["address"], master_port, COME_S)))
        report = Report(me["rank"], [listener.getsockname()[1] for listener in listeners], gpu_trouble(me["gpus"]))
        report.closed = closed
        if torch is not None:
            said = torch.ask()
            report.versions = {name: str(said[name]) for name in ("torch", "nccl") if said.get(name)}
            report.trouble = report.trouble or (f"torch can't be loaded: {said['error']}" if "error" in said else "")
        line.say(vars(report))
        while True:
            task = line.hear(COME_S + 4 * ANSWER_S)
            match task["do"]:
                case "ports":
                    ways = [(peer, port) for peer in peers_of(me, members) for port in task["table"][str(peer["rank"])]]
                    line.say({"closed": try_ways(me, ways)})
                case "reduce":
                    line.say(torch.ask(task) if torch is not None else {})
                case "start":
                    return None
                case _:
                    return Verdict(task["message"], task["host"])


def peers_of(me: Member, members: Sequence[Member]) -> list[Member]:
    """Whom a member tries its way to: all others, or in a large gang some, so that each way is tried both ways."""
    size, rank = len(members), me["rank"]
    if size - 1 <= MAX_PEERS:
        return [member for member in members if member["rank"] != rank]
    steps = {1 + number * (size // 2 - 1) // (MAX_PEERS // 2 - 1) for number in range(MAX_PEERS // 2)}
    return [members[(rank + way) % size] for way in sorted({s for step in steps for s in (step, -step)})]


def try_ways(me: Member, ways: Sequence[tuple[Member, int]]) -> dict[str, str]:
    """Rank → why it can't be reached; side by side."""

    def closed(way: tuple[Member, int]) -> str:
        peer, port = way
        try:
            socket.create_connection((peer["address"], port), timeout=CONNECT_S).close()
        except OSError as error:
            return f"{peer['address']}:{port} {error.strerror or error}"
        return ""

    with ThreadPoolExecutor(max_workers=32) as pool:
        said = list(pool.map(closed, ways))
    return {str(peer["rank"]): why for (peer, _), why in reversed(list(zip(ways, said, strict=True))) if why}


def gpu_trouble(leased: Sequence[str], query: Callable[[], str] | None = None) -> str:
    """What is wrong with the GPUs that the container sees; empty when nothing is, or there is nothing to ask."""
    if not leased:
        return ""
    try:
        rows = [row.split(", ") for row in (query or _nvidia_smi)().splitlines() if row.strip()]
        seen = {uuid: float(used) for uuid, used in rows}
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"nvidia-smi fails: {error}"
    if missing := sorted(set(leased) - set(seen)):
        return f"sees {len(seen)} of its {len(leased)} GPUs; {', '.join(missing)} is missing"
    busy = [f"{uuid} ({used / 1024:.1f} GiB)" for uuid, used in seen.items() if uuid in leased and used > BUSY_MIB]
    return f"another program holds memory of {', '.join(busy)}" if busy else ""


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


# what rank 0 does besides


class Leader:
    """Waits for all, has them try what there is to try, and tells them whether the job may start."""

    def __init__(self, members: Sequence[Member], held: socket.socket, *, with_torch: bool) -> None:
        self._members, self._held, self._with_torch = members, held, with_torch
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.verdict: Verdict | None = None
        self.says = ""
        self._lines: dict[int, _Line] = {}

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            self.verdict = self._lead()
        except (OSError, ValueError, KeyError) as error:
            self.verdict = Verdict(f"the check broke off: {type(error).__name__}: {error}")
        bad = self.verdict
        word = {"do": "start"} if bad is None else {"do": "fail", "message": bad.message, "host": bad.host}
        for line in self._lines.values():
            with suppress(OSError):
                line.say(word)
            line.close()
        self.says = f"checked {len(self._members)} nodes in {time.monotonic() - begun:.1f} s{self.says}"

    def _lead(self) -> Verdict | None:
        reports = self._reports()
        links = {(r.rank, int(peer)): why for r in reports.values() for peer, why in r.closed.items()}
        if bad := judge(self._members, reports, links):
            return bad
        table = {str(rank): report.ports for rank, report in reports.items()}
        tried = self._ask({rank: {"do": "ports", "table": table} for rank in self._lines})
        links = {(rank, int(peer)): why for rank, said in tried.items() for peer, why in said["closed"].items()}
        if bad := judge(self._members, reports, links):
            return bad
        return self._reduce() if self._with_torch else None

    def _reports(self) -> dict[int, Report]:
        found: dict[int, Report] = {}
        deadline = time.monotonic() + COME_S
        while len(found) < len(self._members) and (left := deadline - time.monotonic()) > 0:
            self._held.settimeout(left)
            try:
                line = _Line(self._held.accept()[0])
                report = Report(**line.hear(max(0.1, deadline - time.monotonic())))
            except (OSError, ValueError, TypeError):
                continue  # somebody else, or a member that was lost: it is missing then
            found[report.rank], self._lines[report.rank] = report, line
        return found

    def _ask(self, tasks: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        for rank, task in tasks.items():
            self._lines[rank].say(task)
        return {rank: self._lines[rank].hear(2 * ANSWER_S) for rank in tasks}

    def _reduce(self) -> Verdict | None:
        """An all-reduce of all by gloo, then by NCCL; where it fails, of pairs."""
        for backend in ("gloo", "nccl"):
            if backend == "nccl" and not any(member["gpus"] for member in self._members):
                break
            said = self._all_reduce(backend, range(len(self._members)))
            failed = {rank: answer["error"] for rank, answer in said.items() if "error" in answer}
            if failed:
                links = self._pairs(backend) if len(self._members) > 2 else {}
                rank, why = min(failed.items())
                first = f"an all-reduce by {backend} failed ({named(self._members[rank])}: {why})"
                return blamed(self._members, links or {(0, 1): why}, first)
            speed = min(answer["gb_s"] for answer in said.values())
            self.says += f"; {backend} all-reduce {speed:.2f} GB/s"
        return None

    def _all_reduce(self, backend: str, ranks: Sequence[int]) -> dict[int, dict[str, Any]]:
        first = self._members[ranks[0]]["address"]
        task = {"do": "reduce", "backend": backend, "size": len(ranks), "address": first, "port": _free_port()}
        return self._ask({rank: {**task, "rank": place} for place, rank in enumerate(ranks)})

    def _pairs(self, backend: str) -> Links:
        """Every pair with rank 0, where the port for the meeting is known to be free."""
        found: Links = {}
        for rank in range(1, len(self._members)):
            answers = self._all_reduce(backend, (0, rank))
            if errors := [answer["error"] for answer in answers.values() if "error" in answer]:
                found[0, rank] = errors[0]
        return found


def judge(members: Sequence[Member], reports: Mapping[int, Report], links: Links) -> Verdict | None:
    """What is wrong with what the members reported, the plainest first. Pure."""
    if missing := [member for member in members if member["rank"] not in reports]:
        tried = [why for (_, to), why in links.items() if to == missing[0]["rank"]]
        why = f" ({tried[0]})" if tried else ""
        names = ", ".join(named(member) for member in missing)
        return Verdict(f"{names} did not reach rank 0 within {COME_S:.0f} s{why}", missing[0]["host"])
    if links:
        return blamed(members, links, "hosts of the gang can't reach each other")
    for report in reports.values():
        if report.trouble:
            member = members[report.rank]
            return Verdict(f"{named(member)}: {report.trouble}", member["host"])
    return _differing(members, {rank: report.versions for rank, report in reports.items()})


def _differing(members: Sequence[Member], versions: Mapping[int, Mapping[str, str]]) -> Verdict | None:
    for name in ("torch", "nccl"):
        found = {rank: said.get(name, "none") for rank, said in versions.items()}
        if len(set(found.values())) > 1:
            usual = _most(found.values())
            odd = next(rank for rank in sorted(found, reverse=True) if found[rank] != usual)
            said = f"{name} is {found[odd]} on {members[odd]['host']} and {usual} elsewhere"
            return Verdict(f"{said}: these are different images of one name", members[odd]["host"])
    return None


def blamed(members: Sequence[Member], links: Links, what: str) -> Verdict:
    """The host that is part of most closed ways; of two that are, the one that isn't rank 0's."""
    ends = [members[rank]["host"] for pair in links for rank in pair]
    order = {member["host"]: number for number, member in enumerate(members)}
    host = max(set(ends), key=lambda name: (ends.count(name), order[name]))
    (source, target), why = next((pair, why) for pair, why in sorted(links.items()) if host in _hosts(members, pair))
    way = f"{named(members[source])} to {named(members[target])}: {why}"
    more = f" and {len(links) - 1} more" if len(links) > 1 else ""
    return Verdict(f"{what}: {way}{more}; {host} is avoided from now on", host)


def _hosts(members: Sequence[Member], pair: tuple[int, int]) -> set[str]:
    return {members[rank]["host"] for rank in pair}


def _most(values: Iterable[str]) -> str:
    counted = list(values)
    return max(counted, key=counted.count)


class _Line:
    """Objects as lines over a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("r")

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, content: Mapping[str, Any]) -> None:
        self._connection.sendall(json.dumps(content).encode() + b"\n")

    def hear(self, timeout_s: float) -> dict[str, Any]:
        self._connection.settimeout(timeout_s)
        line = self._reader.readline(1 << 20)
        if not line.endswith("\n"):
            raise ConnectionError("the connection was closed")
        return dict(json.loads(line))

    def close(self) -> None:
        self._connection.close()


def _reach(address: str, port: int, patience_s: float) -> socket.socket:
    """Rank 0 may be released a moment later than others."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_connection((address, port), timeout=CONNECT_S)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _listener() -> socket.socket:
    return socket.create_server(("", 0))


def _free_port() -> int:
    with _listener() as found:
        return int(found.getsockname()[1])


def is_there(command: Sequence[str] = TORCH) -> bool:
    return Path(command[0]).exists()
