"""A Docker Engine of the test's own, so that it may be killed, restarted and given GPUs without disturbing anybody."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import docker
import pytest
from docker.errors import APIError, NotFound

_HOOK = "#!/bin/sh\nexit 0\n"
_START_TIMEOUT_S = 60


def remove_containers(client: docker.DockerClient, label: str | None = None) -> None:
    """Removes all containers (with this label), and waits for those that somebody else is just removing."""
    filters = {"label": label} if label else {}
    deadline = time.monotonic() + 60
    while found := client.containers.list(all=True, filters=filters, ignore_removed=True):
        assert time.monotonic() < deadline, f"still there: {found}"
        for container in found:
            try:
                container.remove(force=True, v=True)
            except NotFound:
                continue
            except APIError as error:
                if "already in progress" not in str(error):
                    raise
                time.sleep(0.1)


@dataclass
class OwnEngine:
    """One dockerd with its own data, socket, containerd and bridge."""

    folder: Path
    bridge: str
    subnet: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """dockerd, while it runs."""
    containerd: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "docker.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self, *, gpu_hook: bool = False) -> None:
        """Starts it and waits until it answers. `gpu_hook`: it then accepts GPU requests, on a machine without any."""
        path = os.environ["PATH"]
        if gpu_hook:
            hooks = self.folder / "bin"
            hooks.mkdir(exist_ok=True)
            hook = hooks / "nvidia-container-runtime-hook"
            hook.write_text(_HOOK)
            hook.chmod(0o755)
            path = f"{hooks}:{path}"
        if self.containerd is None:
            self._start_containerd()
        command = [
            "dockerd",
            f"--containerd={self.folder / 'containerd.sock'}",
            f"--data-root={self.folder / 'data'}",
            f"--exec-root={self.folder / 'exec'}",
            f"--pidfile={self.folder / 'docker.pid'}",
            f"--host={self.url}",
            f"--bridge={self.bridge}",
            "--iptables=false",
            "--ip-masq=false",
            "--log-level=error",
        ]
        log = (self.folder / "dockerd.log").open("ab")
        self.processes.append(
            subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PATH": path}, start_new_session=True)
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                client = docker.DockerClient(base_url=self.url, timeout=10)
                client.ping()
                client.close()
                return
            except docker.errors.DockerException:
                if time.monotonic() > deadline or self.processes[-1].poll() is not None:
                    raise RuntimeError((self.folder / "dockerd.log").read_text()[-2000:]) from None
                time.sleep(0.1)

    def _start_containerd(self) -> None:
        """One of its own, as a host's service manager runs it: it survives dockerd."""
        config = self.folder / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{self.folder / "containerd"}"\nstate = "{self.folder / "state"}"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.folder / "containerd.sock"}"\n'
        )
        log = (self.folder / "containerd.log").open("ab")
        self.containerd = subprocess.Popen(
            ["containerd", "--config", str(config), "--log-level", "error"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Ends dockerd; with SIGKILL as a crash would."""
        process = self.processes.pop()
        process.send_signal(sig)
        process.wait(timeout=60)

    def load(self, client: docker.DockerClient, image: str) -> None:
        """Copies an image from another engine."""
        target = docker.DockerClient(base_url=self.url, timeout=300)
        try:
            target.images.get(image)
        except docker.errors.ImageNotFound:
            save = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
            subprocess.run(["docker", "-H", self.url, "load", "-q"], stdin=save.stdout, check=True, capture_output=True)
            save.wait()
        finally:
            target.close()

    def close(self) -> None:
        if self.processes:
            client = docker.DockerClient(base_url=self.url, timeout=30)
            remove_containers(client)
            client.close()
            self.stop(signal.SIGKILL)
        if self.containerd is not None:
            self.containerd.terminate()
            self.containerd.wait(timeout=30)
        subprocess.run(["ip", "link", "del", self.bridge], check=False, capture_output=True)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            mounted = line.split()[1]
            if mounted.startswith(str(self.folder)):
                subprocess.run(["umount", "-l", mounted], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def own_engine(docker_client: docker.DockerClient, system_image: str) -> Iterator[OwnEngine]:
    """A second engine with the system image on it; a machine without root can't have one."""
    number = os.getpid() % 200
    engine = OwnEngine(Path(mkdtemp(prefix="nvd-", dir="/var/tmp")), f"nvd{number}", f"10.213.{number}")
    for command in (
        ["ip", "link", "add", engine.bridge, "type", "bridge"],
        ["ip", "addr", "add", f"{engine.subnet}.1/24", "dev", engine.bridge],
        ["ip", "link", "set", engine.bridge, "up"],
    ):
        subprocess.run(command, check=True)
    try:
        engine.start()
        engine.load(docker_client, system_image)
        yield engine
    finally:
        engine.close()
