"""Looks at everything that Navarch stands on, from this machine: what is wrong, and what to do about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from service import process
from service.contract.errors import Problem
from service.contract.schemas import Check
from service.locations import config_dir
from service.settings import Settings

LOW_DISK = 5 << 30


def examine(settings: Settings, url: str | None = None) -> list[Check]:
    """All checks; one that fails says what to do next."""
    checks: list[Callable[[], Check]] = [
        _python,
        lambda: _data_dir(settings.data_dir),
        lambda: _disk(settings.data_dir),
        lambda: _engine(settings),
        _ssh,
        _key,
        lambda: _control_plane(settings, url),
    ]
    return [*_run(checks), *_consistency(settings, url)]


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
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        probe = data_dir / ".doctor"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        detail = f"{data_dir} can't be written: {error.strerror}. Choose another with --data-dir or NAVARCH_DATA_DIR."
        return Check(name="data folder", ok=False, detail=detail)
    return Check(name="data folder", ok=True, detail=str(data_dir))


def _disk(data_dir: Path) -> Check:
    free = shutil.disk_usage(data_dir).free
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
    from service.access.keys import find_key

    found = find_key(config_dir())
    if found is None:
        return Check(name="ssh key", ok=True, detail=f"none yet; the first submit makes one under {config_dir()}")
    return Check(name="ssh key", ok=True, detail=f"{found.private} ({found.public.fingerprint})")


def _control_plane(settings: Settings, url: str | None) -> Check:
    from service.client import Client, ClientError

    here = process.running(settings.data_dir)
    try:
        with Client(url or (here.url if here else None), timeout_s=5) as client:
            health = client.health()
            version = client.version()
    except ClientError as error:
        return Check(name="control plane", ok=False, detail=f"{error} {error.hint or ''}".strip())
    if not health.ok:
        bad = "; ".join(f"{check.name}: {check.detail}" for check in health.checks if not check.ok)
        return Check(name="control plane", ok=False, detail=f"{client.url} answers, but {bad}")
    return Check(name="control plane", ok=True, detail=f"{version.version} at {client.url}")


def _consistency(settings: Settings, url: str | None) -> list[Check]:
    """What the control plane finds when it compares its database with the engines; nothing if none answers."""
    from service.client import ApiError, Client, ClientError

    here = process.running(settings.data_dir)
    try:
        with Client(url or (here.url if here else None), timeout_s=30) as client:
            return client.consistency().checks
    except ApiError as error:
        return [Check(name="consistency", ok=False, detail=str(error))]
    except ClientError:
        return []  # the check of the control plane says so
