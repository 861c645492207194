"""The API keeps what its OpenAPI document promises, whatever it is sent (schemathesis, for a bounded time)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.locations import Endpoint

SECONDS = 30
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 503]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plane")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A control plane whose Docker Engine never answers: the API must keep its promises then, too."""
    tmp_path = folder
    environment = {
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "NAVARCH_ENGINE_URL": f"unix://{tmp_path}/no-engine.sock",
        "NAVARCH_DATA_DIR": str(tmp_path / "data"),
    }
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.cli.main", "up", "--port", "0"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 180
        while (endpoint := Endpoint.read(tmp_path / "data")) is None:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "up.log").read_text()
            time.sleep(0.1)
        yield endpoint.url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    said = (tmp_path / "up.log").read_text()
    assert "Traceback" not in said and "request failed" not in said, said[-4000:]


@pytest.fixture
def token(url: str, folder: Path) -> str:
    """Of the account that runs it."""
    return (folder / "data" / "token").read_text().strip()


def test_the_documentation_needs_no_other_host(url: str, token: str) -> None:
    """What the page names is served from here; what its scripts could ask of elsewhere is switched off."""
    page = httpx.get(f"{url}/docs", timeout=60).text
    named = re.findall(r"""(?:src|href|url)\s*[=:(]\s*["']([^"']+)["']""", page)
    assert any(reference.endswith(".js") for reference in named) and any(r.endswith(".css") for r in named)
    assert not re.findall(r"""(?:https?:)?//[\w.-]+\.\w+""", page)
    for reference in named:
        assert reference.startswith("/"), reference
        answer = httpx.get(url + reference, timeout=60)
        assert answer.status_code == 200 and len(answer.content) > 500, reference
    style = next(reference for reference in named if reference.endswith(".css"))
    assert not re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", httpx.get(url + style, timeout=60).text)
    assert re.search(r"""["']?validatorUrl["']?: null""", page)
    redoc = httpx.get(f"{url}/redoc", headers={"Authorization": f"Bearer {token}"}, timeout=60).text
    assert "redoc" not in redoc.lower(), "ReDoc's page asks other hosts; the dashboard's, where it is built, does not"


def test_every_operation_answers_as_documented(url: str, token: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
    options = {
        "--phases": "examples,coverage,fuzzing",
        "--max-time": str(SECONDS),
        "--generation-database": "none",
        "--seed": "1",
        "--header": f"Authorization: Bearer {token}",
        # A spec that fits the schema may still ask for what isn't there.
        "--exclude-checks": "positive_data_acceptance",
    }
    words = [word for pair in options.items() for word in pair]
    done = subprocess.run(
        [*command, url + "/openapi.json", *words, "--warnings", "off", "--continue-on-failure"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS + 100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
