"""What is seen of a host's machine becomes findings with what to do there; a healthy host has none."""

from pathlib import Path

import pytest

from service.backends.docker.health import Expected, accepted, judge
from service.backends.docker.remote_machine import read
from service.backends.docker.seen import read_closer
from service.backends.engines import Examination

H200 = Path(__file__).with_name("nvidia_smi_h200.xml").read_text()
GPU = "NVIDIA H200 GPU-11111111-2222-3333-4444-555555555555"
SAID = """\
clock 1000.5
disk /dev/sda1 102400000 1000 52428800 1% /
shm tmpfs 65536 0 65536 0% /dev/shm
devices 8
xid [12.3] NVRM: Xid (PCI:0000:07:00): 79, pid=1, GPU has fallen off the bus.
"""


def test_a_closer_look_is_read_and_what_it_does_not_say_is_not_known() -> None:
    seen = read_closer(SAID, before=1000.0, after=1001.0)
    assert (seen.disk_size, seen.disk_free) == (102400000 << 10, 52428800 << 10)
    assert (seen.shm, seen.gpu_devices, seen.skew_s) == (64 << 20, 8, 0.0)
    assert seen.xids == ("[12.3] NVRM: Xid (PCI:0000:07:00): 79, pid=1, GPU has fallen off the bus.",)
    assert read_closer("", 0.0, 1.0) == Examination()


@pytest.mark.parametrize(("clock", "skew"), [(1010.0, 9.0), (990.0, -10.0), (1000.2, 0.0)])
def test_only_a_skew_that_is_certain_counts(clock: float, skew: float) -> None:
    assert read_closer(f"clock {clock}", before=1000.0, after=1001.0).skew_s == skew


def test_when_a_remote_engine_was_started_is_reckoned_by_the_clock_there() -> None:
    stat = "77 (dockerd) S " + " ".join(["0"] * 18) + " 5000 0 0"
    seen = read(f"boot-1\n2000.0\n100\n100.00 50.00\n{stat}\n")
    assert (seen.boot_id, seen.engine_started_at) == ("boot-1", 1950.0)
    assert read("").boot_id is None


@pytest.mark.parametrize(
    ("seen", "name", "level", "todo"),
    [
        (Examination(disk_free=5 << 30), "disk", "warning", "docker image prune"),
        (Examination(disk_free=1 << 20), "disk", "error", "docker image prune"),
        (Examination(shm=1 << 20), "shared memory", "warning", "remount"),
        (Examination(skew_s=-60.0), "clock", "warning", "60 s behind"),
        (Examination(gpu_devices=8), "nvidia runtime", "error", "nvidia-ctk runtime configure"),
        (Examination(report=H200, xids=("Xid 79",)), "xid", "warning", "Xid 79"),
    ],
)
def test_what_is_wrong_says_what_to_do(seen: Examination, name: str, level: str, todo: str) -> None:
    (found,), _ = judge("h2", seen, Expected(), leased=[])
    assert (found.name, found.level) == (name, level)
    assert todo in found.detail


def test_a_gpu_that_is_gone_and_another_driver_are_told_until_they_are_accepted() -> None:
    seen = Examination(report=H200)
    assert judge("h2", seen, Expected(), leased=[]) == ([], Expected((GPU,), "580.159.04"))
    before = Expected((GPU, "NVIDIA H200 GPU-2"), "570.1")
    found, after = judge("h2", seen, before, leased=[])
    assert [finding.name for finding in found] == ["gpus", "driver"]
    assert after == before, "what has gone is still expected"
    assert judge("h2", seen, accepted(seen), leased=[])[0] == []
    assert judge("h2", Examination(), before, leased=[])[0][0].name == "gpus"
    assert Expected.of({"expected": before.stored()}) == before
