"""Into a job's container as a person and an IDE go: navarch ssh, ssh, scp, sftp, rsync and forwarded ports."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.contract.schemas import Job
from tests.docker.front_door import FrontDoor, until
from tests.docker.ssh_client import SshClient, free_port

WORKSPACE = """\
type: command
name: workspace
image: {image}
command: cd /srv && echo inside > hello && exec python3 -m http.server 8123 --bind 127.0.0.1
env: {{FROM_SPEC: seen}}
grace: 1s
"""


@pytest.fixture(scope="module")
def job(door: FrontDoor, system_image: str) -> Job:
    """A workspace that has been submitted by the command line, which brings the user's key along."""
    spec = door.folder / "workspace.yaml"
    spec.write_text(WORKSPACE.format(image=system_image))
    submitted = door.navarch("submit", str(spec))
    assert submitted.returncode == 0, submitted.stderr
    with door.client() as client:
        until(lambda: client.job("workspace").ssh is not None, "the workspace can be reached")
        return client.job("workspace")


@pytest.fixture
def ssh(door: FrontDoor, job: Job) -> SshClient:
    assert job.ssh is not None
    return SshClient(job.ssh.port, door.folder / "config" / "id_ed25519")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def test_navarch_ssh_runs_a_command_and_gives_its_exit_code(door: FrontDoor, job: Job) -> None:
    done = door.navarch("ssh", "workspace", "--", "echo $FROM_SPEC; hostname; exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines()[0] == "seen"
    assert not (door.folder / "home" / ".ssh" / "known_hosts").exists()


def test_words_arrive_as_they_are_in_the_jobs_own_folder(door: FrontDoor, job: Job) -> None:
    done = door.navarch(
        "ssh", "workspace", "--", "python3", "-c", 'import sys; print(sys.argv[1:], "a  b")', "$HOME", "'"
    )
    assert (done.returncode, done.stdout) == (0, """['$HOME', "'"] a  b\n"""), done.stderr
    assert door.navarch("ssh", "workspace", "--", "pwd").stdout == "/workspace\n"
    printed = shlex.split(door.navarch("ssh", "workspace", "--print", "--", "printf", "%s.", "a b", "*").stdout)
    assert run(*printed).stdout == "a b.*."


def test_a_login_begins_in_the_jobs_own_folder(door: FrontDoor, job: Job) -> None:
    said = subprocess.run(
        door.command("ssh", "workspace"), env=door.environ(), cwd=door.folder, input="pwd; exit 5\n",
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (5, "/workspace\n"), said.stderr


def test_a_key_of_ones_own_is_taken_while_the_container_runs_and_nobody_elses(
    door: FrontDoor, job: Job, tmp_path: Path
) -> None:
    for name in ("other", "foreign"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
    done = door.navarch("ssh", "workspace", "--", "true", environment={"NAVARCH_SSH_KEY": str(tmp_path / "other")})
    assert done.returncode == 0, done.stderr
    token = json.loads(door.navarch("user", "add", "eve", "--json").stdout)["token"]
    eve = {"NAVARCH_SSH_KEY": str(tmp_path / "foreign"), "NAVARCH_TOKEN": token}
    done = door.navarch("ssh", "workspace", "--", "true", environment=eve)
    assert done.returncode == 1 and f"does not accept your key {tmp_path / 'foreign'}" in done.stderr, done.stderr
    assert "belongs to local" in done.stderr and "navarch key add --everywhere" in done.stderr


def test_the_next_job_of_a_name_has_the_same_host_key(door: FrontDoor, system_image: str, tmp_path: Path) -> None:
    """An IDE that knows `colossal-env` on port 25950 is not warned when the job is submitted again."""
    spec = tmp_path / "again.yaml"
    spec.write_text(
        f"type: command\nname: again\nimage: {system_image}\ngrace: 1s\nports: ['25950:22']\ncommand: sleep 600\n"
    )
    known = [f"-oUserKnownHostsFile={tmp_path / 'known'}", "-oStrictHostKeyChecking=accept-new", "-oBatchMode=yes"]
    key = str(door.folder / "config" / "id_ed25519")
    for _ in range(2):
        assert door.navarch("submit", str(spec)).returncode == 0
        with door.client() as client:
            until(lambda: client.job("again").ssh is not None, "it can be reached", seconds=90)
            made = client.job("again")
        plain = run("ssh", *known, "-F", "/dev/null", "-i", key, "-p", "25950", "root@127.0.0.1", "ls made; touch made")
        assert plain.returncode == 0 and "CHANGED" not in plain.stderr and plain.stdout == "", plain.stderr
        assert door.navarch("ssh", "again", "--", "true").returncode == 0
        assert door.navarch("stop", "again", "--wait").returncode == 0
        assert door.navarch("rm", made.id).returncode == 0


def test_a_changed_host_key_is_refused(door: FrontDoor, job: Job) -> None:
    """What `navarch ssh` pins is the key that the control plane gave to the container, so an impostor stands out."""
    printed = shlex.split(door.navarch("ssh", "workspace", "--print").stdout)
    assert run(*printed, "true").returncode == 0
    known_hosts = Path(next(word.split("=", 1)[1] for word in printed if word.startswith("UserKnownHostsFile=")))
    impostor = door.folder / "impostor"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(impostor))
    forged = re.sub(
        r"ssh-ed25519 \S+", " ".join(impostor.with_suffix(".pub").read_text().split()[:2]), known_hosts.read_text()
    )
    other = door.folder / "forged_known_hosts"
    other.write_text(forged)
    refused = run(*(word.replace(str(known_hosts), str(other)) for word in printed), "true")
    assert refused.returncode == 255 and "verification failed" in refused.stderr


def test_the_plain_line_that_show_prints_works(door: FrontDoor, job: Job) -> None:
    line = next(line for line in door.navarch("show", "workspace").stdout.splitlines() if " ssh " in line)
    command = shlex.split(line.split("or: navarch")[0])[1:]
    unattended = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oBatchMode=yes"]
    done = run(command[0], *unattended, *command[1:], "cat /srv/hello")
    assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr


def test_a_config_block_serves_scp_sftp_and_rsync(door: FrontDoor, job: Job, tmp_path: Path) -> None:
    block = door.navarch("ssh", "workspace", "--config").stdout
    name = block.split()[1]
    config = tmp_path / "config"
    config.write_text(block)
    up = tmp_path / "up.txt"
    up.write_text("from here\n")
    assert run("scp", "-q", "-F", str(config), str(up), f"{name}:/tmp/up.txt").returncode == 0
    batch = tmp_path / "batch"
    batch.write_text(f"get /tmp/up.txt {tmp_path}/down.txt\n")
    assert run("sftp", "-q", "-F", str(config), "-b", str(batch), name).returncode == 0
    assert (tmp_path / "down.txt").read_text() == "from here\n"
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b.txt").write_text("deep\n")
    synced = run("rsync", "-a", "-e", f"ssh -F {config}", f"{tmp_path}/tree/", f"{name}:/tmp/tree/")
    assert synced.returncode == 0, synced.stderr
    assert run("ssh", "-F", str(config), name, "cat /tmp/tree/a/b.txt").stdout == "deep\n"


def fetch(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/hello")
    return connection.getresponse().read()


def test_ports_are_forwarded_both_ways(job: Job, ssh: SshClient) -> None:
    local = free_port()
    with ssh.forwarding("-L", f"{local}:127.0.0.1:8123"):
        assert fetch(local) == b"inside\n"

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the laptop")

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with ssh.forwarding("-R", f"8124:127.0.0.1:{server.server_port}"):
        asked = ssh.run("python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8124\").read())'")
    server.shutdown()
    assert "from the laptop" in asked.stdout, asked.stderr


def test_a_socks_proxy_reaches_what_only_the_container_reaches(job: Job, ssh: SshClient) -> None:
    local = free_port()
    with ssh.forwarding("-D", str(local)), socket.create_connection(("127.0.0.1", local), timeout=10) as proxy:
        proxy.sendall(b"\x05\x01\x00")
        assert proxy.recv(2) == b"\x05\x00"
        proxy.sendall(b"\x05\x01\x00\x01" + bytes([127, 0, 0, 1]) + (8123).to_bytes(2, "big"))
        assert proxy.recv(10)[1] == 0
        proxy.sendall(b"GET /hello HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: proxy.recv(4096), b""))
        assert answer.endswith(b"inside\n")


def test_only_registered_keys_get_in_and_no_password(job: Job, ssh_key: Path) -> None:
    assert job.ssh is not None
    refused = SshClient(job.ssh.port, ssh_key).run("true")
    assert refused.returncode == 255 and "Permission denied (publickey" in refused.stderr


def test_after_the_end_it_says_so(door: FrontDoor, job: Job) -> None:
    assert door.navarch("stop", "workspace", "--wait").returncode == 0
    refused = door.navarch("ssh", "workspace", "--", "true")
    assert refused.returncode == 1 and "Job workspace is stopped; its container is gone." in refused.stderr
    assert "Traceback" not in refused.stderr
