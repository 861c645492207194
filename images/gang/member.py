"""Readies one container of a gang: names, keys, its network interface, the master port. Runs inside, with Python alone.

navarch-entrypoint starts it and reads from its standard output what to do: `NAME=VALUE` for the job's environment,
`ready` when sshd may start, `go` when the job may, `exit CODE` when it must not. What people read goes to standard
error. The control plane puts it into /run/navarch, beside gang.json: every member has the same version.
"""

import ctypes
import errno
import ipaddress
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .check import Torch, check, is_there

GIVEN = Path("/run/navarch")
HOSTS = Path("/etc/hosts")
UNAVAILABLE, MISCONFIGURED = 69, 78
"""Exit codes, as in sysexits.h."""
_BARRIER_POLL_S = 0.02
_KEYS = {"id_ed25519": "navarch_ed25519", "id_rsa": "navarch_rsa", "known_hosts": "navarch_known_hosts"}
_BEGIN, _END = "# navarch begin", "# navarch end"


class Failure(Exception):
    """The gang can't start; `kind` is the error event's."""

    def __init__(self, kind: str, message: str, code: int = UNAVAILABLE, host: str = "") -> None:
        super().__init__(message)
        self.kind, self.code, self.host = kind, code, host


def main(given: Path = GIVEN) -> None:
    gang = json.loads((given / "gang.json").read_text())
    me, members = gang["members"][gang["rank"]], gang["members"]
    try:
        write_hosts(HOSTS, gang["hosts"], me, socket.gethostname())
        write_keys(given, Path.home() / ".ssh")
        for name, value in interface_variables(members, me, os.environ).items():
            say(f"{name}={value}")
            os.environ[name] = value
        held = hold(gang["master_port"], me) if me["rank"] == 0 else None
        torch = Torch() if gang["preflight"] and gang["torch"] and is_there() else None
        say("ready")
        wait_for_go(given / "go")
        if gang["preflight"]:
            preflight(gang, held, torch)
        if held is not None:
            held.close()
        say("go")
    except Failure as failure:
        fail(failure, me)


def preflight(gang: Mapping[str, Any], held: socket.socket | None, torch: Torch | None) -> None:
    """Raises Failure when the gang must not start."""
    try:
        verdict, says = check(gang, held, torch)
    finally:
        if torch is not None:
            torch.close()
    if verdict is not None:
        raise Failure("host_unfit", verdict.message, host=verdict.host)
    if says:
        print(says, file=sys.stderr, flush=True)


def say(line: str) -> None:
    """To the entrypoint."""
    print(line, flush=True)


def fail(failure: Failure, me: Mapping[str, Any]) -> NoReturn:
    """An error event for the control plane, a line for people, the exit code for the entrypoint."""
    event = {"event": "error", "kind": failure.kind, "message": str(failure), "rank": me["rank"], "time": time.time()}
    event["host"] = failure.host or me["host"]
    print(f"@navarch {json.dumps(event)}\nerror: {failure}", file=sys.stderr, flush=True)
    say(f"exit {failure.code}")
    sys.exit(failure.code)


# names


def write_hosts(file: Path, names: Mapping[str, Sequence[str]], me: Mapping[str, Any], own: str) -> None:
    """Every member's names lead to its cluster address, and so does this host's own name.

    Distributions let the own name lead to 127.0.1.1: who tells that to others can't be reached.
    """
    ours = {address: list(group) for address, group in names.items()}
    if len(ours) > 1 and not any(own in group for group in ours.values()):
        ours[me["address"]].append(own)
    taken = {name for group in ours.values() for name in (*group, f"{group[0]}-mapped")}
    kept = []
    for line in file.read_text().splitlines():
        words = line.partition("#")[0].split()
        left = [word for word in words[1:] if word not in taken]
        if len(left) == len(words[1:]):
            kept.append(line)
        elif left:
            kept.append(" ".join((words[0], *left)))
    for address, group in ours.items():
        kept.append(" ".join((address, *group)))
        if ":" not in address:  # torch asks for the name of this form, and waits for DNS where nothing has it
            kept.append(f"::ffff:{address} {group[0]}-mapped")
    file.write_text("\n".join((*kept, "")))  # in place: the engine has mounted it


def spans_hosts(members: Sequence[Mapping[str, Any]]) -> bool:
    return len({member["address"] for member in members}) > 1


# logins to each other


def write_keys(given: Path, folder: Path) -> None:
    """Puts the job's keys where ssh, and programs on paramiko, find them; what the user has there stays."""
    if not (given / "ssh_config").exists():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    for source, name in _KEYS.items():
        _write_secret(folder / name, (given / source).read_bytes())
    for source in ("id_ed25519", "id_rsa"):  # for programs that don't read the configuration
        if not (folder / source).exists():
            _write_secret(folder / source, (given / source).read_bytes())
    config = folder / "config"
    text = config.read_text() if config.exists() else ""
    before, begin, rest = text.partition(f"{_BEGIN}\n")
    others = before + rest.partition(f"{_END}\n")[2] if begin else text
    _write_secret(config, f"{_BEGIN}\n{(given / 'ssh_config').read_text()}Host *\n{_END}\n{others}".encode())


def _write_secret(file: Path, content: bytes) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)


# the network


def interface_variables(
    members: Sequence[Mapping[str, Any]], me: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, str]:
    """Which interface NCCL and gloo use on this host: the one that has its cluster address. Names differ by host.

    Nothing for members of one host, and nothing that the user has set. Raises Failure where no interface has it.
    """
    if not spans_hosts(members):
        return {}
    found = list(interfaces())
    wanted = ipaddress.ip_address(me["address"])
    name = me.get("interface") or next((name for name, address in found if address == wanted), None)
    if name is None:
        seen = ", ".join(f"{name} {address}" for name, address in found if not address.is_loopback) or "none but lo"
        raise Failure(
            "host_misconfigured",
            f"no network interface of {me['host']} has its cluster address {wanted}; it has {seen}",
            MISCONFIGURED,
        )
    return {v: name for v in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if v not in environment}


class _Sockaddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26))


class _Ifaddrs(ctypes.Structure):
    pass


_Ifaddrs._fields_ = (
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_Sockaddr)),
    ("rest", ctypes.c_void_p * 3),
)
_PLACES = {socket.AF_INET.value: slice(2, 6), socket.AF_INET6.value: slice(6, 22)}
"""Where in the data of a socket address the address itself is."""


def interfaces() -> Iterator[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """Every address of every network interface (getifaddrs)."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Ifaddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs")
    try:
        entry = first
        while entry:
            found = entry.contents
            if found.address and (place := _PLACES.get(found.address.contents.family)):
                packed = bytes(found.address.contents.data[place])
                yield found.name.decode(), ipaddress.ip_address(packed)
            entry = found.next
    finally:
        libc.freeifaddrs(first)


def hold(port: int, me: Mapping[str, Any]) -> socket.socket:
    """The master port, bound before anybody is told of it. Raises Failure where another program has it."""
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = f"port {port} of {me['host']} is used by another program"
            raise Failure("port_taken", said) from error
    return socket.create_server(("", port))  # a host without IPv6


# the barrier


def wait_for_go(file: Path) -> None:
    """Until the control plane says that every member is ready."""
    while not _released(file):
        time.sleep(_BARRIER_POLL_S)


def _released(file: Path) -> bool:
    try:
        return file.read_text().strip() != "stale"  # that of the container of which an image was made
    except FileNotFoundError:
        return False
