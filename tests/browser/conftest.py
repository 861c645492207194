"""What browser tests share: the dashboard's built files, a control plane with a real engine, a real Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from service.client import Client
from service.dashboard.site import DIST
from tests.docker.conftest import cpu_image, docker_client, system_image  # noqa: F401  fixtures of the engine
from tests.docker.front_door import FrontDoor, front_door

REPOSITORY = Path(__file__).parents[2]
expect.set_options(timeout=30_000)  # a busy machine is no failure
AXE = REPOSITORY / "service/dashboard/node_modules/axe-core/axe.min.js"


@pytest.fixture(scope="session")
def built() -> None:
    """The dashboard of this tree, built when something changed."""
    command = ["bash", str(REPOSITORY / "scripts/dashboard.sh"), sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, check=True, timeout=300, env=environment)
    assert (DIST / "index.html").is_file()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, system_image: str, built: None) -> Iterator[FrontDoor]:  # noqa: F811
    folder = tmp_path_factory.mktemp("navarch")
    (folder / "shared").mkdir()
    with front_door(folder, "--mount-root", str(folder / "shared")) as opened:
        yield opened


@pytest.fixture
def client(door: FrontDoor) -> Iterator[Client]:
    with door.client() as made:
        yield made


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "browser tests need Chromium: apt-get install chromium"
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()


class Tab:
    """A page, with everything that the browser complained about."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _console(self, message: ConsoleMessage) -> None:
        refused = "the server responded with a status of" in message.text  # a form that is not finished yet
        lost = "ERR_CONNECTION_REFUSED" in message.text or "WebSocket connection" in message.text
        if message.type == "error" and not refused and not lost:
            self.complaints.append(message.text)

    def sign_in(self, client: Client) -> None:
        """As whoever started the control plane, by the link that `navarch dashboard` prints."""
        self.page.goto(client.sign_in_link())
        self.page.locator("h1").wait_for()

    def go(self, path: str) -> Page:
        self.page.goto(self.url + path, wait_until="load")
        return self.page


@pytest.fixture
def context(browser: Browser, client: Client) -> Iterator[BrowserContext]:
    """For several tabs of one person."""
    made = browser.new_context(locale="en-GB")
    made.set_default_timeout(60_000)
    made.new_page().goto(client.sign_in_link())
    made.pages[0].locator("h1").wait_for()
    yield made
    made.close()


@pytest.fixture
def tab(browser: Browser, door: FrontDoor, client: Client) -> Iterator[Tab]:
    """An English page in daylight; fails when scripts fail or the content security policy is violated."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    context.set_default_timeout(30_000)
    made = Tab(context.new_page(), door.url)
    made.sign_in(client)
    yield made
    context.close()
    assert made.complaints == []


def job(client: Client, image: str, name: str, script: str, **more: Any) -> str:
    """Submits a shell script; returns the job's id."""
    spec = {"type": "command", "name": name, "image": image, "command": ["sh", "-c", script], "grace": "2s", **more}
    return client.submit(spec).id
