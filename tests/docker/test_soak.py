"""The short form of `make soak`: a control plane that is killed again and again loses and doubles nothing."""

from pathlib import Path

from tests.soak.kills import soaking


def test_ten_kills(system_image: str, tmp_path: Path) -> None:
    with soaking(tmp_path, system_image, seed=7) as soak:
        for _ in range(10):
            soak.kill_once()
        result = soak.settle()
    assert result.good, (result.lost, result.doubled, result.leaked, result.wrong)
    assert result.jobs >= 5
