"""A gang over two machines: its members know each other, log in to each other, and end together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.client import ApiError, Client
from service.contract.schemas import Job
from tests.docker.front_door import FrontDoor, until
from tests.hosts.machines import Machines

MEETS = """
other=$((1 - NODE_RANK))
echo "names: $(awk '{print $1}' $NAVARCH_HOSTFILE | tr '\\n' ' ')"
echo "over there: $(ssh node$other 'echo rank $NODE_RANK; touch /tmp/met' 2>&1)"
until [ -e /tmp/met ]; do sleep 0.1; done
"""
FAILS = """
if [ $NODE_RANK = 1 ]; then sleep 1; echo 'the data is gone' >&2; exit 7; fi
sleep 300
"""


@pytest.fixture(scope="module", autouse=True)
def two_hosts(door: FrontDoor, hosts: Machines) -> Iterator[None]:
    """New jobs are placed on two other machines only."""
    with door.client() as client:
        for name, host in (("h1", hosts[0]), ("h2", hosts[1])):
            client.add_host(name, host.url)
        client.change_host("local", state="draining")
        until(lambda: client.host("h1").reachable and client.host("h2").reachable, "both answer")
        yield
        for job in client.jobs():
            client.stop(job.id)
            client.wait(job.id, timeout_s=60)
            client.delete(job.id, artifacts="delete")
        for name in ("h1", "h2"):
            until(lambda name=name: _removed(client, name), f"{name} is left")


def _removed(client: Client, name: str) -> bool:
    try:
        client.remove_host(name)
    except ApiError:
        return False
    return True


def gang(client: Client, image: str, name: str, script: str, **more: Any) -> Job:
    spec = {"type": "command", "name": name, "image": image, "command": ["sh", "-c", script], **more}
    return client.wait(client.submit({"resources": {"nodes": 2, "spread": True}, **spec}).id, timeout_s=120)


def test_members_on_two_hosts_log_in_to_each_other_by_name(client: Client, system_image: str) -> None:
    job = gang(client, system_image, "meets", MEETS)
    lines = [line.line for line in client.logs(job.id).items]
    assert job.state == "succeeded", (job.message, lines)
    assert {replica.host for replica in job.attempts[0].replicas} == {"h1", "h2"}
    assert sorted(line for line in lines if line.startswith("over there")) == [
        "over there: rank 0",
        "over there: rank 1",
    ]
    assert lines.count("names: node0 node1 ") == 2


def test_the_rank_that_failed_is_named_with_its_host_and_ends_the_others(
    client: Client, door: FrontDoor, system_image: str
) -> None:
    begun = time.monotonic()
    job = gang(client, system_image, "fails", FAILS, grace="2s")
    where = next(replica.host for replica in job.attempts[0].replicas if replica.node_rank == 1)
    assert (job.state, job.reason) == ("failed", "user_error"), job.message
    assert "rank 1" in (job.message or "") and (where or "?") in (job.message or "") and "7" in (job.message or "")
    assert time.monotonic() - begun < 60, "the other one didn't sleep on"
    assert "consistent" in door.navarch("doctor").stdout.lower() or door.navarch("doctor").returncode == 0
