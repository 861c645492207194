"""What people and their IDEs do over SSH: log in, copy files, forward ports, find their environment."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from tests.docker.ssh_client import SshClient, free_port

ENVIRONMENT = {
    "NAVARCH_JOB": "job-1",
    "CUDA_HOME": "/usr/local/cuda",
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64:" + "/opt/a-long-path/lib:" * 80,
    "SPACES": "two  words # and a hash",
    "QUOTES": '{"json": true}',
}


@pytest.fixture(scope="module")
def login(docker_client: docker.DockerClient, system_image: str, ssh_key: Path) -> Iterator[SshClient]:
    """A running container that the key opens; it serves HTTP on its port 9000."""
    container = docker_client.containers.run(
        system_image,
        ["python3", "-m", "http.server", "9000", "--bind", "127.0.0.1", "--directory", "/usr/share/doc"],
        detach=True,
        ports={"22/tcp": ("127.0.0.1", None)},
        volumes={str(ssh_key.with_suffix(".pub")): {"bind": "/run/navarch/authorized_keys", "mode": "ro"}},
        environment=ENVIRONMENT,
    )
    try:
        client = SshClient.to(container, ssh_key)
        client.wait()
        yield client
    finally:
        container.remove(force=True, v=True)


def ask(connection: socket.socket) -> bytes:
    """The beginning of the answer to an HTTP request on this connection."""
    with connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(64)


def test_root_logs_in_with_the_key(login: SshClient) -> None:
    result = login.run("whoami; pwd")
    assert (result.stdout, result.returncode) == ("root\n/root\n", 0)


def test_another_key_is_refused(login: SshClient, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    result = SshClient(login.port, tmp_path / "other").run("true")
    assert result.returncode == 255
    assert "Permission denied (publickey)" in result.stderr


def test_passwords_are_refused_even_when_one_is_set(login: SshClient) -> None:
    assert login.run("chpasswd", input="root:secret\n").returncode == 0
    result = login.run("true", "-oPubkeyAuthentication=no", "-oPreferredAuthentications=password,keyboard-interactive")
    assert result.returncode == 255
    assert "Permission denied (publickey)" in result.stderr


def test_exit_codes_and_streams_pass_through(login: SshClient) -> None:
    result = login.run("cat; echo wrong >&2; exit 7", input="text")
    assert (result.stdout, result.stderr.strip(), result.returncode) == ("text", "wrong", 7)


@pytest.mark.parametrize("shell", ["{}", "bash -c {}", "bash -lc {}", "sh -lc {}"])
def test_the_containers_environment_is_there(login: SshClient, shell: str) -> None:
    """IDEs start programs with no login shell, terminals start one: both must see it."""
    script = 'printf "%s\\n" "$NAVARCH_JOB" "$CUDA_HOME" "$LD_LIBRARY_PATH" "$SPACES" "$QUOTES" "$PATH" "$LANG"'
    *found, path, language = login.run(shell.format(f"'{script}'" if " " in shell else script)).stdout.splitlines()
    assert found == list(ENVIRONMENT.values())
    assert path.split(":")[-1] == "/opt/navarch/bin"
    assert language == "C.UTF-8"


def test_the_clients_language_is_accepted(login: SshClient) -> None:
    assert login.run("echo $LC_NAVARCH", "-oSetEnv=LC_NAVARCH=zh_CN").stdout == "zh_CN\n"


def test_python_answers_without_a_shell_profile(login: SshClient) -> None:
    assert login.run("python -c 'import ssl, sqlite3; print(1 + 1)'").stdout == "2\n"


def test_scp_copies_both_ways(login: SshClient, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 4000)
    scp = ["scp", *login.options, "-P", str(login.port)]
    subprocess.run([*scp, str(tmp_path / "weights.bin"), "root@127.0.0.1:/workspace/"], check=True, timeout=30)
    subprocess.run([*scp, "root@127.0.0.1:/workspace/weights.bin", str(tmp_path / "back")], check=True, timeout=30)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "weights.bin").read_bytes()


def test_sftp_puts_lists_and_gets(login: SshClient, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('hi')\n")
    batch = f"mkdir /workspace/project\nput {tmp_path}/script.py /workspace/project/\nls /workspace/project\n"
    result = subprocess.run(
        ["sftp", *login.options, "-P", str(login.port), "-b", "-", "root@127.0.0.1"],
        input=batch, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert "/workspace/project/script.py" in result.stdout
    assert login.run("python /workspace/project/script.py").stdout == "hi\n"


def test_rsync_mirrors_a_folder(login: SshClient, tmp_path: Path) -> None:
    (tmp_path / "src/deep").mkdir(parents=True)
    (tmp_path / "src/deep/a.txt").write_text("a")
    shell = " ".join(["ssh", *login.options, "-p", str(login.port)])
    command = ["rsync", "-a", "--delete", "-e", shell, f"{tmp_path}/src/", "root@127.0.0.1:/workspace/mirror/"]
    subprocess.run(command, check=True, timeout=30)
    (tmp_path / "src/deep/a.txt").rename(tmp_path / "src/b.txt")
    subprocess.run(command, check=True, timeout=30)
    assert login.run("cd /workspace/mirror && find . -type f").stdout == "./b.txt\n"


def test_local_forwarding_reaches_a_service_in_the_container(login: SshClient) -> None:
    port = free_port()
    with login.forwarding("-L", f"127.0.0.1:{port}:127.0.0.1:9000"):
        assert b"200 OK" in ask(socket.create_connection(("127.0.0.1", port), timeout=10))


def test_dynamic_forwarding_is_a_socks_proxy(login: SshClient) -> None:
    port = free_port()
    with login.forwarding("-D", f"127.0.0.1:{port}"):
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.sendall(b"\x05\x01\x00")
        assert connection.recv(2) == b"\x05\x00"
        connection.sendall(b"\x05\x01\x00\x03" + bytes([len("localhost")]) + b"localhost" + struct.pack(">H", 9000))
        assert connection.recv(64)[:2] == b"\x05\x00"
        assert b"200 OK" in ask(connection)


def test_remote_forwarding_brings_a_local_service_into_the_container(login: SshClient) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from outside")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with login.forwarding("-R", f"127.0.0.1:7777:127.0.0.1:{server.server_port}"):
            assert login.run("curl -s http://127.0.0.1:7777/").stdout == "from outside"
    finally:
        server.shutdown()
        server.server_close()


def test_keys_work_where_root_is_somebody_elses_folder(
    run_container: Callable[..., Container], system_image: str, ssh_key: Path, tmp_path: Path
) -> None:
    """A home folder mounted from the host belongs to its user there; sshd would refuse keys in it."""
    home = tmp_path / "home"
    home.mkdir(mode=0o775)
    subprocess.run(["chown", "1000:1000", str(home)], check=True)
    container = run_container(
        system_image,
        ports={"22/tcp": ("127.0.0.1", None)},
        volumes={
            str(home): {"bind": "/root", "mode": "rw"},
            str(ssh_key.with_suffix(".pub")): {"bind": "/run/navarch/authorized_keys", "mode": "ro"},
        },
    )
    SshClient.to(container, ssh_key).wait()
