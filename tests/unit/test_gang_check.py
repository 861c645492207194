"""The check before each start of a gang: what is wrong is told, with the host whose fault it is."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from images.gang import check as checks
from images.gang import program
from images.gang.check import Report, Torch, Verdict, blamed, check, gpu_trouble, judge, peers_of
from tests.docker.ssh_client import free_port

THREE = [{"rank": r, "host": f"h{r}", "address": f"127.0.0.{r + 1}", "gpus": [], "ssh_port": 0} for r in range(3)]
FAKE = """import json, sys
print(json.dumps({"torch": sys.argv[1]}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    bad = int(sys.argv[2]) == task["rank"] if task["size"] > 2 else sys.argv[2] != "-1"
    print(json.dumps({"error": "no route"} if bad else {"gb_s": 1.5}), flush=True)
"""


@pytest.fixture
def sshd() -> Iterator[list[dict[str, Any]]]:
    """Three members, each with something that listens where its sshd would."""
    held = [socket.create_server((member["address"], 0)) for member in THREE]
    yield [{**m, "ssh_port": server.getsockname()[1]} for m, server in zip(THREE, held, strict=True)]
    for server in held:
        server.close()


def together(members: list[dict[str, Any]], torches: list[Torch | None]) -> list[tuple[Verdict | None, str]]:
    """What each member comes to, all of them at once."""
    found: dict[int, tuple[Verdict | None, str]] = {}
    held = socket.create_server(("", 0))
    port = held.getsockname()[1]

    def run(rank: int) -> None:
        gang = {"members": members, "rank": rank, "master_port": port}
        found[rank] = check(gang, held if rank == 0 else None, torches[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(torches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held.close()
    for torch in torches:
        if torch is not None:
            torch.close()
    return [found[rank] for rank in range(len(torches))]


def fake(tmp_path: Path, version: str = "2.9", bad: int = -1) -> Torch:
    (tmp_path / "fake.py").write_text(FAKE)
    return Torch([sys.executable, str(tmp_path / "fake.py"), version, str(bad)])


def test_a_sound_gang_starts_and_its_speed_is_told(sshd: list[dict[str, Any]], tmp_path: Path) -> None:
    first, *others = together(sshd, [fake(tmp_path) for _ in sshd])
    assert [verdict for verdict, _ in (first, *others)] == [None, None, None]
    assert first[1].startswith("checked 3 nodes in ") and first[1].endswith("; gloo all-reduce 1.50 GB/s")


def test_what_differs_is_told_to_all_with_the_host(sshd: list[dict[str, Any]], tmp_path: Path) -> None:
    verdicts = together(sshd, [fake(tmp_path), fake(tmp_path, "2.5"), fake(tmp_path)])
    assert {verdict for verdict, _ in verdicts} == {
        Verdict("torch is 2.5 on h1 and 2.9 elsewhere: these are different images of one name", "h1")
    }


def test_a_host_that_others_can_not_reach_is_named(sshd: list[dict[str, Any]]) -> None:
    sshd[2]["ssh_port"] = free_port()  # nothing listens there
    verdict = together(sshd, [None, None, None])[1][0]
    assert verdict is not None and verdict.host == "h2"
    assert f"rank 0 on h0 to rank 2 on h2: 127.0.0.3:{sshd[2]['ssh_port']} Connection refused and 1 more" in str(
        verdict
    )


def test_pairs_tell_whose_fault_a_failing_all_reduce_is() -> None:
    assert blamed(THREE, {(0, 2): "no route"}, "x").host == "h2"
    assert blamed(THREE, {(0, 1): "a", (0, 2): "b"}, "x").host == "h0"
    assert blamed(THREE[:2], {(0, 1): "a"}, "x").host == "h1"


def test_a_member_that_does_not_come_is_named(sshd: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "COME_S", 0.5)
    verdict = together(sshd[:2] + sshd[2:], [None, None])[1][0]
    assert verdict is not None and verdict.host == "h2" and "rank 2 on h2 did not reach rank 0" in verdict.message


def test_gpus_are_those_that_are_leased_and_nobody_elses_memory_is_on_them() -> None:
    assert gpu_trouble(["GPU-a"], lambda: "GPU-a, 3\n") == ""
    assert gpu_trouble(["GPU-a", "GPU-b"], lambda: "GPU-a, 3\n") == "sees 1 of its 2 GPUs; GPU-b is missing"
    assert gpu_trouble(["GPU-a"], lambda: "GPU-a, 30720\n") == "another program holds memory of GPU-a (30.0 GiB)"
    report = Report(1, [], "sees 1 of its 2 GPUs")
    reports = {0: Report(0, []), 1: report, 2: Report(2, [])}
    assert judge(THREE, reports, {}) == Verdict("rank 1 on h1: sees 1 of its 2 GPUs", "h1")


@pytest.mark.parametrize("size", [2, 9, 10, 64])
def test_every_way_is_tried_from_both_ends(size: int) -> None:
    members = [{"rank": rank} for rank in range(size)]
    ways = {(m["rank"], peer["rank"]) for m in members for peer in peers_of(m, members)}
    assert all((b, a) in ways and a != b for a, b in ways)
    assert len(ways) <= size * 8


def test_the_program_runs_as_one_file(tmp_path: Path) -> None:

    (tmp_path / "gang.pyz").write_bytes(program())
    done = subprocess.run([sys.executable, "-I", "gang.pyz"], cwd=tmp_path, capture_output=True, text=True)
    assert "gang.json" in done.stderr and "FileNotFoundError" in done.stderr
