"""From a spec and a placement to the exact containers."""

import json
from typing import Any

import pytest
import yaml

from jobs.gang import GangKeys
from jobs.launch import Address, ContainerPlan, Launch, plan_containers, pool_ports, shared_memory
from jobs.placement import Demand, HostCapacity, Placement, place
from jobs.spec import JobSpec, parse_spec
from service.backends.engines import ImageFacts
from service.backends.fitness import started_in
from service.backends.references import SYSTEM_LABEL


def plans(document: dict[str, Any], hosts: int = 1, attempt: int = 1, **launch: Any) -> tuple[ContainerPlan, ...]:
    spec: JobSpec = parse_spec(document)
    r = spec.resources
    capacity = [
        HostCapacity(f"h{n}", f"h{n}", tuple(f"GPU-{n}-{i}" for i in range(8)), first_port=20000, last_port=20009)
        for n in range(1, hosts + 1)
    ]
    placement = place(Demand(r.nodes, r.gpus, spec.fixed_ports, pool_ports(spec)), capacity)
    assert isinstance(placement, Placement)
    addresses = [Address(p.host_id, p.host_id, f"10.0.0.{p.host_id[1:]}") for p in placement.replicas]
    given: dict[str, Any] = {
        "deployment": "0123456789abcdef",
        "job_id": "id1",
        "job_name": "demo",
        "attempt": attempt,
        "run_dir": "/data/jobs/id1/run",
        "authorized_keys": "ssh-ed25519 AAAA me\n",
        "host_key": "PRIVATE",
        "host_key_public": "ssh-ed25519 BBBB job",
        "secrets": {},
        "training": spec.training,
        "gang_keys": GangKeys("", "", ("ssh-rsa CCCC gang",)),
        **launch,
    }
    return plan_containers(spec, placement, addresses, Launch(**given))


SFT = {"type": "sft", "image": "cpu", "model": "/m", "data": [{"path": "/d.json"}]}


def test_a_command_on_one_gpu() -> None:
    (plan,) = plans(
        {
            "type": "command",
            "image": "cpu",
            "command": "python train.py",
            "resources": {"gpus": 1, "memory": "8GB"},
            "ports": ["8095:22", 7000],
            "mounts": ["/data:/workspace/data:ro"],
            "env": {"A": "b"},
            "secrets": {"TOKEN": "hidden"},
        },
        secrets={"TOKEN": "s3cret"},
    )
    assert plan.name == "navarch-01234567-demo-1-0"
    assert plan.command == ("bash", "-c", "python train.py")
    assert plan.gpus == ("GPU-1-0",)
    assert plan.ports == {22: 8095, 7000: 7000}
    assert not plan.host_network
    assert plan.memory == 8 * 1024**3
    assert [(m.source, m.target, m.read_only) for m in plan.mounts] == [
        ("/data", "/workspace/data", True),
        ("/data/jobs/id1/run", "/workspace/run", False),
    ]
    assert plan.environment["A"] == "b"
    assert "TOKEN" not in plan.environment
    assert plan.files["env"] == b"TOKEN=s3cret\n"
    assert plan.files["authorized_keys"].startswith(b"ssh-ed25519")
    assert "s3cret" not in repr(plan)
    assert plan.labels == {
        "navarch.deployment": "0123456789abcdef",
        "navarch.job": "id1",
        "navarch.attempt": "1",
        "navarch.replica": "0",
    }


def test_training_with_one_process_runs_directly() -> None:
    (plan,) = plans(SFT)
    assert plan.command == ("/opt/navarch/bin/navarch-train", "sft", "--config", "/run/navarch/run.yaml")
    assert yaml.safe_load(plan.files["run.yaml"]) == {"model": "/m", "data": [{"path": "/d.json"}]}
    assert "NAVARCH_BARRIER" not in plan.environment
    assert "NAVARCH_RESUME" not in plan.environment
    assert plan.environment["WORLD_SIZE"] == "1"
    assert plan.environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_another_attempt_resumes() -> None:
    assert plans(SFT, attempt=2)[0].environment["NAVARCH_RESUME"] == "auto"


def test_training_with_several_processes_runs_under_torchrun() -> None:
    (plan,) = plans({**SFT, "resources": {"gpus": 4}})
    assert plan.command[:9] == (
        "/opt/navarch/bin/torchrun",
        "--nnodes=1",
        "--node-rank=0",
        "--rdzv-backend=static",
        "--max-restarts=0",
        "--nproc-per-node=4",
        "--master-addr=127.0.0.1",
        "--master-port=29500",
        "--no-python",
    )
    assert plan.shm_size == 16 << 30  # 4 GPUs


def test_a_gang_shares_its_hosts_network_and_waits_at_the_barrier() -> None:
    first, second = plans({**SFT, "resources": {"nodes": 2, "gpus": 8}}, hosts=2)
    assert first.host_network
    assert first.environment["MASTER_ADDR"] == second.environment["MASTER_ADDR"] == "10.0.0.1"
    assert first.environment["MASTER_PORT"] == second.environment["MASTER_PORT"]
    assert first.environment["MASTER_PORT"] != first.environment["NAVARCH_SSH_PORT"]
    assert [p.environment["NODE_RANK"] for p in (first, second)] == ["0", "1"]
    assert first.environment["WORLD_SIZE"] == "16"
    assert first.environment["NAVARCH_BARRIER"] == "1"
    assert first.environment["NAVARCH_SSH_PORT"] == str(first.ports[22])
    assert first.files["hostfile"] == b"node0 slots=8\nnode1 slots=8\n"
    assert second.command[1:7] == (
        *("--nnodes=2", "--node-rank=1", "--rdzv-backend=static", "--max-restarts=0", "--nproc-per-node=8"),
        "--master-addr=10.0.0.1",
    )
    gang = json.loads(second.files["gang.json"])
    assert (gang["rank"], str(gang["master_port"])) == (1, first.environment["MASTER_PORT"])
    assert gang["hosts"] == {"10.0.0.1": ["node0", "h1"], "10.0.0.2": ["node1", "h2"]}
    assert second.files["authorized_keys"] == b"ssh-ed25519 AAAA me\n"
    assert second.files["gang_authorized_keys"] == b"ssh-rsa CCCC gang\n"
    assert b"Host node1 h2\n    HostName 10.0.0.2\n    Port %d\n" % second.ports[22] in first.files["ssh_config"]


def test_members_on_one_host_have_names_of_their_own() -> None:
    first, _ = plans({**SFT, "resources": {"nodes": 2, "gpus": 4}})
    assert json.loads(first.files["gang.json"])["hosts"] == {"10.0.0.1": ["node0", "node1", "h1"]}
    assert first.files["ssh_config"].count(b"Host node1\n") == 1


def test_a_container_without_ssh_gets_no_keys() -> None:
    (plan,) = plans({"type": "command", "image": "debian", "command": "true", "ssh": False})
    assert plan.ports == {}
    assert set(plan.files) == {"hostfile"}


@pytest.mark.parametrize(
    ("resources", "shm"),
    [
        ({}, 4 << 30),
        ({"gpus": 8}, 32 << 30),
        ({"gpus": 8, "shm": "1GB"}, 1 << 30),
        ({"memory": "2GB"}, 2 << 30),
    ],
)
def test_shared_memory_is_enough_for_data_loaders_unless_the_spec_says_otherwise(
    resources: dict[str, Any], shm: int
) -> None:
    assert shared_memory(parse_spec({"type": "command", "image": "x", "command": "y", "resources": resources})) == shm


def test_the_image_s_own_path_stands_where_the_job_s_says_so() -> None:
    document = {"type": "command", "image": "x", "command": ["y"], "env": {"PATH": "/workspace/bin:$PATH"}}
    (container,) = plans(document)
    image = ImageFacts("sha256:1", "x", {SYSTEM_LABEL: "1"}, search_path="/opt/conda/bin:/usr/bin")
    started = started_in(container, image, frozenset)
    assert started.environment["PATH"] == "/workspace/bin:/opt/conda/bin:/usr/bin"
