"""Has the engine mount exactly the folder that was checked, though it takes names only and resolves them as root.

A folder is given to the engine as an anonymous volume of its own `local` driver, bound to `/proc/PID/fd/N`: the open
descriptor of this process. The daemon itself makes that mount, when it starts the container; the kernel takes it from
the descriptor, so no name is resolved that a job could swap, and nobody needs to be root but the daemon. (A plain bind
mount of that path would not do: it is made in the container's own mount namespace, where the kernel refuses other
namespaces' descriptors.) The volume stays mounted until the container ends, and goes with it.

A volume can't be a single file. For a file its folder is mounted out of the way, and a link at the file's place leads
into it: it is the container that follows the link, and it can't leave itself.

Not every daemon can use our descriptors: one that runs with other namespaces than this process (the control plane in a
container, Docker Desktop, a rootless engine) doesn't see them, or worse, sees another process of the same number. So
the first mount asks the daemon for a file with an unguessable name in a folder that only this process holds open. If it
can't show it, the mount root itself (which no job can swap) is mounted out of the way, and folders become links, too.

A container that is started again (a workspace's) needs its mounts again, and the engine has stored how it makes them.
There a link in the data folder stands between: before each start it is made to lead to the descriptor that was opened
for that start.

What nobody can swap is mounted by its name: a whole mount root, and the job's own run folder.
"""

from __future__ import annotations

import io
import os
import secrets
import tarfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import docker.errors

from jobs.launch import CONTAINER_DIR, LABEL_DEPLOYMENT, ContainerPlan
from jobs.spec import Mount
from service.access.mounts import Checked, MountRules
from service.access.paths import Opened, open_below
from service.backends.errors import BadContainer, MountRefused
from service.contract.errors import Problem

HIDDEN = f"{CONTAINER_DIR}/mounts"


@dataclass
class Prepared:
    """Mounts as the engine takes them. What they name is held open until `close`: not before the container runs."""

    mounts: list[dict[str, Any]] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    """Place in the container → where the link there leads."""
    held: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self.held.close()

    def archive(self) -> bytes | None:
        """The links as a tar file, to be put into the created container."""
        if not self.links:
            return None
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as tar:
            for place, leads_to in self.links.items():
                entry = tarfile.TarInfo(place.lstrip("/"))
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, leads_to, 0o777
                tar.addfile(entry)
        return target.getvalue()


class Mounting:
    """Prepares the mounts of one engine's containers."""

    def __init__(self, rules: MountRules) -> None:
        self._rules = rules
        self._lock = threading.Lock()
        self._sees_us: bool | None = None

    def prepare(self, api: Any, plan: ContainerPlan) -> Prepared:
        """Checks each mount, and says how the engine is to make it. Raises MountRefused; the engine's own errors."""
        prepared = Prepared()
        try:
            for mount in plan.mounts:
                self._add(api, plan, mount, prepared)
        except Problem as problem:
            prepared.close()
            raise MountRefused(problem.detail, problem.hint, missing=problem.code == "path_missing") from problem
        except BaseException:
            prepared.close()
            raise
        return prepared

    def _add(self, api: Any, plan: ContainerPlan, mount: Mount, prepared: Prepared) -> None:
        checked = self._open(mount.source, prepared)
        if checked.opened.is_dir and checked.opened.path == checked.anchor:
            prepared.mounts.append(bind(checked.anchor, mount.target, mount.read_only))
            return
        pins = self._pins(api, plan)
        if pins and checked.opened.is_dir:
            prepared.mounts.append(_volume(_name(checked.opened, plan, prepared), mount.target, mount.read_only))
            return
        hidden = f"{HIDDEN}/{len(prepared.mounts)}"
        folder = checked.opened.path.parent if pins else checked.anchor
        above = self._open(str(folder), prepared)
        made = bind(folder, hidden, mount.read_only)
        if pins and folder != checked.anchor:
            made = _volume(_name(above.opened, plan, prepared), hidden, mount.read_only)
        prepared.mounts.append(made)
        prepared.links[mount.target] = f"{hidden}/{checked.below(folder)}"

    def _open(self, path: str, prepared: Prepared) -> Checked:
        checked = self._rules.open_any(path, "The mount")
        prepared.held.enter_context(checked.opened)
        return checked

    def _pins(self, api: Any, plan: ContainerPlan) -> bool:
        with self._lock:
            if self._sees_us is None:
                self._sees_us = _sees_us(api, plan)
            return self._sees_us


def put_links(api: Any, container_id: str, prepared: Prepared) -> None:
    """Makes the links in a created container. Raises BadContainer where the image has a folder in that place."""
    archive = prepared.archive()
    if archive is None:
        return
    url = api._url("/containers/{0}/archive", container_id)
    answer = api._put(url, params={"path": "/", "noOverwriteDirNonDir": "true"}, data=archive)
    try:
        api._raise_for_status(answer)
    except docker.errors.APIError as error:
        places = ", ".join(prepared.links)
        raise BadContainer(f"nothing can be mounted at {places}: {error.explanation}") from error


def _sees_us(api: Any, plan: ContainerPlan) -> bool:
    """Whether the daemon finds what this process holds open. Raises the engine's errors, but not for that."""
    if not hasattr(os, "O_PATH"):
        return False
    name, target = secrets.token_hex(16), f"{HIDDEN}/witness"
    with TemporaryDirectory(prefix="navarch-") as folder:
        Path(folder, name).touch()
        with open_below(Path(folder), ".") as opened:
            host = {"Mounts": [_volume(_held(opened), target, read_only=True)]}
            labels = {LABEL_DEPLOYMENT: plan.labels[LABEL_DEPLOYMENT]}  # whoever dies here leaves what a sweep finds
            container = api.create_container(
                plan.image, ["true"], entrypoint=["true"], host_config=host, labels=labels
            )["Id"]
            try:
                url = api._url("/containers/{0}/archive", container)
                return bool(api.head(url, params={"path": f"{target}/{name}"}, timeout=60).status_code == 200)
            finally:
                api.remove_container(container, v=True, force=True)


def _name(opened: Opened, plan: ContainerPlan, prepared: Prepared) -> str:
    """Under which the daemon finds it: for a container that is started again and again, by a link that stays."""
    if not plan.pins:
        return _held(opened)
    pin = Path(plan.pins, str(len(prepared.mounts)))
    pin.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = pin.with_suffix(".tmp")
    beside.unlink(missing_ok=True)
    beside.symlink_to(_held(opened))
    beside.replace(pin)
    return str(pin)


def _held(opened: Opened) -> str:
    """Under which the daemon finds what this process holds open."""
    return f"/proc/{os.getpid()}/fd/{opened.fd}"


def bind(source: Path, target: str, read_only: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": read_only}


def _volume(device: str, target: str, read_only: bool) -> dict[str, Any]:
    """An anonymous volume; the engine takes no `ReadOnly` for one, so it is its own mount that is read-only."""
    options = {"type": "none", "o": "rbind,ro" if read_only else "rbind", "device": device}
    driver = {"NoCopy": True, "DriverConfig": {"Name": "local", "Options": options}}
    return {"Type": "volume", "Target": target, "VolumeOptions": driver}
