"""The dashboard as people use it: a real browser, a real control plane, real containers."""

from __future__ import annotations

import json
import re
import time

import docker
import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from service.client import Client
from tests.browser.conftest import AXE, Tab, job
from tests.docker.front_door import FrontDoor, until

FIGURES = r"""
i=1; while [ $i -le {steps} ]; do
  loss=$((200-i)).5
  echo '@navarch {{"event":"metrics","time":'$(date +%s)',"step":'$i',"values":{{"loss":'$loss'}}}}'
  echo "step $i of {steps}"; i=$((i+1)); sleep {pause}
done
"""
PAGES = [
    "/",
    "/jobs",
    "/compare",
    "/submit",
    "/workspaces",
    "/images",
    "/artifacts",
    "/playground",
    "/hosts",
    "/people",
]
PAGES += ["/events"]


def finished(client: Client, job_id: str) -> None:
    until(lambda: client.job(job_id).finished, f"end of {job_id}", 60)


def test_a_job_from_the_form_to_its_end_and_again(tab: Tab, client: Client, system_image: str) -> None:
    page = tab.go("/submit?type=command")
    page.get_by_label("image", exact=True).fill(system_image)
    page.get_by_label("name", exact=True).fill("from-the-form")
    page.get_by_label("command", exact=True).fill("echo hello from the form; sleep 300")
    expect(page.get_by_text("It would start at once.")).to_be_visible()
    page.get_by_role("button", name="Submit").click()
    expect(page).to_have_url(re.compile("/jobs/"))
    expect(page.locator("h1")).to_have_text("from-the-form")
    expect(page.locator(".badge").first).to_have_text("running")
    page.get_by_role("link", name="Log", exact=True).click()
    expect(page.get_by_role("log")).to_contain_text("hello from the form")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(page.locator(".badge").first).to_have_text("stopped")
    page.get_by_role("link", name="Clone").click()
    expect(page.get_by_label("image", exact=True)).to_have_value(system_image)
    page.get_by_role("button", name="YAML").click()
    expect(page.locator("#yaml")).to_have_value(re.compile("sleep 300"))


def test_what_is_wrong_with_a_form_stands_at_its_field(tab: Tab) -> None:
    page = tab.go("/submit?type=sft")
    page.locator("summary", has_text="resources").click()
    page.get_by_label("gpus", exact=True).fill("many")
    expect(page.get_by_role("alert").filter(has_text="gpus")).to_be_visible()
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()


def test_a_workspace_from_the_form_by_ssh_to_its_end(
    tab: Tab, door: FrontDoor, system_image: str, docker_client: docker.DockerClient
) -> None:
    page = tab.go("/workspaces")
    page.get_by_label("Name").fill("from_the_form")
    page.get_by_label("Image").fill(system_image)
    page.get_by_label("Ports").fill("auto:7000")
    page.get_by_role("button", name="Create a workspace").click()
    expect(page.locator("h1")).to_have_text("from_the_form")
    expect(page.locator(".badge").first).to_have_text("running")
    expect(page.locator(".facts").get_by_role("link")).to_have_count(1)
    shown = page.get_by_label("SSH", exact=True).inner_text().splitlines()[0]
    assert shown == "navarch workspace ssh from_the_form"
    said = door.navarch(*shown.split()[1:], "--", "cat /etc/debian_version")
    assert said.returncode == 0 and said.stdout.strip(), said.stderr
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(page.locator(".badge").first).to_have_text("stopped")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator(".badge").first).to_have_text("running")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No workspaces yet")).to_be_visible()
    (home,) = docker_client.volumes.list(filters={"name": "home-from_the_form"})  # kept for the next of this name
    home.remove()


def test_what_is_wrong_with_a_workspace_stands_at_its_field(tab: Tab) -> None:
    page = tab.go("/workspaces")
    page.get_by_label("Name").fill("wrong")
    page.get_by_label("GPU", exact=True).fill("many")
    page.get_by_role("button", name="Create a workspace").click()
    expect(page.get_by_role("alert").filter(has_text="gpus")).not_to_have_count(0)
    expect(page.get_by_label("Name")).to_have_value("wrong")


def test_charts_and_log_grow_while_one_looks(tab: Tab, client: Client, system_image: str) -> None:
    job_id = job(client, system_image, "grows", FIGURES.format(steps=200, pause=0.2))
    page = tab.go(f"/jobs/{job_id}?tab=charts")
    expect(page.get_by_role("img", name=re.compile("^loss"))).to_be_visible()
    first = page.get_by_role("img", name=re.compile("^loss")).get_attribute("aria-label")
    until(lambda: page.get_by_role("img", name=re.compile("^loss")).get_attribute("aria-label") != first, "growth", 15)
    page.get_by_role("link", name="Log", exact=True).click()
    page.get_by_role("log").get_by_text(re.compile(r"step \d+ of 200")).last.wait_for()
    before = page.locator(".log-foot").inner_text()
    until(lambda: page.locator(".log-foot").inner_text() != before, "more lines", 15)
    client.stop(job_id)


def test_dragging_over_a_chart_fetches_that_part_at_full_resolution(
    tab: Tab, client: Client, system_image: str
) -> None:
    job_id = job(client, system_image, "zoomed", FIGURES.format(steps=100, pause=0))
    finished(client, job_id)
    page = tab.go(f"/jobs/{job_id}?tab=charts")
    expect(page.get_by_role("img", name=re.compile("^loss: zoomed"))).to_be_visible()
    over = page.locator(".u-over").first
    box = over.bounding_box()
    assert box is not None
    with page.expect_request(lambda request: "/series?" in request.url and "from=" in request.url):
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=4)
        page.mouse.up()
    page.get_by_role("button", name="Show all").click()


def test_a_long_log_is_whole_searchable_and_light(tab: Tab, client: Client, system_image: str) -> None:
    script = "seq 1 60000 | sed 's/^/line number /'; echo 'RuntimeError: it broke'; seq 1 1000"
    job_id = job(client, system_image, "long-log", script)
    finished(client, job_id)
    page = tab.go(f"/jobs/{job_id}?tab=log")
    expect(page.locator(".log-foot")).to_contain_text("61,001 lines")
    page.get_by_label("Search the whole log").fill("line number 31337")
    page.get_by_role("button", name="Next match").click()
    expect(page.locator(".log-line.at")).to_contain_text("line number 31337")
    assert "line=31337" in page.url
    page.get_by_role("button", name="First error").click()
    expect(page.locator(".log-line.at")).to_contain_text("RuntimeError: it broke")
    assert page.locator(".log-line").count() <= 300
    page.reload()
    expect(page.locator(".log-line.at")).to_contain_text("RuntimeError: it broke")


def test_markup_in_logs_and_samples_is_shown_as_text(tab: Tab, client: Client, system_image: str) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    event = {"event": "sample", "title": evil, "columns": ["prompt", "answer"], "rows": [[evil, evil]], "step": 1}
    script = f"echo '{evil}'; echo '@navarch {json.dumps(event)}'; printf '\\033]52;c;aGk=\\007done\\n'"
    job_id = job(client, system_image, "markup", script)
    finished(client, job_id)
    tab.page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    page = tab.go(f"/jobs/{job_id}?tab=log")
    expect(page.get_by_role("log")).to_contain_text(evil)
    expect(page.get_by_role("log")).to_contain_text("done")
    assert page.locator("main img[src=x]").count() == 0


def test_runs_are_compared_in_one_chart_with_what_differs(tab: Tab, client: Client, system_image: str) -> None:
    ids = [
        job(client, system_image, f"compared-{seed}", FIGURES.format(steps=20, pause=0), env={"SEED": str(seed)})
        for seed in (1, 2)
    ]
    for one in ids:
        finished(client, one)
    page = tab.go(f"/compare?run={ids[0]}&run={ids[1]}")
    chart = page.get_by_role("img", name=re.compile("^loss"))
    expect(chart).to_have_attribute("aria-label", re.compile("compared-1.*compared-2"))
    expect(page.get_by_role("cell", name="env.SEED")).to_be_visible()
    page.get_by_label("Group by").select_option("env.SEED")
    page.get_by_role("button", name="Mean ± standard deviation").click()
    expect(chart).to_have_attribute("aria-label", re.compile(r"1 \(1\)"))


def test_the_list_filters_and_stops_together(tab: Tab, client: Client, system_image: str) -> None:
    ids = [job(client, system_image, f"together-{number}", "sleep 300") for number in range(2)]
    page = tab.go("/jobs?q=together")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_label("Choose all on this page").check()
    page.get_by_role("button", name="Stop 2").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    for one in ids:
        finished(client, one)
    expect(page.locator("tbody .badge").first).to_have_text("stopped")
    page.get_by_label("Search names and images").fill("nothing is called so")
    expect(page.get_by_text("No job matches")).to_be_visible()


def test_a_job_that_two_tabs_stop_is_stopped_once(
    context: BrowserContext, door: FrontDoor, client: Client, system_image: str
) -> None:
    job_id = job(client, system_image, "two-tabs", "sleep 300")
    pages = [context.new_page(), context.new_page()]
    for page in pages:
        page.goto(f"{door.url}/jobs/{job_id}")
        page.get_by_role("button", name="Stop", exact=True).click()
    for page in pages:
        page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    for page in pages:
        expect(page.locator(".badge").first).to_have_text("stopped", timeout=60_000)


def test_eight_tabs_are_all_alive_and_recover_from_a_restart(
    context: BrowserContext, door: FrontDoor, client: Client, system_image: str
) -> None:
    job_id = job(client, system_image, "eight", FIGURES.format(steps=2000, pause=0.3))
    pages = [context.new_page() for _ in range(8)]
    for page in pages:
        page.goto(f"{door.url}/jobs/{job_id}?tab=log")
    for page in pages:
        page.get_by_text(re.compile(r"step \d+ of 2000")).last.wait_for(timeout=60_000)
    door.kill()
    expect(pages[0].get_by_role("alert")).to_contain_text("has not answered", timeout=60_000)
    time.sleep(3)
    door.start("--mount-root", str(door.folder / "shared"))
    for page in pages:
        expect(page.get_by_role("alert")).to_have_count(0, timeout=60_000)
    before = [page.locator(".log-foot").inner_text() for page in pages]
    for page, text in zip(pages, before, strict=True):
        expect(page.locator(".log-foot")).not_to_have_text(text, timeout=60_000)
    client.stop(job_id)


def test_everything_is_reached_by_keyboard(tab: Tab) -> None:
    page = tab.go("/")
    page.get_by_role("heading", name="Overview").wait_for()
    page.keyboard.press("g")
    page.keyboard.press("j")
    expect(page.locator("h1")).to_have_text("Jobs")
    page.keyboard.press("/")
    expect(page.get_by_label("Search names and images")).to_be_focused()
    page.keyboard.press("Escape")
    page.locator("h1").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_findings_of_accessibility(tab: Tab, client: Client, system_image: str, theme: str) -> None:
    job_id = job(client, system_image, f"axe-{theme}", FIGURES.format(steps=5, pause=0))
    finished(client, job_id)
    tab.page.add_init_script(f"localStorage.setItem('navarch.theme', '{theme}')")
    source = AXE.read_text()
    parts = [
        f"/jobs/{job_id}{tab_name}" for tab_name in ("", "?tab=charts", "?tab=log", "?tab=spec", "?tab=containers")
    ]
    found: dict[str, list[str]] = {}
    for path in [*PAGES, *parts, f"/compare?run={job_id}", "/nowhere"]:
        page = tab.go(path)
        page.locator("main h1, main .empty").first.wait_for()
        page.wait_for_load_state("networkidle") if path == "/submit" else page.wait_for_timeout(400)
        page.evaluate(source)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        violations = [
            f"{one['id']}: {one['nodes'][0]['html'][:160]} {one['nodes'][0].get('failureSummary', '')[:200]}"
            for one in result["violations"]
        ]
        if violations:
            found[path] = violations
    assert not found, "\n".join(f"{path}: {line}" for path, lines in found.items() for line in lines)


def test_every_page_is_told_its_policy_and_hashed_files_are_kept(tab: Tab, door: FrontDoor) -> None:
    page = tab.go("/jobs")
    answer = page.request.get(f"{door.url}/jobs")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    asset = re.search(r'src="(/assets/[^"]+\.js)"', answer.text())
    assert asset is not None
    script = page.request.get(door.url + asset.group(1)).headers
    assert "immutable" in script["cache-control"] and script["content-encoding"] == "gzip"
    assert page.request.get(f"{door.url}/api/v1/nothing").status == 404
    assert page.request.get(f"{door.url}/assets/../site.py").status == 404


def test_the_same_in_chinese_on_a_phone(browser: Browser, client: Client) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, locale="zh-CN")
    page = context.new_page()
    page.goto(client.sign_in_link())
    expect(page.locator("h1")).to_have_text("总览")
    page.get_by_role("button", name="菜单").click()
    page.get_by_role("link", name="任务", exact=True).click()
    expect(page.locator("h1")).to_have_text("任务")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out to the side"
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    context.close()


def test_signing_in_by_link_or_token_and_out_again(browser: Browser, door: FrontDoor, client: Client) -> None:
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    page.goto(f"{door.url}/jobs")
    expect(page.get_by_label("Token")).to_be_visible()
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not known")
    page.get_by_label("Token").fill((door.data_dir / "token").read_text().strip())
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("h1")).to_have_text("Jobs")
    cookie = next(one for one in context.cookies() if one["name"] == "navarch_session")
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    link = client.sign_in_link()
    page.goto(link)
    expect(page.locator("h1")).to_have_text("Overview")
    assert "code=" not in page.url
    context.clear_cookies()
    page.goto(link)
    expect(page.get_by_label("Token")).to_be_visible()
    context.close()
