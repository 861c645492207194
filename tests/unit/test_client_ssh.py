"""SSH keys and commands: what is found, made, authorised and pinned."""

from __future__ import annotations

import base64
import struct
import subprocess
from pathlib import Path

import pytest

from service.access.keys import KeyRing, authorized_keys
from service.access.principals import LOCAL
from service.client.ssh import Login, find_key, pin_host_key, user_key
from service.contract.errors import Problem
from service.contract.ssh_keys import PublicKey
from service.store.tables import Event
from tests.unit.simulation import World


def make_key(path: Path, kind: str = "ed25519") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "me@here", "-f", str(path)], check=True)
    return path.with_name(path.name + ".pub").read_text()


@pytest.fixture(autouse=True)
def no_chosen_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAVARCH_SSH_KEY", raising=False)


def test_a_key_is_made_once_where_there_is_none_and_openssh_can_use_it(tmp_path: Path) -> None:
    assert find_key(tmp_path / "config", home=tmp_path) is None
    key = user_key(tmp_path / "config", home=tmp_path)
    assert user_key(tmp_path / "config", home=tmp_path) == key
    assert key.private.stat().st_mode & 0o777 == 0o600
    derived = subprocess.run(["ssh-keygen", "-y", "-f", str(key.private)], capture_output=True, text=True, check=True)
    assert derived.stdout.split()[:2] == [key.public.type, key.public.body]


def test_ones_own_key_comes_first_in_the_order_of_openssh(tmp_path: Path) -> None:
    user_key(tmp_path / "config", home=tmp_path)
    make_key(tmp_path / ".ssh" / "id_rsa", "rsa")
    assert user_key(tmp_path / "config", home=tmp_path).private.name == "id_rsa"
    make_key(tmp_path / ".ssh" / "id_ed25519")
    assert user_key(tmp_path / "config", home=tmp_path).private == tmp_path / ".ssh" / "id_ed25519"


def test_a_private_key_without_its_public_half_is_passed_over_but_named_when_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / ".ssh" / "id_ed25519")
    (tmp_path / ".ssh" / "id_ed25519.pub").unlink()
    assert find_key(tmp_path / "config", home=tmp_path) is None
    monkeypatch.setenv("NAVARCH_SSH_KEY", str(tmp_path / ".ssh" / "id_ed25519"))
    with pytest.raises(Problem, match=r"id_ed25519\.pub can't be read"):
        user_key(tmp_path / "config", home=tmp_path)


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    line = make_key(tmp_path / "id", "ecdsa")
    said = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "id.pub")], capture_output=True, text=True, check=True
    )
    assert PublicKey.parse(line).fingerprint == said.stdout.split()[1]


def test_a_key_that_lies_in_a_security_token_is_one(tmp_path: Path) -> None:
    kind = b"sk-ssh-ed25519@openssh.com"
    blob = b"".join(struct.pack(">I", len(part)) + part for part in (kind, bytes(range(32)), b"ssh:"))
    line = f"{kind.decode()} {base64.b64encode(blob).decode()} me"
    (tmp_path / "id.pub").write_text(line)
    said = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "id.pub")], capture_output=True, text=True, check=True)
    assert PublicKey.parse(line).fingerprint == said.stdout.split()[1]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        'command="rm -rf /" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl',
        "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl a\nssh-rsa AAAA",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA" + "A" * 86 + "=",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAE\n",
    ],
)
def test_what_is_no_plain_public_key_is_refused(line: str) -> None:
    with pytest.raises(Problem) as refused:
        PublicKey.parse(line)
    assert refused.value.code == "invalid_key"


def test_a_ring_holds_each_key_once_and_forgets_on_request(tmp_path: Path) -> None:
    world = World(tmp_path)
    ring, ann = KeyRing(world.database), world.principal("ann")
    first, second = (PublicKey.parse(make_key(tmp_path / name)) for name in ("a", "b"))
    assert ring.add(first, ann) and not ring.add(first, ann) and ring.add(second, LOCAL)
    assert ring.add(first, LOCAL), "two may have the same key"
    with world.database.read() as session:
        assert authorized_keys(session, ann.id) == f"{first.line}\n", "somebody else's key opens nothing of hers"
        assert authorized_keys(session, LOCAL.id) == f"{second.line}\n{first.line}\n"
    assert ring.remove(first.fingerprint, ann) and not ring.remove(first.fingerprint, ann)
    assert [one.key for one in ring.all()] == [second, first]
    told = [(event.actor_id, event.kind) for event in world.rows(Event)]
    assert told == [("ann", "key.added"), ("local", "key.added"), ("local", "key.added"), ("ann", "key.removed")]


def test_a_pinned_host_key_replaces_the_one_before(tmp_path: Path) -> None:
    old, new = (make_key(tmp_path / name) for name in ("old", "new"))
    known = tmp_path / "known_hosts"
    pin_host_key(known, "navarch-a", old)
    pin_host_key(known, "navarch-b", old)
    pin_host_key(known, "navarch-a", new)
    lines = dict(line.split(" ", 1) for line in known.read_text().splitlines())
    assert lines["navarch-a"] == " ".join(new.split()[:2]) and lines["navarch-b"] == " ".join(old.split()[:2])


def test_the_command_is_one_that_openssh_understands(tmp_path: Path) -> None:
    login = Login("10.0.0.5", 20022, "root", "navarch-x", tmp_path / "my key", tmp_path / "known hosts")
    shown = subprocess.run(
        [*login.command([])[:1], "-G", *login.command([])[1:]], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert (settings["hostname"], settings["port"], settings["user"]) == ("10.0.0.5", "20022", "root")
    assert settings["hostkeyalias"] == "navarch-x" and settings["stricthostkeychecking"] == "true"
    assert settings["userknownhostsfile"].strip('"') == str(tmp_path / "known hosts")
    assert login.command(["ls", "-l"])[-4:] == ["root@10.0.0.5", "--", "ls", "-l"]


def test_a_config_block_is_one_that_openssh_understands(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(Login("10.0.0.5", 20022, "root", "navarch-x", tmp_path / "my key", tmp_path / "kh").config())
    shown = subprocess.run(["ssh", "-F", str(config), "-G", "navarch-x"], capture_output=True, text=True, check=True)
    assert "hostname 10.0.0.5\n" in shown.stdout and "port 20022\n" in shown.stdout
