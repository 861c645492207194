"""What `nvidia-smi -q -x` says of a host's GPUs, and what of that keeps one from being used. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from service.contract.schemas import Finding

_FOREIGN_MIB = 1024
"""A GPU that nobody uses has less than this in use."""
_RESET = "`nvidia-smi --gpu-reset -i {0}` when nothing runs on it, or reboot the host; if it comes back, replace it"


@dataclass(frozen=True)
class GpuReport:
    uuid: str
    name: str
    bus_id: str = ""
    memory_used_mib: int = 0
    uncorrectable: int = 0
    """ECC errors since the driver was loaded that could not be corrected."""
    row_remap_pending: bool = False
    row_remap_failed: bool = False
    page_retirement_pending: bool = False
    unrepairable: bool = False
    recovery: str = "None"
    """What the driver says has to be done: None, Reset, Reboot, Drain P2P, …"""
    link_width: tuple[int, int] | None = None
    """Of PCIe: now, and at most."""


@dataclass(frozen=True)
class Report:
    driver: str
    gpus: tuple[GpuReport, ...]


def parse(text: str) -> Report | None:
    """None when this is no report. Fields that a driver doesn't have, or a GPU doesn't know (N/A), count as well."""
    try:
        root = xml.fromstring(text)
    except xml.ParseError:
        return None
    if root.tag != "nvidia_smi_log":
        return None
    return Report(root.findtext("driver_version", "").strip(), tuple(_gpu(gpu) for gpu in root.findall("gpu")))


def findings(report: Report, leased: Collection[str]) -> list[Finding]:
    """What is wrong with GPUs; `leased`: the UUIDs of those that somebody uses now."""
    return [finding for gpu in report.gpus for finding in _of(gpu, gpu.uuid in leased)]


def without(before: Sequence[str], now: Sequence[str], name: str) -> list[Finding]:
    """GPUs that were there the last time, as "NAME UUID", and aren't any more."""
    gone = [gpu for gpu in before if gpu not in now]
    if not gone:
        return []
    detail = (
        f"{len(gone)} of {len(before)} GPUs are gone: {', '.join(gone)}. On {name}: `nvidia-smi`, "
        "`dmesg | grep -i -e xid -e 'fallen off the bus'`; a reboot may bring them back."
    )
    return [Finding(name="gpus", level="error", detail=detail)]


def _of(gpu: GpuReport, leased: bool) -> list[Finding]:
    called = f"{gpu.name} {gpu.uuid} ({gpu.bus_id})"
    reset = _RESET.format(gpu.bus_id)
    found: list[Finding] = []

    def bad(name: str, said: str, todo: str) -> None:
        found.append(Finding(name=name, level="error", detail=f"{called} {said}: {todo}.", gpu=gpu.uuid))

    if gpu.uncorrectable:
        bad("ecc", f"had {gpu.uncorrectable} memory errors that ECC could not correct", reset)
    if gpu.row_remap_failed:
        bad("row remap", "could not remap a bad row of its memory", "it has to be replaced")
    elif gpu.row_remap_pending:
        bad("row remap", "has a bad row of memory that is remapped at its next reset", reset)
    if gpu.page_retirement_pending:
        bad("retired pages", "has bad pages of memory that are retired at its next reset", reset)
    if gpu.unrepairable:
        bad("memory", "has memory that can't be repaired", "it has to be replaced")
    if gpu.recovery.lower() not in ("none", "n/a", ""):
        bad("recovery", f"needs a recovery, the driver says: {gpu.recovery}", reset)
    if not leased and gpu.memory_used_mib >= _FOREIGN_MIB:
        bad(
            "foreign processes",
            f"has {gpu.memory_used_mib:,} MiB in use, though no job of this control plane has it",
            "`nvidia-smi` on that host shows whose processes those are; end them, or leave the GPU to them",
        )
    if gpu.link_width is not None and gpu.link_width[0] < gpu.link_width[1]:
        now, most = gpu.link_width
        detail = f"{called} runs on {now} of {most} PCIe lanes: transfers are slow; see to its seat or riser."
        found.append(Finding(name="pcie", level="warning", detail=detail, gpu=None))
    return found


def _gpu(gpu: xml.Element) -> GpuReport:
    volatile = gpu.find("ecc_errors/volatile")
    uncorrectable = 0
    if volatile is not None:
        parts = [item for item in volatile.iter() if "uncorrectable" in item.tag and len(item) == 0]
        uncorrectable = sum(_number(item.text) for item in parts)
        # older drivers: <double_bit><total>…
        uncorrectable += _number(volatile.findtext("double_bit/total"))
    width = _number(gpu.findtext("pci/pci_gpu_link_info/link_widths/current_link_width"))
    most = _number(gpu.findtext("pci/pci_gpu_link_info/link_widths/max_link_width"))
    return GpuReport(
        uuid=(gpu.findtext("uuid") or "").strip(),
        name=(gpu.findtext("product_name") or "").strip(),
        bus_id=(gpu.findtext("pci/pci_bus_id") or gpu.get("id") or "").strip(),
        memory_used_mib=_number(gpu.findtext("fb_memory_usage/used")),
        uncorrectable=uncorrectable,
        row_remap_pending=_yes(gpu.findtext("remapped_rows/remapped_row_pending")),
        row_remap_failed=_yes(gpu.findtext("remapped_rows/remapped_row_failure")),
        page_retirement_pending=_yes(gpu.findtext("retired_pages/pending_retirement")),
        unrepairable=_yes(gpu.findtext("ecc_errors/unrepairable_memory")),
        recovery=(gpu.findtext("gpu_recovery_action") or "None").strip(),
        link_width=(width, most) if width and most else None,
    )


def _number(text: str | None) -> int:
    """The leading number of "616 MiB", "16x", "0"; 0 for N/A."""
    digits = ""
    for character in (text or "").strip():
        if not character.isdigit():
            break
        digits += character
    return int(digits or 0)


def _yes(text: str | None) -> bool:
    return (text or "").strip().lower() == "yes"
