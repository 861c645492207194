"""Whether a container's sshd really answers: a whole SSH handshake, with the host key that the job was given."""

import socket
from typing import Any

import paramiko


class WrongHostKey(Exception):
    """Something else answers on the port."""


def handshake(address: str, port: int, host_key: str, timeout_s: float = 3.0) -> bool:
    """True after a key exchange with `host_key`; False when nothing answers yet. Raises WrongHostKey."""
    try:
        connection = socket.create_connection((address, port), timeout=timeout_s)
    except OSError:
        return False
    transport: Any = None
    try:
        transport = paramiko.Transport(connection)
        transport.banner_timeout = timeout_s
        transport.start_client(timeout=timeout_s)
        found = transport.get_remote_server_key()
    except (paramiko.SSHException, OSError, EOFError):
        return False
    finally:
        if transport is not None:
            transport.close()
        connection.close()
    if f"{found.get_name()} {found.get_base64()}" != " ".join(host_key.split()[:2]):
        raise WrongHostKey(f"another SSH server answers on {address}:{port}")
    return True
