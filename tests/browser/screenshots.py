"""Pictures of the dashboard's pages: python -m tests.browser.screenshots [--all] [FOLDER]

Of the control plane that the command line talks to (`make demo` leaves one with something to see). Into
docs/screenshots by default: each page at 1440 pixels in English, light. With `--all` also dark, in Chinese, and at
390 pixels, for whoever changed a page.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from service.cli.context import connect
from service.client import Client

REPOSITORY = Path(__file__).parents[2]
TRAINS = ("ppo", "grpo", "dpo", "sft", "pt", "rm")


def pages(client: Client) -> dict[str, str]:
    """Name of the picture → address, with the newest things that there are to show."""
    found = {
        "overview": "/",
        "jobs": "/jobs",
        "new-job": "/submit?type=sft",
        "workspaces": "/workspaces",
        "images": "/images",
        "artifacts": "/artifacts",
        "playground": "/playground",
        "hosts": "/hosts",
        "people": "/people",
        "events": "/events",
    }
    trained = [job for job in client.jobs() if job.type in TRAINS and job.started_at]
    if trained:
        found |= {
            "job": f"/jobs/{trained[0].id}",
            "charts": f"/jobs/{trained[0].id}?tab=charts",
            "log": f"/jobs/{trained[0].id}?tab=log",
            "compare": "/compare?" + "&".join(f"run={job.id}" for job in trained[:4]),
        }
    made = next((artifact for artifact in client.artifacts() if artifact.job), None)
    return found | ({"artifact": f"/artifacts/{made.name}@{made.version}"} if made else {})


def take(browser: Browser, client: Client, folder: Path, theme: str, language: str, width: int, mark: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900 if width > 600 else 844})
    context.add_init_script(
        f"localStorage.setItem('navarch.theme','{theme}');localStorage.setItem('navarch.lang','{language}')"
    )
    page = context.new_page()
    page.goto(client.sign_in_link())
    page.locator("h1").wait_for()
    base = page.url.split("/", 3)
    for name, path in pages(client).items():
        page.goto("/".join(base[:3]) + path)
        page.locator("h1").wait_for()
        page.wait_for_timeout(1500)  # charts are drawn once they are on the screen
        page.screenshot(path=folder / f"{name}{mark}.png")
        print(folder / f"{name}{mark}.png", flush=True)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "docs/screenshots")
    parser.add_argument("--all", action="store_true", help="both themes, languages and widths")
    wanted = parser.parse_args()
    wanted.folder.mkdir(parents=True, exist_ok=True)
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    kinds = (
        list(itertools.product(("light", "dark"), ("en", "zh"), (1440, 390))) if wanted.all else [("light", "en", 1440)]
    )
    with connect() as client, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for theme, language, width in kinds:
            mark = f"-{theme}-{language}-{width}" if wanted.all else ""
            take(browser, client, wanted.folder, theme, language, width, mark)
        browser.close()


if __name__ == "__main__":
    main()
