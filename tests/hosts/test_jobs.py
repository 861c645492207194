"""Jobs on another machine leave the same behind as on this one: logs, figures, artifacts; and nothing when they go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.client import ApiError, Client
from service.contract.schemas import Job
from tests.docker.front_door import FrontDoor, until
from tests.hosts.machines import Machine, Machines
from tests.training.making import make_model, make_rows

TRAIN = {"max_steps": 4, "lr": 1e-2, "max_length": 64, "tokens_per_batch": 128}
MAKES = """
mkdir -p model/deep; echo weights > model/deep/weights; ln -s deep/weights model/link
echo apart > apart; ln -s /workspace/run/apart model/far; ln -s /etc model/folder
echo '@navarch {"event": "metrics", "step": 1, "values": {"loss": 2.5}}'
echo '@navarch {"event": "artifact", "kind": "model", "path": "model"}'
echo '@navarch {"event": "artifact", "kind": "dataset", "path": "apart"}'
"""
LEAKS = """
mkdir model; ln -s /etc/passwd model/passwd
echo '@navarch {"event": "artifact", "kind": "model", "path": "model"}'
"""


@pytest.fixture(scope="module")
def h1(door: FrontDoor, hosts: Machines) -> Iterator[Machine]:
    """The only host of the control plane on which anything new is placed."""
    with door.client() as client:
        client.add_host("h1", hosts[0].url, shared_root=str(hosts.shared))
        client.change_host("local", state="draining")
        until(lambda: client.host("h1").reachable, "the host answers")
        yield hosts[0]
        for job in client.jobs():
            client.stop(job.id)
            client.wait(job.id, timeout_s=60)
            client.delete(job.id, artifacts="delete")
        until(lambda: _removed(client), "the host is left")


def _removed(client: Client) -> bool:
    try:
        client.remove_host("h1")
    except ApiError:
        return False
    return True


def run(client: Client, image: str, name: str, script: str, **more: Any) -> Job:
    spec = {"type": "command", "name": name, "image": image, "command": ["sh", "-ec", script], **more}
    return client.wait(client.submit({"workdir": "/workspace/run", **spec}).id, timeout_s=120)


def folders(h1: Machine) -> list[str]:
    """What Navarch has on the host."""
    return h1.shell("cd /var/lib/navarch && find */jobs */artifacts -mindepth 1 -maxdepth 1 2>/dev/null; true").split()


def test_its_log_figures_and_artifacts_come_home_and_it_goes_without_a_trace(
    client: Client, h1: Machine, system_image: str
) -> None:
    job = run(client, system_image, "maker", MAKES)
    assert job.state == "succeeded", (job.message, client.logs(job.id))
    assert job.attempts[0].replicas[0].host == "h1"
    assert client.metrics(job.id).values["loss"] == [2.5]
    files = {"deep/weights": b"weights\n", "far": b"apart\n", "link": b"weights\n"}
    sums = "".join(f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in sorted(files.items()))
    until(lambda: client.artifact("maker-model").digest is not None, "the digest is known")
    found = client.artifact("maker-model")
    assert found.digest == f"sha256:{hashlib.sha256(sums.encode()).hexdigest()}"
    assert found.size == sum(len(text) for text in files.values())
    until(lambda: client.artifact("maker-apart").digest is not None, "that of a file, too")
    assert client.artifact("maker-apart").digest == f"sha256:{hashlib.sha256(files['far']).hexdigest()}"

    with pytest.raises(ApiError, match="artifact maker-model@1"):
        client.remove_host("h1")
    client.delete("maker")  # its artifacts stay
    assert [name for name in folders(h1) if "/jobs/" in name] == []
    kept = client.artifact("maker-model")
    assert h1.shell(f"cat {kept.path}/deep/weights {kept.path}/far {kept.path}/link") == "weights\napart\nweights\n"
    assert h1.shell(f"cat {client.artifact('maker-apart').path}") == "apart\n"
    for name in ("maker-model", "maker-apart"):
        client.delete_artifact(name)
    assert folders(h1) == []


def test_links_out_of_the_run_folder_are_not_followed(client: Client, h1: Machine, system_image: str) -> None:
    job = run(client, system_image, "leaks", LEAKS)
    assert job.state == "succeeded", job.message
    until(lambda: bool(client.artifact("leaks-model").message), "it says why there is no digest")
    found = client.artifact("leaks-model")
    assert found.digest is None and "leads out of the run folder" in (found.message or "")
    with pytest.raises(ApiError, match="leads out of the run folder"):
        client.delete("leaks")
    client.delete("leaks", artifacts="delete")
    assert folders(h1) == []


def test_a_persons_ssh_reaches_it(door: FrontDoor, client: Client, h1: Machine, system_image: str) -> None:
    spec = door.folder / "ssh.yaml"
    spec.write_text(json.dumps({"type": "command", "name": "door", "image": system_image, "command": ["sleep", "600"]}))
    assert door.navarch("submit", str(spec)).returncode == 0
    until(lambda: client.job("door").ssh is not None, "it can be reached")
    access = client.job("door").ssh
    assert access is not None and access.host == h1.address
    done = door.navarch("ssh", "door", "--", "cat /proc/sys/kernel/hostname")
    assert done.stdout.strip() == "door-1-0", (done.stdout, done.stderr)
    client.stop("door")
    assert client.wait("door", timeout_s=60).state == "stopped"


def test_a_folder_that_is_not_shared_keeps_a_job_from_the_host(
    client: Client, hosts: Machines, h1: Machine, system_image: str
) -> None:
    (hosts.shared / "data").mkdir(exist_ok=True)
    (hosts.shared / "data" / "rows").write_text("rows\n")
    mounts = [f"{hosts.shared}/data:/data:ro"]
    job = run(client, system_image, "reads", "cat /data/rows", mounts=mounts)
    assert job.state == "succeeded", job.message
    assert [line.line for line in client.logs(job.id).items] == ["rows"]
    client.change_host("h1", shared_root=None)
    spec = {"type": "command", "name": "waits", "image": system_image, "command": ["true"], "mounts": mounts}
    waits = client.submit(spec)
    until(lambda: "h1 does not have" in (client.job(waits.id).why or ""), "it says where its data isn't")
    assert "local is draining" in (client.job(waits.id).why or "")
    client.stop(waits.id)
    client.change_host("h1", shared_root=str(hosts.shared))


def test_sft_there_leaves_a_model_that_the_next_job_starts_from(
    client: Client, hosts: Machines, h1: Machine, cpu_image: str
) -> None:
    h1.load(cpu_image)
    make_model(hosts.shared / "model")
    rows = make_rows(hosts.shared / "sft.jsonl", "sft")
    spec: dict[str, Any] = {
        **{"type": "sft", "image": cpu_image, "train": TRAIN, "log": {"every": 1}},
        "data": {"sources": [{"path": str(rows)}], "eval_fraction": 0.2},
    }
    first = client.submit({**spec, "name": "first", "model": str(hosts.shared / "model")})
    second = client.submit({**spec, "name": "second", "model": "artifact:first-model"})
    done = client.wait(second.id, timeout_s=200)
    assert done.state == "succeeded", (done.message, client.job(first.id).message)
    assert done.attempts[0].replicas[0].host == "h1"
    before, after = (client.metrics(ref).values["loss"] for ref in (first.id, second.id))
    assert len(before) == 4 and before[0] is not None and after[0] is not None and after[0] < before[0]
