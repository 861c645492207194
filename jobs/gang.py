"""What the members of a gang are told of each other: names, numeric addresses, ports, keys. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

GANG_FILE = "gang.json"
"""What images/gang/ reads in /run/navarch, where a container belongs to a gang."""


@dataclass(frozen=True)
class Member:
    """One container of a gang. Its rank stays the same in all attempts."""

    rank: int
    host: str
    """The host's name, for people."""
    address: str
    """Its host's cluster address, as a number: nothing has to be resolved."""
    ssh_port: int
    gpus: tuple[str, ...] = ()
    interface: str = ""
    """The network interface that has the address; empty: it is looked for."""

    @property
    def name(self) -> str:
        """By which the others find it, whichever host it is on."""
        return f"node{self.rank}"


@dataclass(frozen=True)
class GangKeys:
    """The keys with which the containers of one job log in to each other."""

    ed25519: str = field(repr=False)
    rsa: str = field(repr=False)
    """In the old PEM form: what paramiko reads that knows nothing newer."""
    public: tuple[str, ...] = ()


def hostfile(members: Sequence[Member], slots: int) -> bytes:
    """For mpirun, deepspeed and colossalai run."""
    return "".join(f"{member.name} slots={slots}\n" for member in members).encode()


def gang_files(
    members: Sequence[Member],
    rank: int,
    master_port: int,
    keys: GangKeys,
    host_key: str,
    *,
    preflight: bool = True,
    torch: bool = False,
) -> dict[str, bytes]:
    """Name within /run/navarch → content, for the container of one rank; `host_key`: the public one that all have.

    `preflight`: whether they try each other before the start; `torch`: whether by an all-reduce, too.
    """
    description: dict[str, Any] = {
        "rank": rank,
        "master_port": master_port,
        "preflight": preflight,
        "torch": torch,
        "members": [{**asdict(member), "name": member.name} for member in members],
        "hosts": names_by_address(members),
    }
    known = "".join(f"[{m.address}]:{m.ssh_port} {host_key.strip()}\n" for m in members)
    return {
        GANG_FILE: json.dumps(description, indent=1).encode(),
        "ssh_config": ssh_config(members).encode(),
        "known_hosts": known.encode(),
        "gang_authorized_keys": "".join(f"{line}\n" for line in keys.public).encode(),
        "id_ed25519": keys.ed25519.encode(),
        "id_rsa": keys.rsa.encode(),
    }


def ssh_config(members: Sequence[Member]) -> str:
    """So that `ssh node1`, or the host's name, reaches the container there, and not the host's own sshd."""
    aliases = names_by_address(members)
    blocks = []
    for member in members:
        only = [name for name in aliases[member.address] if len(_at(members, member.address)) == 1]
        blocks.append(
            f"Host {' '.join(dict.fromkeys((member.name, *only)))}\n"
            f"    HostName {member.address}\n    Port {member.ssh_port}\n    User root\n"
            f"    HostKeyAlias [{member.address}]:{member.ssh_port}\n"
            "    IdentityFile ~/.ssh/navarch_ed25519\n    IdentityFile ~/.ssh/navarch_rsa\n"
            "    UserKnownHostsFile ~/.ssh/navarch_known_hosts\n    StrictHostKeyChecking yes\n    BatchMode yes\n"
        )
    return "".join(blocks)


def names_by_address(members: Sequence[Member]) -> Mapping[str, list[str]]:
    """For /etc/hosts: each address with the names of who is there, and the host's own."""
    found: dict[str, list[str]] = {}
    for member in members:
        found.setdefault(member.address, []).append(member.name)
    for member in members:
        if member.host not in found[member.address]:
            found[member.address].append(member.host)
    return found


def _at(members: Sequence[Member], address: str) -> list[Member]:
    return [member for member in members if member.address == address]
