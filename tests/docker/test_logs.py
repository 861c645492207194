"""Logs of real containers: long lines, progress bars, very much of them, and a stop that doesn't wait for all of it."""

from __future__ import annotations

import time
from typing import Any

import docker

from service.client import Client
from service.contract.schemas import LogLine
from tests.docker.front_door import until

LONG = """
import sys
print("a" + "中文日志" * 20000, flush=True)
print("START" + "x" * 100000 + "END", flush=True)
sys.stdout.buffer.write(b"bad \\xff\\xfe bytes \\xe4\\xbd\\n"); sys.stdout.flush()
print("emoji 🚀 nul:\\x00 esc:\\x1b[31mred\\x1b[0m")
print("no newline at the end", end="")
"""
BAR = """
import sys, time
for i in range(30000):
    sys.stderr.write(f"\\rstep {i}/30000 loss {1/(i+1):.5f} " + "#" * 40); sys.stderr.flush()
    if i % 1000 == 0: time.sleep(0.2)
time.sleep(20)
sys.stderr.write("\\nValueError: the reason why it failed\\n")
sys.exit(1)
"""


def submit(client: Client, image: str, script: Any, **more: Any) -> str:
    return client.submit({"type": "command", "image": image, "command": script, "grace": "1s", **more}).id


def texts(client: Client, job: str, **how: Any) -> list[str]:
    found: list[LogLine] = []
    cursor = None
    while (page := client.logs(job, cursor=cursor, limit=1000, **how)).items:
        found += page.items
        cursor = page.next_cursor
    return [line.line for line in found]


def test_long_lines_and_all_kinds_of_bytes_come_whole(client: Client, system_image: str) -> None:
    job = submit(client, system_image, ["python", "-c", LONG])
    assert client.wait(job, timeout_s=120).state == "succeeded"
    assert texts(client, job) == [
        "a" + "中文日志" * 20000,
        "START" + "x" * 100000 + "END",
        "bad \ufffd\ufffd bytes \ufffd",
        "emoji 🚀 nul:\x00 esc:\x1b[31mred\x1b[0m",
        "no newline at the end",
    ]


def test_a_progress_bar_is_seen_while_it_runs_and_its_newest_state_is_kept(client: Client, system_image: str) -> None:
    job = submit(client, system_image, ["python", "-c", BAR])

    def newest() -> int:
        shown = texts(client, job)
        return int(shown[-1].split("/")[0].split()[1]) if shown and shown[-1].startswith("step ") else 0

    until(lambda: newest() > 25000, "its newest state is shown while it has no line break", 120)
    assert client.job(job).state == "running" and len(texts(client, job)) == 1
    ended = client.wait(job, timeout_s=120)
    assert "the reason why it failed" in (ended.message or "")
    bar, why = texts(client, job)
    assert bar.startswith("step 29999/30000") and why == "ValueError: the reason why it failed"


def test_two_lines_of_a_log_that_grows_are_two_lines(client: Client, system_image: str) -> None:
    job = submit(client, system_image, "seq 1 100000000")
    until(lambda: len(client.logs(job, tail=2).items) == 2, "it prints", 60)
    end = client.logs(job, tail=0).next_cursor
    assert len(texts(client, job, tail=2, until=end)) == 2
    client.stop(job)
    client.wait(job, timeout_s=90)


def test_a_stop_does_not_wait_for_a_log_of_many_lines(client: Client, system_image: str) -> None:
    job = submit(client, system_image, "seq 1 4000000; echo all printed; sleep 600")
    until(lambda: client.job(job).state == "running", "it runs", 60)
    time.sleep(5)
    asked = time.monotonic()
    client.stop(job)
    assert client.wait(job, timeout_s=90).state == "stopped"
    assert time.monotonic() - asked < 45, "10 s for the log, and what a busy machine needs for the rest"


def test_the_engine_keeps_a_bounded_log_of_its_own(client: Client, system_image: str) -> None:
    job = submit(client, system_image, "sleep 600")
    until(lambda: client.job(job).state == "running", "it runs", 60)
    name = client.job(job).attempts[0].replicas[0].container_name
    config = docker.from_env().api.inspect_container(name)["HostConfig"]["LogConfig"]
    assert config["Type"] == "local" and (config["Config"]["max-size"], config["Config"]["max-file"]) == ("100m", "2")
    client.stop(job)
    client.wait(job, timeout_s=60)
