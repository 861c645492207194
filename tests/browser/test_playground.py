"""A model that is served and an image that is built, as people see them in a browser."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from service.client import Client
from tests.browser.conftest import Tab
from tests.docker.front_door import FrontDoor, until
from tests.training.making import make_model


def test_a_chat_with_a_served_model_and_with_another_beside_it(
    tab: Tab, door: FrontDoor, client: Client, cpu_image: str
) -> None:
    model = make_model(door.folder / "shared" / "tiny")
    served = client.submit(
        {"type": "serve", "name": "chat", "image": cpu_image, "model": str(model), "max_length": 128}
    )
    until(lambda: client.job(served.id).url is not None or client.job(served.id).finished, "a URL", 120)
    page = tab.go(f"/playground?beside={served.id}")
    page.get_by_text("Settings").click()
    page.get_by_label("Longest answer").fill("8")
    page.get_by_label("Say something").fill("red <b>green</b>")
    page.get_by_label("Say something").press("Enter")
    expect(page.locator(".said.user").first).to_have_text("red <b>green</b>")
    expect(page.get_by_role("status").filter(has_text=re.compile("pieces"))).to_have_count(2)
    for answer in page.locator(".said.assistant").all():
        expect(answer).not_to_have_text("…")
    client.stop(served.id)
    tab.go("/playground")
    expect(page.get_by_text("No model is being served")).to_be_visible()


def test_an_image_from_the_form_with_its_log(tab: Tab, system_image: str) -> None:
    page = tab.go("/images")
    page.get_by_label("Recipe", exact=True).select_option("cpu")
    page.get_by_label("What is in it").select_option("system")
    page.get_by_role("button", name="Build an image").click()
    page.get_by_role("link", name=system_image).first.click()
    expect(page.locator(".badge").first).to_have_text("succeeded")
    expect(page.get_by_label("Log", exact=True)).to_contain_text("navarch")
    tab.go("/images")
    expect(page.get_by_role("cell").filter(has_text=system_image).first).to_be_visible()
