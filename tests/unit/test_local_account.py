"""A control plane serves the account that started it without any set-up, and no other account of the machine."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.access.private import private_folder
from service.client import ApiError, Client
from service.locations import Endpoint

REPOSITORY = Path(__file__).parents[2]
JOB = {"type": "command", "image": "cpu", "command": "true"}


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of an account whose home this is; its control planes find no Docker Engine."""
    own = {"HOME": str(home), "NAVARCH_ENGINE_URL": f"unix://{home}/none.sock", "PYTHONPATH": str(REPOSITORY)}
    return {"PATH": os.environ["PATH"], **own, **more}


def navarch(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "service.cli.main", *arguments]
    home.mkdir(exist_ok=True)
    return subprocess.run(
        command, env=environment(home, **more), cwd=home, capture_output=True, text=True, timeout=200, check=False
    )


@contextmanager
def served(home: Path, *options: str, data_dir: Path | None = None) -> Iterator[str]:
    """`navarch up` of an account; yields its URL."""
    folder = data_dir or home / ".navarch"
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.cli.main", "up", "--port", "0", *options],
            env=environment(home),
            cwd=home,
            stdout=log,
            stderr=log,
            umask=0o022,
        )
    try:
        deadline = time.monotonic() + 200
        while (endpoint := Endpoint.read(folder)) is None or endpoint.pid != process.pid:
            assert process.poll() is None and time.monotonic() < deadline, (home / "up.log").read_text()
            time.sleep(0.05)
        yield endpoint.url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with served(home) as found:
        yield found


def test_up_and_then_ps_needs_nothing(home: Path, url: str) -> None:
    done = navarch(home, "ps")
    assert done.returncode == 0 and "No active jobs" in done.stdout, done.stderr


def test_the_url_alone_is_enough_for_ones_own_account(home: Path, url: str) -> None:
    for spelled in (url, url.replace("127.0.0.1", "localhost"), url + "/"):
        done = navarch(home, "--url", spelled, "ps", NAVARCH_DATA_DIR=str(home / "elsewhere"))
        assert done.returncode == 0, done.stderr


def test_another_data_folder_is_found_by_its_url(tmp_path: Path) -> None:
    with served(tmp_path, "--data-dir", str(tmp_path / "other"), data_dir=tmp_path / "other") as found:
        assert navarch(tmp_path, "--url", found, "ps").returncode == 0
        assert navarch(tmp_path, "ps", NAVARCH_URL=found).returncode == 0
    gone = navarch(tmp_path, "--url", found, "ps")
    assert gone.returncode == 3 and "No control plane answers" in gone.stderr


def test_the_token_file_is_for_curl(home: Path, url: str) -> None:
    token = (home / ".navarch" / "token").read_text().strip()
    assert httpx.get(f"{url}/api/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_another_account_of_the_machine_is_not_served(home: Path, url: str) -> None:
    """It can connect, but it has no token and can't read one."""
    answer = httpx.get(f"{url}/api/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert "`token` in its data folder" in answer.json()["hint"]
    refused = navarch(home / "nobody", "ps", NAVARCH_URL=url)
    assert refused.returncode == 1 and "carries no token" in refused.stderr
    if os.geteuid() == 0:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:  # nobody
            os.setgid(65534)
            os.setuid(65534)
            said = []
            for name in ("token", "navarch.db", "navarch.db-wal", "secret.key", "tokens.json", "."):
                try:
                    Path(home, ".navarch", name).stat()
                    said.append(name)
                except PermissionError:
                    continue
            os.write(write_end, json.dumps(said).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write_end)
        assert os.read(read_end, 1000) in (b"[]", b'["."]')
        os.close(read_end)


def test_a_listener_that_took_the_port_is_not_told_the_token(tmp_path: Path) -> None:
    """The control plane has ended, and another account listens where it was."""
    with served(tmp_path) as found:
        pass
    Endpoint(found, 1).write(tmp_path / ".navarch")  # as a crash leaves it
    port = int(found.rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(200)
        asking = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.cli.main", "ps"],
            env=environment(tmp_path),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        connection, _ = listener.accept()
        heard = connection.recv(65536).decode().lower()
        connection.close()
        asking.kill()
        asking.wait()
    assert heard.startswith("get /api/v1/jobs") and "authorization" not in heard


def test_web_pages_and_bad_origins_get_a_problem(home: Path, url: str) -> None:
    own = {"Authorization": f"Bearer {(home / '.navarch' / 'token').read_text().strip()}"}
    for origin in ("http://localhost:3000", "http://[evil", "null", "http://127.0.0.1:1"):
        answer = httpx.post(f"{url}/api/v1/jobs", json=JOB, headers={**own, "Origin": origin})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden_origin"), origin
    answer = httpx.post(f"{url}/api/v1/jobs", json={}, headers={**own, "Origin": url})
    assert answer.json()["code"] == "invalid_spec"


def test_the_last_token_withdrawn_closes_a_public_address(tmp_path: Path) -> None:
    outside = next((a for a in addresses() if not a.startswith("127.")), None)
    with served(tmp_path, "--host", "0.0.0.0") as found:
        (token,) = re.findall(r"^nav_\S+$", (tmp_path / "up.log").read_text(), re.MULTILINE)  # the first, shown once
        with Client(found, token=token) as alice:
            assert list(alice.jobs()) == []
        assert navarch(tmp_path, "token", "rm", "first").returncode == 0
        with Client(found, token=token) as alice, pytest.raises(ApiError) as refused:
            list(alice.jobs())
        assert refused.value.code == "unauthorized"
        assert navarch(tmp_path, "ps").returncode == 0
        if outside is not None:
            there = found.replace("127.0.0.1", outside)
            assert httpx.get(f"{there}/api/v1/health").json()["code"] == "forbidden_host"


def addresses() -> list[str]:
    told = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout
    return [address for address in told.split() if ":" not in address]


def test_everything_in_the_data_folder_is_its_owners(home: Path, url: str) -> None:
    navarch(home, "token", "new", "bob")
    navarch(home, "token", "rm", "bob")
    with Client(url, token=(home / ".navarch" / "token").read_text().strip()) as client:
        client.submit({**JOB, "name": "held", "secrets": {"A": "b"}})
    assert (home / ".navarch").stat().st_mode & 0o777 == 0o700
    for path in (home / ".navarch").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == wanted, path


def test_the_folder_of_an_earlier_version_is_mended(tmp_path: Path) -> None:
    for name in ("secret.key", "navarch.db", "jobs/j/logs/1-0.log", "jobs/j/run/shared", "builds/b.log", "bin/tool"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "jobs" / "link").symlink_to("/etc/hostname")
    tmp_path.chmod(0o755)
    before = Path("/etc/hostname").stat().st_mode
    private_folder(tmp_path)
    modes = {str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert (
        modes["secret.key"] == modes["navarch.db"] == modes["jobs/j/logs/1-0.log"] == modes["builds/b.log"] == "0o600"
    )
    assert modes["jobs"] == modes["jobs/j"] == modes["jobs/j/logs"] == "0o700"
    assert modes["jobs/j/run/shared"] == modes["bin/tool"] == "0o755"  # the container's, and somebody else's
    assert Path("/etc/hostname").stat().st_mode == before
