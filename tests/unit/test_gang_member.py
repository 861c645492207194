"""What images/gang/ does inside a member of a gang, where that needs no container."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from images.gang.member import Failure, hold, interface_variables, write_hosts, write_keys
from jobs.gang import GangKeys, Member, gang_files
from tests.docker.ssh_client import free_port

TWO = ({"host": "h1", "address": "10.0.0.1"}, {"host": "h2", "address": "127.0.0.1"})


def test_the_own_name_does_not_lead_to_the_host_itself_any_more(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("127.0.0.1 localhost\n127.0.1.1 gpu1.lan gpu1 # Debian's\n10.9.9.9 node0 other\n")
    for _ in range(2):  # also when the container is started again
        write_hosts(file, {"10.0.0.1": ["node0", "h1"], "10.0.0.2": ["node1", "h2"]}, {"address": "10.0.0.1"}, "gpu1")
    assert file.read_text() == (
        "127.0.0.1 localhost\n127.0.1.1 gpu1.lan\n10.9.9.9 other\n10.0.0.1 node0 h1 gpu1\n"
        "::ffff:10.0.0.1 node0-mapped\n10.0.0.2 node1 h2\n::ffff:10.0.0.2 node1-mapped\n"
    )


def test_the_interface_is_that_of_the_cluster_address_and_what_the_user_says_counts() -> None:
    assert interface_variables(TWO, TWO[1], {}) == {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    assert interface_variables(TWO, TWO[1], {"NCCL_SOCKET_IFNAME": "ib0"}) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert interface_variables(TWO[1:], TWO[1], {}) == {}
    with pytest.raises(Failure, match=r"no network interface of h1 has its cluster address 10\.0\.0\.1; it has "):
        interface_variables(TWO, TWO[0], {})


def test_keys_leave_the_users_own_alone(tmp_path: Path) -> None:
    members = [Member(0, "h1", "10.0.0.1", 20001), Member(1, "h2", "10.0.0.2", 20002)]
    for name, content in gang_files(members, 0, 29500, GangKeys("ED", "RSA"), "ssh-ed25519 AAAA").items():
        (tmp_path / name).write_bytes(content)
    folder = tmp_path / ".ssh"
    folder.mkdir()
    (folder / "id_rsa").write_text("my own")
    (folder / "config").write_text("Host mine\n    Port 1\n")
    for _ in range(2):
        write_keys(tmp_path, folder)
    assert [(folder / name).read_text() for name in ("id_rsa", "navarch_rsa", "id_ed25519")] == ["my own", "RSA", "ED"]
    own = ["ssh", "-F", str(folder / "config"), "-G", "node1"]
    said = subprocess.run(own, capture_output=True, text=True, check=True).stdout
    assert {"hostname 10.0.0.2", "port 20002"} <= set(said.splitlines())
    assert (folder / "config").read_text().endswith("Host mine\n    Port 1\n")
    assert (folder / "config").read_text().count("Host node1 h2\n") == 1


def test_a_taken_master_port_is_found_before_others_are_told() -> None:
    with socket.create_server(("", free_port())) as other:
        port = other.getsockname()[1]
        with pytest.raises(Failure, match=f"port {port} of h1 is used by another program"):
            hold(port, TWO[0])


def test_the_entrypoint_is_told_what_to_do(tmp_path: Path) -> None:
    """As a program: an error is an event, a line for people and an exit code."""
    members = [Member(0, "h1", "127.0.0.1", 20001), Member(1, "h2", "10.255.255.254", 20002)]
    for name, content in gang_files(members, 1, 29500, GangKeys("", ""), "").items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "hosts").touch()
    code = (
        "import sys; from pathlib import Path; import images.gang.member as g; "
        "g.HOSTS = Path(sys.argv[1], 'hosts'); g.main(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.returncode) == ("exit 78\n", 78)
    event = json.loads(done.stderr.splitlines()[0].removeprefix("@navarch "))
    assert (event["kind"], event["rank"]) == ("host_misconfigured", 1)
    assert done.stderr.splitlines()[1] == f"error: {event['message']}"
