"""Hosts are added by one command, and a host that can't be used is refused with what to do on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import ApiError, Client
from service.contract.ssh_keys import make_pair
from tests.docker.front_door import FrontDoor, until
from tests.hosts.machines import PLAIN_USER, Machine, Machines


@pytest.fixture
def h1(hosts: Machines, client: Client) -> Iterator[Machine]:
    """Its first host, before it is one and after."""
    yield hosts[0]
    if any(host.name == "h1" for host in client.hosts()):
        client.remove_host("h1")


def test_a_host_is_added_shown_drained_and_removed(door: FrontDoor, client: Client, h1: Machine) -> None:
    added = door.navarch("host", "add", "h1", h1.url, "--label", "room=a", "--ports", "30000-30099")
    assert added.returncode == 0, added.stderr
    assert h1.fingerprint() in added.stdout
    until(lambda: client.host("h1").reachable, "the host answers")
    host = client.host("h1")
    assert (host.fingerprint, host.labels) == (h1.fingerprint(), {"room": "a"})
    assert (host.first_port, host.last_port, host.cluster_address) == (30000, 30099, h1.address)
    assert host.cpus and host.engine_version

    assert door.navarch("host", "drain", "h1").returncode == 0
    assert client.host("h1").state == "draining"
    assert door.navarch("host", "undrain", "h1").returncode == 0
    assert door.navarch("host", "rm", "h1").returncode == 0
    assert [host.name for host in client.hosts()] == ["local"]
    kinds = [
        event.kind for event in client.events(limit=20) if event.message.startswith("h1") or "h1," in event.message
    ]
    assert {"host.added", "host.draining", "host.active", "host.removed"} <= set(kinds)


def test_the_same_engine_is_no_second_host_and_a_name_is_given_once(client: Client, h1: Machine) -> None:
    client.add_host("h1", h1.url)
    with pytest.raises(ApiError, match="host h1 already") as same:
        client.add_host("h2", h1.url)
    assert same.value.code == "host_exists"
    with pytest.raises(ApiError, match="There is a host h1 already"):
        client.add_host("h1", "ssh://root@10.77.255.1")


def test_a_key_that_is_not_let_in_is_told_the_line_that_lets_it_in(client: Client, h1: Machine, tmp_path: Path) -> None:
    stranger = make_pair(tmp_path / "key", "stranger")
    with pytest.raises(ApiError) as refused:
        client.add_host("h1", h1.url, key=(tmp_path / "key").read_text())
    assert refused.value.code == "host_login_refused"
    assert client.host_key().split()[1] in (refused.value.hint or "")

    h1.authorize(client.host_key(), stranger.line)
    try:
        client.add_host("h1", h1.url, key=(tmp_path / "key").read_text())
        until(lambda: client.host("h1").reachable, "the host answers to the given key")
    finally:
        h1.authorize(client.host_key())


def test_bad_hosts_are_refused_with_what_to_do_there(client: Client, h1: Machine) -> None:
    def refusal(url: str, **settings: str) -> tuple[str, str]:
        with pytest.raises(ApiError) as refused:
            client.add_host("h1", url, **settings)
        return refused.value.code, f"{refused.value} {refused.value.hint}"

    code, said = refusal(f"ssh://root@{h1.address}:2")
    assert code == "host_unreachable" and f"ssh -p 2 root@{h1.address}" in said
    code, said = refusal(f"ssh://{PLAIN_USER}@{h1.address}")
    assert code == "host_unsuitable" and f"usermod -aG docker {PLAIN_USER}" in said
    code, said = refusal(f"{h1.url}/run/nothing.sock")
    assert code == "host_unsuitable" and "no /run/nothing.sock" in said
    code, said = refusal(h1.url, fingerprint="SHA256:somethingelse")
    assert code == "host_key_changed" and h1.fingerprint() in said
    assert refusal("tcp://10.0.0.1:2375")[0] == "invalid_request"
    assert refusal("ssh://root:secret@10.0.0.1")[0] == "invalid_request"
    assert refusal(h1.url, key="no key")[0] == "invalid_key"


def test_a_changed_host_key_is_refused_until_it_is_pinned_anew(client: Client, h1: Machine) -> None:
    client.add_host("h1", h1.url)
    until(lambda: client.host("h1").reachable, "the host answers")
    before = h1.fingerprint()
    h1.change_host_key()
    until(
        lambda: not client.host("h1").reachable and "has changed" in (client.host("h1").message or ""), "it is refused"
    )
    said = client.host("h1").message or ""
    assert before in said and h1.fingerprint() in said and "navarch host trust" in said
    client.change_host("h1", fingerprint=h1.fingerprint())
    until(lambda: client.host("h1").reachable, "the new key is taken")


def test_a_check_tries_the_ways_between_hosts_and_names_other_control_planes(
    client: Client, hosts: Machines, h1: Machine, system_image: str
) -> None:
    client.add_host("h1", h1.url)
    client.add_host("h2", hosts[1].url)
    stranger = h1.docker()
    try:
        until(lambda: client.host("h1").reachable and client.host("h2").reachable, "both answer")
        assert client.check_host("h1").findings == []
        h1.shell(f"iptables -I INPUT -s {hosts[1].address} -p tcp --syn --dport 20000: -j DROP")
        (finding,) = client.check_host("h2").findings
        assert (finding.name, finding.level) == ("network", "error")
        assert f"h2 can't reach h1 at {h1.address}" in finding.detail
        h1.shell("iptables -D INPUT 1")
        assert client.check_host("h2").findings == []
        stranger.containers.run(
            system_image,
            ["60"],
            entrypoint=["sleep"],
            name="theirs",
            detach=True,
            labels={"navarch.deployment": "them"},
        )
        (finding,) = client.check_host("h1").findings
        assert (finding.name, finding.level) == ("other control plane", "warning") and "them theirs" in finding.detail
        assert stranger.containers.get("theirs").status == "running"
    finally:
        h1.clear()
        stranger.close()
        client.remove_host("h2")
