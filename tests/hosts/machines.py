"""Several real Docker hosts on one Linux machine, for testing what crosses hosts. Needs root.

Each is a network, mount, UTS and process namespace with its own dockerd, sshd, home folders and boot id, and an address
of its own on a bridge; kernel and disk are shared. The first process of a machine takes everything with it when it is
killed, as a power cut does; images and containers are still there when it is booted again.

A run has a slot: a number in every name and address, and a lock that ends with the process. Whoever takes a slot first
removes what is left of a run that was killed; runs side by side don't meet. The machine's own engine is left alone.

Facts that cost time: `ip netns exec` would hide the cgroup mounts from dockerd, so namespaces are entered with nsenter;
the machine's own dockerd sets FORWARD to DROP, so traffic over the bridge must be let through.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors

from tests.docker.engines import remove_containers

BASE = Path("/var/tmp/navarch-hosts")
SLOTS = 16
BOOT_S = 60.0
DISK = "16g"
"""Of each machine, in memory: what is written there takes room, and goes in no time."""
PLAIN_USER = "plain"
"""An account of every machine that may log in, but not use Docker."""
_CGROUPS = Path("/sys/fs/cgroup")

_BOOT = """\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /run/sshd
mount --bind {folder}/root /root
mount --bind {folder}/home /home
mkdir -p {folder}/var-lib/navarch /var/lib/navarch && mount --bind {folder}/var-lib/navarch /var/lib/navarch
mkdir -p /etc/docker && mount --bind {folder}/etc/docker /etc/docker
for file in passwd shadow group; do mount --bind {folder}/etc/$file /etc/$file; done
cat /proc/sys/kernel/random/uuid > {folder}/boot_id
mount --bind {folder}/boot_id /proc/sys/kernel/random/boot_id
hostname {name}
bash {folder}/sshd.sh
bash {folder}/dockerd.sh &
echo booted > {folder}/booted
trap 'exit 0' TERM
while true; do sleep 3600 & wait $!; done
"""
_SSHD = """\
exec /usr/sbin/sshd -o Port=22 -o ListenAddress={address} -o PidFile=/run/sshd.pid -o HostKey={folder}/host_key \\
  -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o UsePAM=no \\
  -o StrictModes=no -o AuthorizedKeysFile={folder}/authorized_keys -o MaxStartups=100 -o UseDNS=no -E {folder}/sshd.log
"""
_DOCKERD = """\
exec dockerd --data-root={folder}/docker --exec-root=/run/docker --pidfile=/run/docker.pid --cgroup-parent=/{name} \\
  -H unix:///var/run/docker.sock -H unix://{folder}/docker.sock --log-level=error >> {folder}/dockerd.log 2>&1
"""
_EACH_SSHD = """\
for process in /proc/[0-9]*; do
  case "$(cat $process/comm 2>/dev/null)" in sshd*) kill -9 "${process#/proc/}" ;; esac
done; true"""
"""Ends sshd and all its connections; a machine has its own /proc."""


@dataclass
class Machine:
    """One Docker host."""

    name: str
    address: str
    folder: Path
    wire: str
    """Its end of the cable on the bridge."""
    pid: int | None = None
    """Of its first process."""

    @property
    def url(self) -> str:
        return f"ssh://root@{self.address}"

    @property
    def socket(self) -> str:
        """Its engine, past SSH and network: for looking at it from outside."""
        return f"unix://{self.folder / 'docker.sock'}"

    @property
    def on(self) -> bool:
        return self.pid is not None

    def docker(self, timeout: float = 60) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.socket, timeout=timeout)

    def authorize(self, *lines: str) -> None:
        """Exactly these public keys may log in, as whoever."""
        (self.folder / "authorized_keys").write_text("".join(line.strip() + "\n" for line in lines))

    def fingerprint(self) -> str:
        said = _run("ssh-keygen", "-l", "-f", str(self.folder / "host_key.pub"))
        return said.split()[1]

    def change_host_key(self) -> None:
        """As after a new installation: sshd shows another key from now on."""
        _new_key(self.folder / "host_key")
        self.shell(_EACH_SSHD)
        self.shell(f"bash {self.folder}/sshd.sh")

    def cut(self) -> None:
        """Pulls the cable: nothing arrives any more, nobody is told."""
        _run("ip", "link", "set", self.wire, "down")

    def heal(self) -> None:
        _run("ip", "link", "set", self.wire, "up")

    def kill(self) -> None:
        """Cuts the power."""
        pid, self.pid = self.pid, None
        if pid is not None:
            _kill_and_wait(pid)

    def boot(self) -> None:
        """Switches it on; returns when SSH and Docker answer."""
        assert self.pid is None, f"{self.name} runs"
        (self.folder / "booted").unlink(missing_ok=True)
        (self.folder / "docker.sock").unlink(missing_ok=True)
        with (self.folder / "boot.log").open("ab") as log:
            outer = subprocess.Popen(
                [
                    *("nsenter", f"--net=/var/run/netns/{self.name}"),
                    *("unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"),
                    *("bash", str(self.folder / "boot.sh")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._outer = outer
        until = time.monotonic() + BOOT_S
        while not (self.folder / "booted").exists():
            self._alive(outer, until)
        self.pid = _only_child(outer.pid)
        (self.folder / "pid").write_text(f"{self.pid}")
        self.await_docker()

    def kill_docker(self) -> None:
        """The engine dies; its containers run on, until it is there again."""
        self.shell("kill -9 $(cat /run/docker.pid)")

    def start_docker(self) -> None:
        with suppress(FileNotFoundError):
            (self.folder / "docker.sock").unlink()
        command = [*self._inside(), "setsid", "bash", str(self.folder / "dockerd.sh")]
        self._dockerd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.await_docker()

    def await_docker(self) -> None:
        until = time.monotonic() + BOOT_S
        while True:
            try:
                with_timeout = self.docker(timeout=5)
                with_timeout.ping()
                with_timeout.close()
                return
            except docker.errors.DockerException:
                if time.monotonic() > until:
                    raise RuntimeError(f"{self.name}: {_tail(self.folder / 'dockerd.log')}") from None
                time.sleep(0.05)

    def shell(self, command: str, timeout: float = 60) -> str:
        """Runs a command on it as root, not over the network; its output."""
        return _run(*self._inside(), "sh", "-c", command, timeout=timeout)

    def load(self, image: str) -> None:
        """Copies an image from this machine's own engine; nothing happens when it has it."""
        ours = docker.from_env()
        theirs = self.docker(timeout=600)
        try:
            wanted = ours.images.get(image)
            with suppress(docker.errors.ImageNotFound):
                if theirs.images.get(image).id == wanted.id:
                    return
            command = f"docker save {shlex.quote(image)} | docker -H {self.socket} load -q"
            subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, capture_output=True, timeout=600)
        finally:
            ours.close()
            theirs.close()

    def clear(self) -> None:
        """Removes its containers and volumes."""
        client = self.docker()
        try:
            remove_containers(client)
            for volume in client.volumes.list():
                volume.remove(force=True)
        finally:
            client.close()

    def _inside(self) -> list[str]:
        assert self.pid is not None, f"{self.name} is off"
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--pid"]

    def _alive(self, outer: subprocess.Popen[bytes], until: float) -> None:
        if outer.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{self.name} did not boot: {_tail(self.folder / 'boot.log')}")
        time.sleep(0.01)


@dataclass
class Machines:
    """The hosts of one run, and the bridge between them. `up` first, `close` at the end."""

    slot: int
    lock: Any
    machines: list[Machine] = field(default_factory=list)

    @classmethod
    def claim(cls) -> Machines:
        """A slot of one's own; what killed runs left in any is removed."""
        if os.geteuid() != 0:
            raise PermissionError("hosts of namespaces need root: run these tests as root")
        BASE.mkdir(parents=True, exist_ok=True)
        mine: Machines | None = None
        for slot in range(SLOTS):
            lock = (BASE / f"{slot}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            _clean(slot)
            if mine is None:
                mine = cls(slot, lock)
            else:
                lock.close()
        if mine is None:
            raise RuntimeError(f"{SLOTS} runs have hosts already")
        return mine

    @property
    def gateway(self) -> str:
        """This machine's own address on the bridge."""
        return f"10.77.{self.slot}.1"

    @property
    def shared(self) -> Path:
        """A folder that all of them see, and this machine, too, under one name: like NFS."""
        folder = BASE / str(self.slot) / "shared"
        folder.mkdir(exist_ok=True)
        return folder

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines)

    def __getitem__(self, index: int) -> Machine:
        return self.machines[index]

    def up(self, count: int, image: str | None = None) -> None:
        """Sees to it that there are so many, switched on and on the network; new ones have the image."""
        if not self.machines:
            bridge = _bridge(self.slot)
            _run("ip", "link", "add", bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{self.gateway}/24", "dev", bridge)
            _run("ip", "link", "set", bridge, "up")
            for rule in _rules(bridge):
                _run("iptables", "-I", "FORWARD", *rule)
        fresh = [self._make(number) for number in range(len(self.machines) + 1, count + 1)]
        self.machines += fresh
        if fresh and image is not None:  # copying a switched-off engine's disk is faster than loading again
            fresh[0].boot()
            fresh[0].load(image)
            fresh[0].kill()
            for other in fresh[1:]:
                shutil.rmtree(other.folder / "docker")
                _run("cp", "-a", str(fresh[0].folder / "docker"), str(other.folder / "docker"))
        for machine in self.machines:
            machine.heal()
        with ThreadPoolExecutor() as pool:
            list(pool.map(Machine.boot, [machine for machine in self.machines if not machine.on]))

    def close(self) -> None:
        self.machines.clear()
        _clean(self.slot)
        self.lock.close()

    def _make(self, number: int) -> Machine:
        name = f"nvh{self.slot}-{number}"
        machine = Machine(name, f"10.77.{self.slot}.{10 + number}", BASE / str(self.slot) / name, f"{name}w")
        machine.folder.mkdir(parents=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={DISK}", name, str(machine.folder))
        for folder in ("docker", "root", "home", "etc", "var-lib"):
            (machine.folder / folder).mkdir()
        (machine.folder / "etc" / "docker").mkdir()
        _accounts(machine.folder)
        _new_key(machine.folder / "host_key")
        machine.authorize()
        for file, text in (("boot.sh", _BOOT), ("sshd.sh", _SSHD), ("dockerd.sh", _DOCKERD)):
            (machine.folder / file).write_text(text.format(folder=machine.folder, name=name, address=machine.address))
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", machine.wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", machine.wire, "master", _bridge(self.slot))
        inside = ["nsenter", f"--net=/var/run/netns/{name}", "ip"]
        _run(*inside, "addr", "add", f"{machine.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _run(*inside, "link", "set", link, "up")
        _run(*inside, "route", "add", "default", "via", self.gateway)
        return machine


def _bridge(slot: int) -> str:
    return f"nvh{slot}"


def _rules(bridge: str) -> list[list[str]]:
    return [["-i", bridge, "-j", "ACCEPT"], ["-o", bridge, "-j", "ACCEPT"]]


def _accounts(folder: Path) -> None:
    """The machine's own accounts, and one more."""
    for name, line in (
        ("passwd", f"{PLAIN_USER}:x:4242:4242::/home/{PLAIN_USER}:/bin/sh\n"),
        ("shadow", f"{PLAIN_USER}:*:19000:0:99999:7:::\n"),
        ("group", f"{PLAIN_USER}:x:4242:\n"),
    ):
        own = folder / "etc" / name
        own.write_text(Path("/etc", name).read_text() + line)
        own.chmod(0o640 if name == "shadow" else 0o644)
    home = folder / "home" / PLAIN_USER
    home.mkdir()
    os.chown(home, 4242, 4242)


def _new_key(file: Path) -> None:
    for old in (file, file.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file))


def _clean(slot: int) -> None:
    """Removes everything of a slot, whoever made it."""
    folder = BASE / str(slot)
    for file in folder.glob("*/pid"):
        pid = int(file.read_text() or 0)
        if pid and str(file.parent) in _command(pid):  # else the number is somebody else's by now
            _kill_and_wait(pid)
    for name in _run("ip", "netns", "list").split():
        if name.startswith(f"nvh{slot}-"):
            with suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", name)
    bridge = _bridge(slot)
    if Path("/sys/class/net", bridge).exists():
        for rule in _rules(bridge):
            with suppress(subprocess.CalledProcessError):
                _run("iptables", "-D", "FORWARD", *rule)
        _run("ip", "link", "del", bridge)
    for group in _CGROUPS.glob(f"*/nvh{slot}-*"):
        for inner in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                inner.rmdir()
        with suppress(OSError):
            group.rmdir()
    for disk in folder.glob("*"):
        with suppress(subprocess.CalledProcessError):  # it was not mounted yet
            _run("umount", "--lazy", str(disk))
    shutil.rmtree(folder, ignore_errors=True)


def _kill_and_wait(pid: int) -> None:
    """Kills the first process of a machine, and returns when everything in it has gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], 30)
    finally:
        os.close(handle)


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _tail(file: Path) -> str:
    return file.read_text(errors="replace")[-2000:] if file.exists() else ""


def _run(*command: str, timeout: float = 60) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr.strip())
    return done.stdout
