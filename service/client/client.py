"""A typed client of the REST API: one method per thing that the control plane does."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent

from service.client.administration import Administration
from service.client.calls import segment
from service.client.errors import ApiError, Unreachable
from service.contract.images import Build, Committed, Image, Imported, Pushed, Registry
from service.contract.pages import SessionLink
from service.contract.schemas import (
    Artifact,
    ArtifactFate,
    BulkAnswer,
    BulkItem,
    Deleted,
    Event,
    Health,
    Job,
    JobStatus,
    LogLine,
    LogPage,
    Metrics,
    Place,
    Plan,
    Samples,
    Version,
)
from service.contract.workspaces import Fate, IdeBlock, IdeBlocks, Workspace

_MOST_AT_ONCE = 200
"""Jobs that one request stops or deletes: it has to be answered in time."""


class Client(Administration):
    """Talks to one control plane.

        with Client() as navarch:
            job = navarch.submit({"type": "command", "name": "hello", "image": "cpu", "command": ["echo", "hi"]})
            for line in navarch.follow_logs(job.id):
                print(line.line)

    `url` defaults to `NAVARCH_URL`, then to the control plane that `navarch up` started here; `token` to
    `NAVARCH_TOKEN`, then to the token of this account, if the control plane is its own.
    Every method raises `ApiError` (the control plane refused; `code`, `hint`) or `Unreachable`.
    """

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def sign_in_link(self) -> str:
        """An address of the dashboard that signs a browser in, once, within ten minutes."""
        return self.url + self._send(SessionLink, "POST", "session/link").path

    # jobs

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queue a job. Sent with an Idempotency-Key, so that a broken connection never makes it twice."""
        key = idempotency_key or uuid.uuid4().hex
        return self._send(Job, "POST", "jobs", json_body=dict(spec), headers={"Idempotency-Key": key}, repeatable=True)

    def plan(self, spec: Mapping[str, Any]) -> Plan:
        """What a submit would do now, without doing it."""
        return self._send(Plan, "POST", "jobs", params={"dry_run": "true"}, json_body=dict(spec), repeatable=True)

    def jobs(
        self,
        *,
        states: list[str] | None = None,
        types: list[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first, page by page; at most `limit` of them."""
        params = {"state": states or None, "type": types or None}
        return self._pages(Job, "jobs", params, limit)

    def job(self, ref: str) -> Job:
        """One job, by id or name (the newest of that name)."""
        return self._get(Job, f"jobs/{segment(ref)}")

    def stop(self, ref: str) -> Job:
        """Ask a job to stop; its containers get SIGTERM and a grace period."""
        return self._send(Job, "POST", f"jobs/{segment(ref)}/stop", repeatable=True)

    def stop_many(self, refs: Sequence[str]) -> list[BulkItem]:
        """Ask several jobs to stop; for each how it stands then, or its problem."""
        return self._bulk("jobs/stop", refs)

    def delete(self, ref: str, *, artifacts: ArtifactFate = "keep") -> Deleted:
        """Forget a finished job and remove its files. What it left as artifacts stays, unless that is to go, too."""
        return self._send(Deleted, "DELETE", f"jobs/{segment(ref)}", params={"artifacts": artifacts})

    def delete_many(self, refs: Sequence[str], *, artifacts: ArtifactFate = "keep") -> list[BulkItem]:
        """The same with several; for each what it was and what became of its artifacts, or its problem."""
        return self._bulk("jobs/delete", refs, artifacts=artifacts)

    def _bulk(self, path: str, refs: Sequence[str], **more: str) -> list[BulkItem]:
        items: list[BulkItem] = []
        for start in range(0, len(refs), _MOST_AT_ONCE):
            some = list(refs[start : start + _MOST_AT_ONCE])
            items += self._send(BulkAnswer, "POST", path, json_body={"jobs": some, **more}).items
        return items

    def wait(self, ref: str, *, timeout_s: float | None = None, poll_s: float = 0.3) -> Job:
        """The job, once it has finished. Raises TimeoutError when `timeout_s` is over before."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self.job(ref)
            if job.finished:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"Job {job.name} is still {job.state} after {timeout_s:g} s.")
            time.sleep(poll_s)

    def logs(
        self,
        ref: str,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        replica: int | None = None,
        tail: int | None = None,
        events: bool = False,
        until: str | None = None,
    ) -> LogPage:
        """One page of what a job's containers printed; `until`: the cursor behind which nothing is wanted."""
        params = {"cursor": cursor, "until": until, "limit": limit, "replica": replica, "tail": tail}
        params["events"] = _flag(events)
        return self._get(LogPage, f"jobs/{segment(ref)}/logs", params)

    def follow_logs(
        self,
        ref: str,
        *,
        cursor: str | None = None,
        replica: int | None = None,
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """Lines as they come, until the job has ended; goes on by itself after a restart of the control plane."""
        for item in self.follow(ref, cursor=cursor, replica=replica, tail=tail):
            if isinstance(item, LogLine):
                yield item

    def follow(
        self,
        ref: str,
        *,
        cursor: str | None = None,
        replica: int | None = None,
        tail: int | None = None,
        events: bool = False,
    ) -> Iterator[LogLine | JobStatus]:
        """Log lines, and the job's status whenever it changes, until the job has ended and every line was given."""
        params = {"follow": "true", "cursor": cursor, "replica": replica, "tail": tail, "events": _flag(events)}
        for event in self._follow(f"jobs/{segment(ref)}/logs", params):
            if event.event == "log":
                yield LogLine.model_validate_json(event.data)
            elif event.event in ("job", "end"):
                yield JobStatus.model_validate_json(event.data)

    def metrics(self, ref: str, *, points: int | None = None, names: list[str] | None = None) -> Metrics:
        """The series that a job reported, each downsampled to at most `points`."""
        return self._get(Metrics, f"jobs/{segment(ref)}/metrics", {"points": points, "name": names or None})

    def samples(self, ref: str, *, limit: int | None = None) -> Samples:
        """What the model under training answered to the sample prompts, latest first."""
        return self._get(Samples, f"jobs/{segment(ref)}/samples", {"limit": limit})

    def events(self, ref: str | None = None, *, limit: int | None = None) -> Iterator[Event]:
        """What happened, newest first: to one job, or everywhere."""
        return self._pages(Event, f"jobs/{segment(ref)}/events" if ref else "events", {}, limit)

    # workspaces

    def create_workspace(self, spec: Mapping[str, Any]) -> Workspace:
        """Make a workspace and start it."""
        return self._send(Workspace, "POST", "workspaces", json_body=dict(spec))

    def workspaces(self, *, limit: int | None = None) -> Iterator[Workspace]:
        """Workspaces, the newest first."""
        return self._pages(Workspace, "workspaces", {}, limit)

    def workspace(self, ref: str) -> Workspace:
        """One workspace, by name or id."""
        return self._get(Workspace, f"workspaces/{segment(ref)}")

    def start_workspace(self, ref: str, *, image: str | None = None, switch: bool = False) -> Workspace:
        """Start it; `switch` makes its container anew, of another image if one is given."""
        body = {"image": image, "switch": switch}
        return self._send(Workspace, "POST", f"workspaces/{segment(ref)}/start", json_body=body, repeatable=True)

    def restart_workspace(self, ref: str, *, image: str | None = None, switch: bool = False) -> Workspace:
        """Stop and start it."""
        body = {"image": image, "switch": switch}
        return self._send(Workspace, "POST", f"workspaces/{segment(ref)}/restart", json_body=body)

    def stop_workspace(self, ref: str) -> Workspace:
        """Stop it; its container, address and home stay."""
        return self._send(Workspace, "POST", f"workspaces/{segment(ref)}/stop", repeatable=True)

    def extend_workspace(self, ref: str, seconds: float) -> Workspace:
        """Let it run longer than its `max`."""
        return self._send(Workspace, "POST", f"workspaces/{segment(ref)}/extend", json_body={"by": seconds})

    def delete_workspace(self, ref: str, *, home: Fate = "keep") -> Workspace:
        """Remove it with its container; its home only where that is asked for."""
        return self._send(Workspace, "DELETE", f"workspaces/{segment(ref)}", params={"home": home}, repeatable=True)

    def check_workspace(self, ref: str) -> Health:
        """Try what an IDE does in it."""
        return self._send(Health, "POST", f"workspaces/{segment(ref)}/check", repeatable=True)

    def workspace_ide(self, ref: str) -> list[IdeBlock]:
        """How to connect an IDE to it."""
        return self._get(IdeBlocks, f"workspaces/{segment(ref)}/ide").items

    def workspace_events(self, ref: str, *, limit: int | None = None) -> Iterator[Event]:
        """What happened to it, newest first."""
        return self._pages(Event, f"workspaces/{segment(ref)}/events", {}, limit)

    # images

    def build_image(self, recipe: str, **options: str | bool | list[str] | None) -> Build:
        """Start building an image; options as in the REST API's BuildRequest."""
        body = {"recipe": recipe, **{key: value for key, value in options.items() if value is not None}}
        return self._send(Build, "POST", "images/builds", json_body=body)

    def builds(self, *, limit: int | None = None) -> Iterator[Build]:
        """Image builds, the newest first."""
        return self._pages(Build, "images/builds", {}, limit)

    def cancel_build(self, build_id: str) -> Build:
        """End a build that waits or is under way."""
        return self._send(Build, "POST", f"images/builds/{segment(build_id)}/cancel")

    def build(self, build_id: str) -> Build:
        return self._get(Build, f"images/builds/{segment(build_id)}")

    def follow_build(self, build_id: str) -> Iterator[str]:
        """The build's log as it is written, until the build has ended."""
        for event in self._follow(f"images/builds/{segment(build_id)}/logs", {"follow": "true"}):
            if event.event == "log":
                yield LogLine.model_validate_json(event.data).line

    def commit_image(self, workspace: str, tag: str) -> Committed:
        """Keep a workspace as an image; answers when that is done, which may take minutes."""
        body = {"workspace": workspace, "tag": tag}
        return self._send(Committed, "POST", "images/commits", json_body=body)

    def push_image(self, image: str, to: str = "") -> str:
        """Push an image to its registry; its digest there."""
        return self._send(Pushed, "POST", "images/push", json_body={"image": image, "to": to}).digest

    def commit_size(self, workspace: str, tag: str) -> Committed:
        """How much a commit would add at most; nothing is made."""
        body = {"workspace": workspace, "tag": tag}
        return self._send(Committed, "POST", "images/commits", params={"dry_run": "true"}, json_body=body)

    def pull_image(self, image: str) -> Image:
        """Fetch an image from its registry."""
        return self._send(Image, "POST", "images/pull", json_body={"image": image})

    def tag_image(self, image: str, tag: str) -> Image:
        """Give an image another name."""
        return self._send(Image, "POST", "images/tag", json_body={"image": image, "tag": tag})

    def export_image(self, image: str, file: Path) -> int:
        """Write an image into a file of this machine; its bytes."""
        return self._transport.download("images/export", {"image": image}, file)

    def import_image(self, path: str) -> list[str]:
        """Load images from a file on the control plane's machine; their names."""
        return self._send(Imported, "POST", "images/import", json_body={"path": path}).images

    def registries(self) -> list[Registry]:
        """Where this control plane is logged in."""
        return list(self._pages(Registry, "registries", {}, None))

    def registry_login(self, address: str, username: str, password: str) -> None:
        """Log in to a registry, for every pull and push from now on."""
        body = {"username": username, "password": password}
        self._transport.request("PUT", f"registries/{segment(address)}", json_body=body)

    def registry_logout(self, address: str) -> None:
        self._transport.request("DELETE", f"registries/{segment(address)}")

    def images(self) -> list[Image]:
        return list(self._pages(Image, "images", {}, None))

    def image(self, ref: str) -> Image:
        return self._get(Image, f"images/{_path(ref)}")

    def delete_image(self, ref: str) -> None:
        self._transport.request("DELETE", f"images/{_path(ref)}")

    # artifacts, hosts

    def artifacts(self) -> list[Artifact]:
        return list(self._pages(Artifact, "artifacts", {}, None))

    def artifact(self, ref: str) -> Artifact:
        """NAME (the newest version), NAME@VERSION or an id."""
        return self._get(Artifact, f"artifacts/{segment(ref)}")

    def add_artifact(
        self, path: str, *, name: str | None = None, kind: str | None = None, new_version: bool = False
    ) -> Artifact:
        """Register a Hugging Face directory or a data set, or convert and register a GGUF file."""
        given = {"path": path, "name": name, "kind": kind, "new_version": new_version or None}
        body = {key: value for key, value in given.items() if value is not None}
        return self._send(Artifact, "POST", "artifacts", json_body=body)

    def delete_artifact(self, ref: str) -> None:
        self._transport.request("DELETE", f"artifacts/{segment(ref)}")

    # the control plane itself

    def health(self) -> Health:
        """How the control plane is; also when it is not well (no exception then)."""
        try:
            return self._get(Health, "health")
        except ApiError as error:
            if error.status == 503 and error.problem.model_extra and "checks" in error.problem.model_extra:
                return Health(ok=False, checks=error.problem.model_extra["checks"])
            raise

    def consistency(self) -> Health:
        """Whether the control plane's database agrees with itself and with the engines' containers."""
        return self._get(Health, "consistency")

    def version(self) -> Version:
        return self._get(Version, "version")

    def place(self) -> Place:
        """Where the control plane runs, and what it was started with."""
        return self._get(Place, "place")

    # the way there

    def _follow(self, path: str, params: dict[str, Any], patience_s: float = 30.0) -> Iterator[ServerSentEvent]:
        """Events over as many connections as it takes, until an `end`; each goes on after the last event's id.

        Raises Unreachable when the control plane stays away for `patience_s`.
        """
        last_id: str | None = None
        away_since: float | None = None
        while True:
            try:
                for event in self._transport.stream(path, params, last_id):
                    away_since = None
                    last_id = event.id or last_id
                    if last_id is not None:
                        params.pop("tail", None)
                    yield event
                    if event.event == "end":
                        return
            except httpx.TransportError as error:
                now = time.monotonic()
                away_since = away_since if away_since is not None else now
                if last_id is None or now - away_since > patience_s:
                    raise Unreachable(self.url, str(error) or type(error).__name__) from error
            time.sleep(0.3)


def _flag(value: bool) -> str | None:
    return "true" if value else None


def _path(ref: str) -> str:
    """An image reference keeps its slashes and colons."""
    return quote(ref, safe="/:@")
