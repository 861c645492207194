"""`navarch up --detach` that can't start says why, as the process in the background said it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def up(data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli.main", "up", "--detach", "--data-dir", str(data_dir), *arguments]
    given = {"PATH": os.environ["PATH"], "HOME": str(data_dir), **environment}
    return subprocess.run(
        command, env=given, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = up(tmp_path / "data", "--port", str(port))
    *_, error, hint = done.stderr.splitlines()  # after how long it took, on a slow machine
    taken = f"Port {port} on 127.0.0.1 is taken by another program."
    assert error == f"error: The control plane did not start: {taken}"
    assert hint.startswith("hint: Choose another with --port;") and hint.endswith(f"{tmp_path}/data/navarch.log.")
    assert done.returncode == 1 and done.stdout == ""


def test_the_first_start_beyond_this_machine_shows_a_token_once(tmp_path: Path) -> None:
    shown = []
    for _ in range(2):
        done = up(tmp_path, "--host", "0.0.0.0", "--port", "0")
        subprocess.run(
            [sys.executable, "-m", "service.cli.main", "down"],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NAVARCH_DATA_DIR": str(tmp_path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert done.returncode == 0, done.stderr
        shown.append("token for other machines" in done.stderr)
    assert shown == [True, False]


def test_a_crash_shows_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "navarch.db").write_text("this is no database")
    done = up(tmp_path, "--port", "0")
    assert done.returncode != 0 and "did not start: " in done.stderr and "is no database" in done.stderr, done.stderr
