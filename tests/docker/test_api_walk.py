"""Jobs from submit to delete over HTTP, against a real control plane and a real Docker Engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.docker.front_door import FrontDoor, front_door, until

COUNT = "for i in $(seq 1 {n}); do echo line $i; sleep {pause}; done"


@pytest.fixture
def http(door: FrontDoor) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door.url + "/api/v1", headers=door.headers, timeout=30) as made:
        yield made


def command(image: str, script: str, **more: Any) -> dict[str, Any]:
    return {"type": "command", "image": image, "command": script, "grace": "2s", **more}


def test_a_job_from_yaml_to_its_end(http: httpx.Client, system_image: str) -> None:
    spec = f"""
type: command
name: walk
image: {system_image}
command: |
  echo "started as $NAVARCH_JOB"
  say() {{ echo '@navarch {{"event": "metrics", "step": '$1', "total_steps": 3, "values": {{"loss": 0.'$1'}}}}'; }}
  for step in 1 2 3; do say $step; done
  echo wrong >&2
env: {{GREETING: hello}}
secrets: {{PASSWORD: swordfish}}
"""
    made = http.post("/jobs", content=spec, headers={"Content-Type": "application/yaml"})
    assert made.status_code == 201 and made.headers["Location"] == f"/api/v1/jobs/{made.json()['id']}"
    assert made.json()["state"] == "queued" and "swordfish" not in made.text
    job_id = made.json()["id"]
    lines, last = follow(http, job_id)
    assert {line["line"] for line in lines} == {"started as walk", "wrong"}  # two streams: in any order
    assert (last["state"], last["reason"]) == ("succeeded", "completed")
    job = http.get("/jobs/walk").json()
    assert job["id"] == job_id and job["progress"]["step"] == 3
    (replica,) = job["attempts"][0]["replicas"]
    assert (replica["state"], replica["exit_code"], replica["oom_killed"]) == ("exited", 0, False)
    (loss,) = http.get("/jobs/walk/metrics").json()["series"]
    assert (loss["name"], loss["steps"], loss["values"]) == ("loss", [1, 2, 3], [0.1, 0.2, 0.3])
    kinds = [event["kind"] for event in http.get("/jobs/walk/events").json()["items"]]
    assert kinds[-1] == "job.submitted" and "job.state" in kinds
    until(lambda: http.delete("/jobs/walk").status_code == 200, "its container is removed, and then the job")
    assert http.get(f"/jobs/{job_id}").json()["code"] == "job_not_found"


def follow(
    http: httpx.Client, job: str, last_id: str | None = None, stop_after: int | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of one SSE connection and the data of its last event; ids must be the lines' cursors."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    lines: list[dict[str, Any]] = []
    event, identifier, data = "", "", {}
    with http.stream("GET", f"/jobs/{job}/logs", params={"follow": "true"}, headers=headers, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for text in response.iter_lines():
            name, _, value = text.partition(": ")
            if name == "event":
                event = value
            elif name == "id":
                identifier = value
            elif name == "data":
                data = json.loads(value)
                if event == "log":
                    assert data["cursor"] == identifier
                    lines.append(data)
                if event == "end" or len(lines) == stop_after:
                    break
    return lines, data


def test_a_stream_that_broke_goes_on_after_its_last_event(http: httpx.Client, system_image: str) -> None:
    job = http.post("/jobs", json=command(system_image, COUNT.format(n=12, pause=0.1))).json()["id"]
    first, _ = follow(http, job, stop_after=4)
    rest, end = follow(http, job, last_id=first[-1]["cursor"])
    assert [line["line"] for line in first + rest] == [f"line {number}" for number in range(1, 13)]
    assert end["state"] == "succeeded"
    page = http.get(f"/jobs/{job}/logs", params={"limit": 5}).json()
    again = http.get(f"/jobs/{job}/logs", params={"limit": 100, "cursor": page["next_cursor"]}).json()
    assert [line["line"] for line in page["items"] + again["items"]] == [f"line {number}" for number in range(1, 13)]
    tail = http.get(f"/jobs/{job}/logs", params={"tail": 2}).json()
    assert [line["line"] for line in tail["items"]] == ["line 11", "line 12"]


def test_many_followers_hold_up_nobody(door: FrontDoor, http: httpx.Client, client: Client, system_image: str) -> None:
    job = client.submit(command(system_image, "sleep 1.5; echo done"))
    got: list[str] = []

    def one() -> None:
        with door.client() as own:
            got.extend(line.line for line in own.follow_logs(job.id))

    threads = [threading.Thread(target=one) for _ in range(50)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    start = time.monotonic()
    assert http.get("/version").status_code == 200 and http.get("/jobs").status_code == 200
    assert time.monotonic() - start < 2
    for thread in threads:
        thread.join(timeout=30)
    assert got == ["done"] * 50


def test_stop_says_who_asked_and_is_no_mistake_twice(http: httpx.Client, client: Client, system_image: str) -> None:
    job = client.submit(command(system_image, "echo up; sleep 300"))
    next(client.follow_logs(job.id))
    refused = http.delete(f"/jobs/{job.id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_active")
    assert http.post(f"/jobs/{job.id}/stop").status_code == 202
    ended = client.wait(job.id, timeout_s=30)
    assert (ended.state, ended.reason) == ("stopped", "stopped_by_user")
    assert client.stop(job.id).state == "stopped"


def test_the_same_key_gives_the_same_job_and_never_another(http: httpx.Client, system_image: str) -> None:
    spec = command(system_image, "true", name="once")
    headers = {"Idempotency-Key": "walk-1"}
    first = http.post("/jobs", json=spec, headers=headers)
    second = http.post("/jobs", json=spec, headers=headers)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"] and second.headers["Idempotency-Replayed"] == "true"
    other = http.post("/jobs", json={**spec, "name": "twice"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    follow(http, first.json()["id"])


def test_a_dry_run_shows_the_container_and_starts_none(http: httpx.Client, system_image: str) -> None:
    spec = command(system_image, "echo hi", name="dry", ports=["auto:8000"], env={"A": "1"})
    plan = http.post("/jobs", params={"dry_run": "true"}, json=spec)
    assert plan.status_code == 200 and plan.json()["placeable"] is True
    (replica,) = plan.json()["replicas"]
    assert replica["host"] == "local" and replica["command"] == ["bash", "-c", "echo hi"]
    assert replica["environment"]["A"] == "1" and "8000" in replica["ports"]
    assert http.get("/jobs/dry").status_code == 404
    (problem,) = http.post("/jobs", params={"dry_run": "true"}, json={**spec, "image": "nobody/built"}).json()[
        "problems"
    ]
    assert problem["code"] == "image_missing" and "nobody/built is not on local" in problem["detail"]
    assert "navarch image build RECIPE --tag nobody/built" in problem["hint"]


BAD = {
    "unknown key": ({"comand": "x"}, 422, "invalid_spec", "did you mean `command`"),
    "unknown section key": ({"resources": {"gpu": 1}}, 422, "invalid_spec", "did you mean `gpus`"),
    "wrong type": ({"resources": {"gpus": "two"}}, 422, "invalid_spec", "`resources.gpus` must be a whole number"),
    "unknown type": ({"type": "stf"}, 422, "invalid_spec", "`type` must be one of"),
    "bad name": ({"name": "My Job"}, 422, "invalid_spec", "`name`"),
    "bad port": ({"ports": ["http"]}, 422, "invalid_spec", "`ports[0]`"),
    "more GPUs than there are": ({"resources": {"gpus": 64}}, 422, "not_enough_gpus", "64"),
    "mount outside the roots": ({"mounts": ["/etc:/etc-of-host"]}, 422, "mount_not_allowed", "/etc"),
    "mount that climbs out": ({"mounts": ["{shared}/../../etc:/x"]}, 422, "invalid_spec", "isn't absolute"),
    "mount that is not there": ({"mounts": ["{shared}/none:/x"]}, 422, "path_missing", "none"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_spec_is_refused_with_its_code_and_a_hint(
    door: FrontDoor, http: httpx.Client, system_image: str, name: str
) -> None:
    change, status, code, fragment = BAD[name]
    text = json.dumps({**command(system_image, "true"), **change}).replace("{shared}", str(door.folder / "shared"))
    refused = http.post("/jobs", content=text, headers={"Content-Type": "application/json"})
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (status, code), problem
    assert refused.headers["content-type"] == "application/problem+json"
    assert fragment in problem["detail"] and problem["hint"] and problem["title"]


@pytest.mark.parametrize(
    ("change", "code", "fragment"),
    [
        ({"model": "{shared}/no-model"}, "path_missing", "no-model"),
        ({"data": ["{shared}/no-data.json"]}, "path_missing", "no-data.json"),
        ({"model": "/etc"}, "mount_not_allowed", "/etc"),
        ({"model": "artifact:nobody"}, "artifact_not_found", "nobody"),
        ({"train": {"lrr": 1}}, "invalid_spec", "lr"),
        ({"train": {"lr": "fast"}}, "invalid_spec", "lr"),
        ({"strategy": "collosalai_zero2"}, "invalid_spec", "colossalai_zero2"),
        ({"command": "echo"}, "invalid_spec", "has no `command`"),
    ],
)
def test_a_bad_training_spec_is_refused_at_submit(
    door: FrontDoor, http: httpx.Client, change: dict[str, Any], code: str, fragment: str
) -> None:
    shared = door.folder / "shared"
    (shared / "model").mkdir(exist_ok=True)
    (shared / "data.json").write_text("[]")
    spec = {"type": "sft", "image": "cpu", "model": f"{shared}/model", "data": [f"{shared}/data.json"], **change}
    text = json.dumps(spec).replace("{shared}", str(shared))
    refused = http.post("/jobs", content=text, headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["code"]) == (422, code), refused.json()
    assert fragment in refused.json()["detail"]


def test_an_image_that_is_not_there_fails_the_job_and_says_how_to_get_it(client: Client) -> None:
    job = client.submit(command("navarch/nobody-built-this:1", "true", ssh=False))
    ended = client.wait(job.id, timeout_s=60)
    assert (ended.state, ended.reason) == ("failed", "image_unavailable")
    assert "navarch/nobody-built-this" in (ended.message or "")


def test_a_port_that_another_job_holds_is_waited_for_and_named(client: Client, system_image: str) -> None:
    first = client.submit(command(system_image, "sleep 300", name="holder", ports=["25990:80"]))
    until(lambda: client.job(first.id).state == "running", "holder runs")
    second = client.submit(command(system_image, "true", ports=["25990:80"]))
    until(lambda: "25990" in (client.job(second.id).why or ""), "the reason is shown")
    assert "holder" in (client.job(second.id).why or "")
    client.stop(first.id)
    assert client.wait(second.id, timeout_s=30).state == "succeeded"


def test_a_name_is_taken_until_its_job_ends(http: httpx.Client, client: Client, system_image: str) -> None:
    job = client.submit(command(system_image, "sleep 300", name="unique"))
    again = http.post("/jobs", json=command(system_image, "true", name="unique"))
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")
    client.stop(job.id)
    client.wait(job.id, timeout_s=30)
    newer = client.submit(command(system_image, "true", name="unique"))
    assert client.job("unique").id == newer.id
    client.wait(newer.id, timeout_s=30)


def test_requests_that_are_no_requests(http: httpx.Client) -> None:
    def ask(method: str, path: str, **how: Any) -> tuple[int, str]:
        answer = http.request(method, path, **how)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        return answer.status_code, answer.json()["code"]

    def post(body: str, kind: str) -> tuple[int, str]:
        return ask("POST", "/jobs", content=body, headers={"Content-Type": kind})

    assert ask("GET", "/nothing") == (404, "not_found")
    assert ask("PUT", "/jobs") == (405, "method_not_allowed")
    assert ask("GET", "/jobs/nobody") == (404, "job_not_found")
    assert ask("GET", "/jobs", params={"limit": "many"}) == (422, "invalid_request")
    assert ask("GET", "/jobs", params={"state": "sleeping"}) == (422, "invalid_request")
    assert ask("GET", "/jobs", params={"cursor": "!"}) == (400, "invalid_cursor")
    assert ask("POST", "/jobs", content="{", headers={"Content-Type": "application/json"}) == (400, "malformed_body")
    assert ask("POST", "/jobs", content="a=b", headers={"Content-Type": "text/plain"}) == (
        415,
        "unsupported_media_type",
    )
    assert ask("POST", "/jobs", content=b"x" * (2 << 20), headers={"Content-Type": "text/yaml"}) == (
        413,
        "body_too_large",
    )
    assert ask("GET", "/jobs", headers={"Host": "evil.example"}) == (403, "forbidden_host")
    assert ask("POST", "/jobs/x/stop", headers={"Origin": "http://evil.example"}) == (403, "forbidden_origin")
    assert ask("POST", "/keys", json={"public_key": "ssh-rsa nonsense"}) == (422, "invalid_key")
    assert ask("GET", "/images/nobody/built:this") == (404, "image_not_found")
    assert ask("POST", "/images/builds", json={"recipe": "colosalai"}) == (404, "recipe_not_found")
    assert ask("GET", "/images/builds/x") == (404, "build_not_found")
    assert ask("GET", "/artifacts/x") == (404, "artifact_not_found")
    assert ask("POST", "/artifacts", json={"path": "relative"})[0] == 422


def test_the_system_image_is_built_under_its_own_name(http: httpx.Client, system_image: str) -> None:
    """Not under the name of the complete image, which it would take away."""
    build = http.post("/images/builds", json={"recipe": "cpu", "target": "system"})
    assert (build.status_code, build.json()["tag"]) == (202, system_image)
    where = f"/images/builds/{build.json()['id']}"
    until(lambda: http.get(where).json()["finished_at"] is not None, "the build ends", 60)
    assert http.get(where).json()["state"] == "succeeded"


def test_pages_hold_every_job_once(http: httpx.Client, client: Client, system_image: str) -> None:
    blocker = client.submit(command(system_image, "sleep 300", ports=["25991:80"]))
    until(lambda: client.job(blocker.id).state == "running", "the blocker runs")
    made = [client.submit(command(system_image, "true", ports=["25991:80"])).id for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 3, "state": "queued", **({"cursor": cursor} if cursor else {})}
        page = http.get("/jobs", params=params).json()
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    for job in made:
        client.stop(job)
    client.stop(blocker.id)


def test_a_killed_control_plane_loses_nothing_and_followers_go_on(tmp_path: Path, system_image: str) -> None:
    with front_door(tmp_path) as door, door.client() as client:
        job = client.submit(command(system_image, COUNT.format(n=25, pause=0.1)))
        got: list[str] = []
        follower = threading.Thread(target=lambda: got.extend(line.line for line in client.follow_logs(job.id)))
        follower.start()
        until(lambda: len(got) > 5, "lines come")
        door.kill()
        time.sleep(0.5)
        door.start()
        follower.join(timeout=30)
        assert got == [f"line {number}" for number in range(1, 26)]
        assert client.job(job.id).state == "succeeded" and len(client.job(job.id).attempts) == 1


def test_health_and_metrics_of_the_control_plane(door: FrontDoor, http: httpx.Client, system_image: str) -> None:
    with door.client() as client:
        job = client.submit(command(system_image, "echo one line"))
        until(lambda: client.job(job.id).state == "succeeded", "its end")
    health = http.get("/health").json()
    assert health["ok"] and {check["name"] for check in health["checks"]} >= {"database", "controller", "engine"}
    text = httpx.get(door.url + "/metrics", headers=door.headers).text
    assert 'navarch_jobs{state="queued"}' in text and "navarch_requests_total" in text
    assert 'navarch_steps_total{end="done",state="running"}' in text
    assert 'navarch_lane_seconds_count{lane="start"}' in text and 'navarch_lane_waiting{lane="watch"}' in text
    for name in ("scheduling_pass_seconds_count", "controller_failures_total", "log_lag_seconds", "log_lines_total"):
        assert f"navarch_{name}" in text, name
    assert http.get("/hosts").json()["items"][0]["name"] == "local"
    paths = httpx.get(door.url + "/openapi.json").json()["paths"]
    assert "/api/v1/jobs" in paths and "/api/v1/jobs/{ref}/logs" in paths
