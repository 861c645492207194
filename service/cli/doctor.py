"""Looks at everything that Navarch stands on, from this machine: what is wrong, and what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from service import process
from service.cli.context import runs_here
from service.client import ApiError, Client, ClientError
from service.contract.errors import Problem
from service.contract.schemas import Check
from service.locations import config_dir
from service.settings import Settings

LOW_DISK = 5 << 30


def examine(settings: Settings, url: str | None) -> list[Check]:
    """All checks; one that fails says what to do next.

    `url` names the control plane that is meant, wherever it runs. Without one it is that of the data folder, running
    or not.
    """
    here = process.running(settings.data_dir) if url is None else None
    asked = url or (here.url if here else None)
    checks = [*_run([_python, _ssh, _key])]
    try:
        with Client(asked, timeout_s=30) as client:
            place = client.place()
            if runs_here(place):
                told = {"data_dir": Path(place.data_dir), "engine_url": place.engine_url}
                checks += _run(_machine(settings.model_copy(update=told)))
            return [*checks, _control_plane(client), *_consistency(client)]
    except ClientError as error:
        if url is None:
            checks += _run(_machine(settings))
        return [*checks, Check(name="control plane", ok=False, detail=f"{error} {error.hint or ''}".strip())]


def _machine(settings: Settings) -> list[Callable[[], Check]]:
    """What a control plane needs on its machine."""
    return [lambda: _data_dir(settings.data_dir), lambda: _disk(settings.data_dir), lambda: _engine(settings)]


def _run(checks: list[Callable[[], Check]]) -> Iterator[Check]:
    for check in checks:
        try:
            yield check()
        except Problem as problem:
            yield Check(
                name=check.__name__.strip("_"), ok=False, detail=f"{problem.detail} {problem.hint or ''}".strip()
            )


def _python() -> Check:
    return Check(name="python", ok=sys.version_info >= (3, 11), detail=f"{sys.version.split()[0]} at {sys.executable}")


def _data_dir(data_dir: Path) -> Check:
    existing = _existing(data_dir)
    if not os.access(existing, os.W_OK | os.X_OK):
        detail = f"{existing} can't be written to. Choose another with --data-dir or NAVARCH_DATA_DIR."
        return Check(name="data folder", ok=False, detail=detail)
    return Check(
        name="data folder", ok=True, detail=str(data_dir) + ("" if existing == data_dir else " (not made yet)")
    )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above that is there."""
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _disk(data_dir: Path) -> Check:
    free = shutil.disk_usage(_existing(data_dir)).free
    said = f"{free / (1 << 30):.0f} GB free for {data_dir}"
    if free < LOW_DISK:
        said += ": checkpoints need more. Remove old jobs (navarch rm) and images (navarch image rm)."
    return Check(name="disk", ok=free >= LOW_DISK, detail=said)


def _engine(settings: Settings) -> Check:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.DockerClient(base_url=settings.engine_url, timeout=5)
        try:
            info = client.info()
        finally:
            client.close()
    except DockerException as error:
        denied = "ermission denied" in str(error)
        hint = "Add yourself to the group docker, and log in again." if denied else "Start it: systemctl start docker."
        detail = f"No Docker Engine answers at {settings.engine_url}. {hint}"
        return Check(name="docker engine", ok=False, detail=detail)
    gpus = "nvidia" in (info.get("Runtimes") or {})
    said = f"{info.get('ServerVersion')} at {settings.engine_url}, {info.get('NCPU')} CPUs, "
    return Check(
        name="docker engine", ok=True, detail=said + ("with the NVIDIA runtime" if gpus else "no NVIDIA runtime")
    )


def _ssh() -> Check:
    found = shutil.which("ssh")
    return Check(name="ssh", ok=found is not None, detail=found or "There is no ssh here: install openssh-client.")


def _key() -> Check:
    from service.client.ssh import find_key

    found = find_key(config_dir())
    if found is None:
        return Check(name="ssh key", ok=True, detail=f"none yet; the first submit makes one under {config_dir()}")
    return Check(name="ssh key", ok=True, detail=f"{found.private} ({found.public.fingerprint})")


def _control_plane(client: Client) -> Check:
    health = client.health()
    if not health.ok:
        bad = "; ".join(f"{check.name}: {check.detail}" for check in health.checks if not check.ok)
        return Check(name="control plane", ok=False, detail=f"{client.url} answers, but {bad}")
    return Check(name="control plane", ok=True, detail=f"{client.version().version} at {client.url}")


def _consistency(client: Client) -> list[Check]:
    """What the control plane finds when it compares its database with the engines."""
    try:
        return client.consistency().checks
    except ApiError as error:
        return [Check(name="consistency", ok=False, detail=str(error))]
