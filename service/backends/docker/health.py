"""What a closer look at a host comes to: findings, each with what to do on that host. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from service.backends.docker import nvidia_report
from service.backends.engines import Examination
from service.contract.schemas import Finding

_GB = 1 << 30
_LOW_DISK, _NO_DISK = 10 * _GB, 1 * _GB
_SMALL_SHM = 64 << 20
_SKEW_S = 5.0


@dataclass(frozen=True)
class Expected:
    """How the host was when it was last accepted as it is."""

    gpus: tuple[str, ...] = ()
    """"NAME UUID" of each."""
    driver: str | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Expected:
        known = facts.get("expected") or {}
        return cls(tuple(known.get("gpus") or ()), known.get("driver"))

    def stored(self) -> dict[str, Any]:
        return {"gpus": list(self.gpus), "driver": self.driver}


def judge(name: str, seen: Examination, expected: Expected, leased: Collection[str]) -> tuple[list[Finding], Expected]:
    """What is wrong, and what is expected from now on: what has come is, what has gone still is."""
    report = nvidia_report.parse(seen.report) if seen.report else None
    found = [*_gpus(name, seen, report, expected, leased), *_machine(name, seen)]
    if report is None:
        return found, expected
    now = [f"{gpu.name} {gpu.uuid}" for gpu in report.gpus]
    return found, Expected(tuple(dict.fromkeys([*expected.gpus, *now])), expected.driver or report.driver)


def accepted(seen: Examination) -> Expected:
    """The host as it is now is as it should be."""
    report = nvidia_report.parse(seen.report) if seen.report else None
    return Expected(tuple(f"{gpu.name} {gpu.uuid}" for gpu in report.gpus), report.driver) if report else Expected()


def _gpus(
    name: str, seen: Examination, report: nvidia_report.Report | None, expected: Expected, leased: Collection[str]
) -> list[Finding]:
    if report is None:
        lost = nvidia_report.without(expected.gpus, [], name)
        if not seen.gpu_devices:
            return lost
        detail = (
            f"{name} has {seen.gpu_devices} NVIDIA GPUs, but Docker can't give them to containers. On {name}: "
            "install nvidia-container-toolkit, then "
            "`nvidia-ctk runtime configure --runtime=docker && systemctl restart docker`."
        )
        return [*lost, Finding(name="nvidia runtime", level="error", detail=detail)]
    found = nvidia_report.findings(report, leased)
    found += nvidia_report.without(expected.gpus, [f"{gpu.name} {gpu.uuid}" for gpu in report.gpus], name)
    if expected.driver and expected.driver != report.driver:
        detail = (
            f"The NVIDIA driver of {name} was {expected.driver} and is {report.driver} now: images that need another "
            f"one fail there. `navarch host check --accept {name}` takes it as it is."
        )
        found.append(Finding(name="driver", level="warning", detail=detail))
    if seen.xids:
        detail = f"The driver reported errors since the host was booted: {'; '.join(seen.xids)}. On {name}: `dmesg`."
        found.append(Finding(name="xid", level="warning", detail=detail[:1000]))
    return found


def _machine(name: str, seen: Examination) -> list[Finding]:
    found = []
    if seen.disk_free is not None and seen.disk_free < _LOW_DISK:
        detail = (
            f"{seen.disk_free / _GB:.1f} GB are free where Docker keeps images and containers. On {name}: "
            "`docker system df`, `docker image prune`."
        )
        found.append(Finding(name="disk", level="error" if seen.disk_free < _NO_DISK else "warning", detail=detail))
    if seen.shm is not None and seen.shm < _SMALL_SHM:
        detail = f"/dev/shm has {seen.shm >> 20} MiB. On {name}: `mount -o remount,size=50% /dev/shm`."
        found.append(Finding(name="shared memory", level="warning", detail=detail))
    if seen.skew_s is not None and abs(seen.skew_s) > _SKEW_S:
        way = "ahead" if seen.skew_s > 0 else "behind"
        detail = f"Its clock is {abs(seen.skew_s):.0f} s {way}. On {name}: `timedatectl set-ntp true`, or run chrony."
        found.append(Finding(name="clock", level="warning", detail=detail))
    return found
