"""Whether an IDE can use a workspace: what PyCharm and VS Code do over SSH is done, and what fails is named."""

from __future__ import annotations

import io
import secrets
import socket
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any

import paramiko

from service.contract.schemas import Check

PATIENCE_S = 10.0
_VSCODE_GLIBC = (2, 28)
_OWN = frozenset(
    {"HOME", "USER", "LOGNAME", "SHELL", "MAIL", "TERM", "PWD", "OLDPWD", "SHLVL", "HOSTNAME", "_", "LANG", "LANGUAGE"}
)
"""What a login sets by itself."""
_ENVIRON = "tr '\\0' '\\n' < /proc/1/environ; echo; echo ----; env"


class _Failed(Exception):
    """What was tried doesn't work, in words."""


LookIn = Callable[[str, int, str], list[Check]]
"""Address, port and host key of a workspace → what an IDE finds there."""


def check_workspace(address: str, port: int, host_key: str, key: paramiko.PKey) -> list[Check]:
    """One check for each thing; the first that makes the others impossible is the last. Raises nothing."""
    checks: list[Check] = []
    transport: Any = None
    try:
        try:
            transport = _login(address, port, host_key, key)
        except Exception as error:
            return [Check(name="login", ok=False, detail=f"no login at {address}:{port}: {error}")]
        checks.append(Check(name="login", ok=True, detail=f"by key at {address}:{port}, with the pinned host key"))
        for name, probe in _PROBES.items():
            try:
                checks.append(Check(name=name, ok=True, detail=probe(transport)))
            except _Failed as error:
                checks.append(Check(name=name, ok=False, detail=str(error)))
            except Exception as error:  # paramiko has many kinds, and some are no SSHException
                checks.append(Check(name=name, ok=False, detail=f"{type(error).__name__}: {error}"))
        return checks
    finally:
        if transport is not None:
            transport.close()


def _login(address: str, port: int, host_key: str, key: paramiko.PKey) -> Any:
    connection = socket.create_connection((address, port), timeout=PATIENCE_S)
    transport = paramiko.Transport(connection)
    try:
        transport.banner_timeout = transport.auth_timeout = PATIENCE_S
        transport.start_client(timeout=PATIENCE_S)
        found = transport.get_remote_server_key()
        if f"{found.get_name()} {found.get_base64()}" != " ".join(host_key.split()[:2]):
            raise _Failed("another SSH server answers there")
        transport.auth_publickey("root", key)
    except BaseException:
        transport.close()
        raise
    return transport


def run(transport: Any, command: str) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and error of a command."""
    channel = transport.open_session(timeout=PATIENCE_S)
    try:
        channel.settimeout(PATIENCE_S)
        channel.exec_command(command)
        out = channel.makefile("rb").read()
        error = channel.makefile_stderr("rb").read()
        return channel.recv_exit_status(), out, error
    finally:
        channel.close()


def _exec(transport: Any) -> str:
    code, out, _ = run(transport, "true")
    if code != 0 or out:
        noise = f"prints {out[:80]!r}" if out else f"ends with {code}"
        raise _Failed(
            f"`true` {noise}: an IDE takes that for an answer. Look through ~/.bashrc and ~/.profile for what prints"
        )
    return "a command prints nothing but its own output"


def _sftp(transport: Any) -> str:
    content = secrets.token_bytes(100_000)
    name = f"/tmp/.navarch-check-{secrets.token_hex(4)}"
    sftp = paramiko.SFTPClient.from_transport(transport)
    if sftp is None:
        raise _Failed("there is no sftp subsystem")
    try:
        sftp.putfo(io.BytesIO(content), name)
        back = io.BytesIO()
        sftp.getfo(name, back)
        sftp.remove(name)
    finally:
        sftp.close()
    if back.getvalue() != content:
        raise _Failed("what was put by sftp came back changed")
    return "a file went there and came back"


def _reverse_forward(transport: Any) -> str:
    """As a debugger asks for it: on port 0 of localhost, so that sshd chooses one."""
    came: Queue[Any] = Queue()
    try:
        port = transport.request_port_forward("localhost", 0, lambda channel, *_: came.put(channel))
    except paramiko.SSHException as error:
        raise _Failed(f"a reverse forward on port 0 is refused ({error}): debuggers need AllowTcpForwarding") from error
    try:
        code, _, said = run(transport, f"bash -c 'echo hello > /dev/tcp/127.0.0.1/{port}'")
        words = said.decode(errors="replace").strip()[:200]
        try:
            channel = came.get(timeout=PATIENCE_S if code == 0 else 0.1)
        except Empty:
            raise _Failed(f"nothing came through a reverse forward: {words}") from None
        channel.settimeout(PATIENCE_S)
        arrived = channel.recv(64)
        channel.close()
        if arrived != b"hello\n":
            raise _Failed(f"something else came through a reverse forward: {arrived!r}")
    finally:
        transport.cancel_port_forward("localhost", port)
    return "a program in the container reached this side"


def _forward(transport: Any) -> str:
    channel = transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 0), timeout=PATIENCE_S)
    try:
        channel.settimeout(PATIENCE_S)
        banner = channel.recv(8)
    finally:
        channel.close()
    if not banner.startswith(b"SSH-"):
        raise _Failed(f"a port of the container can't be reached through SSH: {banner!r}")
    return "a port of the container can be reached"


def _environment(transport: Any) -> str:
    code, out, error = run(transport, _ENVIRON)
    before, mark, after = out.decode(errors="replace").partition("\n----\n")
    if code != 0 or not mark:
        raise _Failed(f"its variables can't be read: {error.decode(errors='replace').strip()[:200]}")
    container, session = (dict(line.split("=", 1) for line in t.splitlines() if "=" in line) for t in (before, after))
    lost = [
        name
        for name, value in container.items()
        if name not in _OWN and not name.startswith(("LC_", "SSH_")) and session.get(name) != value
    ]
    if lost:
        raise _Failed(f"a login does not see the image's {', '.join(sorted(lost)[:8])} as the container does")
    return "a login sees the variables of the image"


def _glibc(transport: Any) -> str:
    _, out, _ = run(transport, "getconf GNU_LIBC_VERSION")
    words = _last_line(out).split()
    try:
        version = tuple(int(part) for part in words[1].split("."))
    except (IndexError, ValueError):
        raise _Failed("it has no glibc: VS Code and JetBrains bring programs that need one") from None
    if version < _VSCODE_GLIBC:
        raise _Failed(f"its glibc {words[1]} is older than the 2.28 that VS Code's server of today needs")
    return f"glibc {words[1]}"


def _python(transport: Any) -> str:
    code, out, _ = run(transport, "/usr/local/bin/python --version")
    if code != 0:
        raise _Failed("there is no /usr/local/bin/python, the interpreter that `ide` names")
    return f"/usr/local/bin/python is {_last_line(out)}"


def _last_line(out: bytes) -> str:
    """What a command said, after whatever a shell printed before it."""
    return (out.decode(errors="replace").splitlines() or [""])[-1].strip()


_PROBES: dict[str, Callable[[Any], str]] = {
    "exec": _exec,
    "sftp": _sftp,
    "reverse forward": _reverse_forward,
    "local forward": _forward,
    "environment": _environment,
    "glibc": _glibc,
    "python": _python,
}
