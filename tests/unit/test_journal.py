"""The control plane's own log: one JSON line an event, without secrets and variables, bounded, its owner's alone."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from pydantic import BaseModel

from service import journal
from service.access import redaction
from service.locations import Endpoint

TOKEN = "planted-token-8d1f"
SECRET = "planted-swordfish-77"
JOB = {"type": "command", "image": "cpu", "command": "true", "secrets": {"PASSWORD": SECRET}}


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Where this process logs to as a control plane does, for one test."""
    yield tmp_path / "navarch.log"
    journal.configure(None)
    structlog.reset_defaults()
    logging.captureWarnings(False)


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Strict(BaseModel):
    port: int


def test_an_exception_is_one_line_with_its_causes_and_without_variables(log_file: Path) -> None:
    journal.configure(log_file)

    def fails(password: str) -> None:
        local = password * 1000
        raise LookupError(f"Authorization: Bearer {TOKEN}, url https://me:{SECRET}@host:8080/x") from ValueError(
            local[:0]
        )

    redaction.protect([SECRET])
    for logger in (structlog.get_logger("ours"), logging.getLogger("somebody.elses")):
        try:
            fails(SECRET)
        except LookupError:
            logger.exception("it failed")
    try:
        Strict.model_validate({"port": SECRET})
    except ValueError:
        structlog.get_logger().exception("bad value", token=TOKEN, headers={"Authorization": TOKEN})
    told = events(log_file)
    assert [event["event"] for event in told] == ["it failed", "it failed", "bad value"]
    for event in told[:2]:
        assert [error["type"] for error in event["exception"]] == ["LookupError", "ValueError"]
        assert event["exception"][0]["at"][-1].endswith(" fails") and "host:8080/x" in event["exception"][0]["message"]
    assert told[2]["exception"][0]["message"] == "1 values don't fit Strict: port"
    assert SECRET not in log_file.read_text() and TOKEN not in log_file.read_text()
    assert log_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "nav_" + "x" * 43,
        f"Bearer {TOKEN}",
        f"token={TOKEN}&x=1",
        f'{{"api_key": "{TOKEN}"}}',
        f"postgres://me:{TOKEN}@db/x",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{TOKEN}\n-----END",
        f"HF_TOKEN: {TOKEN}",
    ],
)
def test_what_looks_like_a_credential_is_taken_out(text: str) -> None:
    assert TOKEN not in redaction.redact(text) and "x" * 43 not in redaction.redact(text)


def test_an_endless_message_and_a_deep_recursion_stay_small(log_file: Path) -> None:
    journal.configure(log_file)

    def deep(left: int) -> None:
        if left == 0:
            raise RuntimeError("y" * 5_000_000)
        deep(left - 1)

    begun = time.perf_counter()
    try:
        deep(500)
    except RuntimeError:
        structlog.get_logger().exception("large", value=["z" * 100_000] * 1000)
    assert log_file.stat().st_size < 200_000
    assert time.perf_counter() - begun < 2


def test_the_log_is_rotated_and_every_file_is_its_owners_alone(log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    log_file.touch(0o644)
    journal.configure(log_file)
    for number in range(300):
        structlog.get_logger().info("line", number=number)
    files = sorted(log_file.parent.glob("navarch.log*"))
    assert len(files) == 1 + journal.BACKUPS and all(file.stat().st_size <= 4000 for file in files)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert events(log_file)[-1]["number"] == 299


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A control plane with a token, whose Docker Engine never answers: (URL, data folder)."""
    data = tmp_path / "data"
    environment = {
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "NAVARCH_ENGINE_URL": f"unix://{tmp_path}/no-engine.sock",
        "NAVARCH_DATA_DIR": str(data),
        "NAVARCH_TOKEN": TOKEN,
    }
    with (tmp_path / "up.log").open("wb") as log:
        up = [sys.executable, "-P", "-m", "service.cli.main", "up", "--port", "0"]
        process = subprocess.Popen(up, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while (endpoint := Endpoint.read(data)) is None:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "up.log").read_text()
            time.sleep(0.1)
        yield endpoint.url, data
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_mistake_of_navarch_leaves_no_secret_in_its_log(plane: tuple[str, Path]) -> None:
    url, data = plane
    with httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20) as http:
        job = http.post("/jobs", json=JOB).json()["id"]
        (data / "jobs" / job / "metrics.jsonl").mkdir(parents=True)
        broken = http.get(f"/jobs/{job}/metrics", params={"name": SECRET})
        assert (broken.status_code, broken.json()["code"]) == (500, "internal")
    (failed,) = [event for event in events(data / "navarch.log") if event["level"] == "error"]
    assert failed["event"] == "request failed" and failed["exception"][0]["type"] == "IsADirectoryError"
    for file in (data / "navarch.log", data.parent / "up.log"):
        text = file.read_text()
        assert TOKEN not in text and SECRET not in text and len(text) < 100_000
    assert (data / "navarch.log").stat().st_mode & 0o777 == 0o600


def test_a_client_that_hangs_up_in_the_middle_of_its_body_is_no_error(plane: tuple[str, Path]) -> None:
    url, data = plane
    host, port = url.removeprefix("http://").split(":")
    for _ in range(25):
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
            client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode())
    assert httpx.get(f"{url}/api/v1/version", timeout=30).status_code == 200
    time.sleep(0.5)
    assert not [event for event in events(data / "navarch.log") if event["level"] in ("error", "critical")]
