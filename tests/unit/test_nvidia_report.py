"""What a report of nvidia-smi says about a GPU becomes a finding with what to do; a healthy one has none."""

from pathlib import Path

import pytest

from service.backends.docker.nvidia_report import findings, parse, without

H200 = Path(__file__).with_name("nvidia_smi_h200.xml").read_text()
"""As `nvidia-smi -q -x` printed it on a healthy H200 (driver 580), shortened."""
GPU = "GPU-11111111-2222-3333-4444-555555555555"
V100 = f"""<?xml version="1.0" ?><nvidia_smi_log><driver_version>450.80.02</driver_version><gpu id="00000000:07:00.0">
<product_name>Tesla V100-SXM2-16GB</product_name><uuid>{GPU}</uuid>
<fb_memory_usage><total>16160 MiB</total><used>0 MiB</used></fb_memory_usage>
<ecc_errors><volatile><single_bit><total>3</total></single_bit><double_bit><device_memory>2</device_memory>
<total>2</total></double_bit></volatile></ecc_errors>
<retired_pages><pending_retirement>Yes</pending_retirement></retired_pages><remapped_rows>N/A</remapped_rows>
</gpu></nvidia_smi_log>"""
"""The shape that drivers before Ampere have."""


def test_a_healthy_gpu_has_no_findings() -> None:
    report = parse(H200)
    assert report is not None and report.driver == "580.159.04"
    (gpu,) = report.gpus
    assert (gpu.uuid, gpu.name, gpu.link_width) == (GPU, "NVIDIA H200", (16, 16))
    assert findings(report, leased=[]) == []


@pytest.mark.parametrize(
    ("old", "new", "name", "todo"),
    [
        ("<dram_uncorrectable>0<", "<dram_uncorrectable>2<", "ecc", "--gpu-reset -i 00000000:00:06.0"),
        ("<sram_uncorrectable_secded>0<", "<sram_uncorrectable_secded>1<", "ecc", "reboot"),
        ("<remapped_row_pending>No<", "<remapped_row_pending>Yes<", "row remap", "--gpu-reset"),
        ("<remapped_row_failure>No<", "<remapped_row_failure>Yes<", "row remap", "replaced"),
        ("<unrepairable_memory>No<", "<unrepairable_memory>Yes<", "memory", "replaced"),
        ("<gpu_recovery_action>None<", "<gpu_recovery_action>Reset<", "recovery", "--gpu-reset"),
        ("<used>0 MiB<", "<used>40000 MiB<", "foreign processes", "`nvidia-smi` on that host"),
    ],
)
def test_what_is_wrong_takes_the_gpu_out_and_says_what_to_do(old: str, new: str, name: str, todo: str) -> None:
    changed = H200.replace(old, new, 1)
    assert changed != H200
    report = parse(changed)
    assert report is not None
    (found,) = findings(report, leased=[])
    assert (found.name, found.level, found.gpu) == (name, "error", GPU)
    assert todo in found.detail and "H200" in found.detail


def test_a_leased_gpus_memory_is_its_jobs() -> None:
    report = parse(H200.replace("<used>0 MiB<", "<used>40000 MiB<", 1))
    assert report is not None and findings(report, leased=[GPU]) == []


def test_fewer_lanes_are_a_warning_that_takes_nothing_out() -> None:
    report = parse(H200.replace("<current_link_width>16x<", "<current_link_width>8x<"))
    assert report is not None
    (found,) = findings(report, leased=[])
    assert (found.name, found.level, found.gpu) == ("pcie", "warning", None)


def test_older_drivers_count_double_bit_errors() -> None:
    report = parse(V100)
    assert report is not None
    assert {(found.name, found.level) for found in findings(report, leased=[])} == {
        ("ecc", "error"),
        ("retired pages", "error"),
    }


def test_what_is_no_report_is_none_and_lost_gpus_are_named() -> None:
    assert parse("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") is None
    assert parse("<html/>") is None
    (lost,) = without([f"H200 {GPU}", "H200 GPU-2"], [f"H200 {GPU}"], "h2")
    assert "1 of 2 GPUs are gone: H200 GPU-2" in lost.detail and "h2" in lost.detail
    assert without([f"H200 {GPU}"], [f"H200 {GPU}", "H200 GPU-2"], "h2") == []
