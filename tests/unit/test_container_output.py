"""Whatever a container prints, and whatever older versions stored of it, every page of the API answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.app import create_app
from service.backends.base import Seat
from service.collector import events
from service.collector.follower import Follower
from service.collector.hub import Hub
from service.runtime import Runtime
from service.settings import Settings
from service.store.tables import Artifact, Attempt, Host, Job, Replica
from tests.unit.local_client import local_client
from tests.unit.simulated_engine import LogRecord, Printed

JOBS, LINES = 40, 260
JSON = "application/json"


class Container:
    """An engine that knows of one container: the one that printed these lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def logs(self, seat: Seat, since: int, **how: Any) -> Printed:
        return Printed([[LogRecord(stamp(number), line).line for number, line in enumerate(self.lines)]])


def stamp(number: int) -> str:
    return f"2026-01-01T00:00:00.{number:09d}Z"


class Plane:
    """The real store, collector and app around what one job's container printed."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder, engine_url=f"unix://{folder}/no-engine.sock")
        self.runtime = Runtime(self.settings)
        self.runtime.database.migrate()
        self.printed = Container()
        self.http = local_client(create_app(self.runtime), self.settings)
        with self.runtime.database.write() as session:
            session.add(Host(id="local", name="local", url="unix://", address="127.0.0.1"))

    def job(self, job_id: str, kind: str = "serve") -> Replica:
        """A job that runs in one container."""
        with self.runtime.database.write() as session:
            session.add(
                Job(
                    owner_id="local",
                    id=job_id,
                    name=job_id,
                    type=kind,
                    document={"port": 8000},
                    attempts=1,
                    state="running",
                )
            )
            session.flush()
            attempt = Attempt(job_id=job_id, number=1)
            session.add(attempt)
            session.flush()
            replica = Replica(
                attempt_id=attempt.id, job_id=job_id, node_rank=0, host_id="local", container_name=job_id,
                state="ready", ports={"22": 1, "8000": 2},
            )  # fmt: skip
            session.add(replica)
        (self.settings.job_dir(job_id) / "run").mkdir(parents=True, exist_ok=True)
        return replica

    def collect(self, replica: Replica, lines: Sequence[str]) -> None:
        self.printed.lines = list(lines)
        Follower(self.printed, self.runtime.database, self.settings, Hub(), replica, 1).end(60)

    def get(self, path: str, **params: Any) -> Any:
        answer = self.http.get(f"/api/v1/{path}", params=params)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:2000])
        return json.loads(answer.text, parse_constant=_no_constant)

    def every_view(self, job_id: str) -> dict[str, Any]:
        """Each page that shows something of a job; strict JSON, all of them. The job as its page shows it."""
        listed = self.get("jobs", limit=200)["items"]
        shown: dict[str, Any] = self.get(f"jobs/{job_id}")
        assert shown in listed
        for path in ("logs", "metrics", "samples", "events"):
            self.get(f"jobs/{job_id}/{path}")
        self.get(f"jobs/{job_id}/logs", events=True, tail=50)
        self.get(f"jobs/{job_id}/metrics", points=2)
        for path in ("events", "artifacts", "hosts"):
            self.get(path)
        assert self.http.get("/metrics").status_code == 200
        return shown


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    made = Plane(tmp_path_factory.mktemp("plane"))
    yield made
    made.runtime.stop()


#: What JSON writers of this world write, and what nobody should; nested in a list, an object and a list of lists.
SCALARS: list[Any] = [
    *(None, True, 0, 1, 7, 99, -1, 2**53, 2**63, 10**400, 1.5, 1e308, math.nan, math.inf, -math.inf, -0.0),
    *("", "\x00", "\ud800", "../../etc", "/etc", "model", "a/b", "NaN", "\x1b]52;c;x\x07", "x" * 5000, "/v1", "中文"),
]
VALUES = st.one_of(
    st.sampled_from([*SCALARS, *[[value] for value in SCALARS], *[{"loss": value} for value in SCALARS],
                     *[{str(value): 1} for value in SCALARS], *[[[value, "x"], ["y"]] for value in SCALARS]]),
    st.integers(), st.floats(), st.text(max_size=8),
)  # fmt: skip
FIELDS = ("time", "step", "total_steps", "values", "eta_s", "title", "columns", "rows", "path", "kind", "metrics",
          "url_path", "message")  # fmt: skip
NAMES = st.sampled_from(["metrics", "eval", "progress", "sample", "artifact", "ready", "error", "other"])
GOOD = {"step": 3, "values": {"loss": 1.0}, "path": "model", "rows": [["q", "a"]]}
OBJECTS = st.builds(
    lambda name, first, one, second, two: {**GOOD, first: one, second: two, "event": name},
    NAMES, st.sampled_from(FIELDS), VALUES, st.sampled_from(FIELDS), VALUES,
)  # fmt: skip
RAW = st.sampled_from(
    ['{"event":"progress","step":1e400}', '{"event":"progress","step":1.5}', '{"event":"metrics","step":' + "9" * 5000,
     '{"event":"sample","rows":' + "[" * 3000 + "]" * 3000 + "}", "{" * 200, '{"event":"error","message":"\\ud800"}',
     '{"event":"metrics","step":1,"values":{"loss":NaN,"lr":-Infinity,"x":1e999}}', "", "null", '{"event":null}']
)  # fmt: skip
LINE = st.one_of(
    OBJECTS.map(json.dumps),
    OBJECTS.map(lambda event: json.dumps(event, ensure_ascii=False).encode("utf-8", "replace").decode()),
    st.one_of(RAW, VALUES.map(json.dumps), st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=40)),
).map(lambda text: events.PREFIX + text)


def test_ten_thousand_random_event_lines_leave_every_view_answering(plane: Plane) -> None:
    printed = 0

    @settings(max_examples=JOBS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(lines=st.lists(LINE, min_size=LINES, max_size=LINES))
    def one_job(lines: list[str]) -> None:
        nonlocal printed
        printed += len(lines)
        job_id = f"fuzz{printed}"
        plane.collect(plane.job(job_id), lines)
        plane.every_view(job_id)

    one_job()
    assert printed >= 10_000


def event(**content: object) -> str:
    return events.PREFIX + json.dumps(content)


def test_a_line_with_a_fraction_of_a_step_is_dropped_and_counted_at_the_job(plane: Plane) -> None:
    """The very line that once took `GET /jobs` from everybody."""
    plane.collect(
        plane.job("fraction"),
        [*[event(event="progress", step=1.5)] * 3, event(event="progress", step=7), "@navarch {"],
    )
    shown = plane.every_view("fraction")
    assert shown["progress"]["step"] == 7
    assert shown["warnings"] == [
        "3 printed events dropped: progress: `step` is not a whole number",
        "1 printed event dropped: not JSON",
    ]


def test_figures_that_are_not_finite_stay_visible_as_marks(plane: Plane) -> None:
    """The loss that became NaN is the point that everybody looks for."""
    losses = [2.0, math.nan, math.inf, -math.inf, None, 1.0]
    lines = [event(event="metrics", step=step, values={"loss": loss}) for step, loss in enumerate(losses)]
    plane.collect(plane.job("nan"), lines)
    plane.every_view("nan")
    (loss,) = plane.get("jobs/nan/metrics")["series"]
    assert loss["steps"] == [0, 1, 2, 3, 4, 5] and loss["values"] == [2.0, None, None, None, None, 1.0]
    assert [mark["value"] for mark in loss["marks"]] == ["NaN", "Infinity", "-Infinity", "NaN"]
    assert [mark["index"] for mark in loss["marks"]] == [1, 2, 3, 4] and loss["not_finite"] == 4
    stored = (plane.settings.job_dir("nan") / "metrics.jsonl").read_text()
    assert [json.loads(line, parse_constant=_no_constant)["values"]["loss"] for line in stored.splitlines()][1] == "NaN"


def test_rows_that_an_older_version_stored_leave_every_view_answering(plane: Plane) -> None:
    """As they were in databases before container output was parsed into types."""
    plane.job("old")
    bad_progress = '{"step": 1.5, "total_steps": NaN, "loss": 1e400, "eta_s": "x", "ready": 1, "url_path": "\\ud800"}'
    with plane.runtime.database.write() as session:
        connection = session.connection()
        connection.exec_driver_sql("UPDATE job SET progress = ? WHERE id = 'old'", (bad_progress,))
        session.add(
            Artifact(owner_id="local", id="old-a", name="old-a", kind="model", path="/x", job_id="old", run_path="x")
        )
        session.flush()
        connection.exec_driver_sql('UPDATE artifact SET metrics = \'{"a": Infinity, "b": "\\udfff"}\'')
        connection.exec_driver_sql('UPDATE host SET facts = \'{"gpus": [{"uuid": 5}], "cpus": "many"}\'')
    folder = plane.settings.job_dir("old")
    (folder / "metrics.jsonl").write_text(
        '{"step": Infinity, "time": "x", "values": {"loss": 1e400, "a": 1}}\n'
        '{"step": 1, "values": {"\\ud800": 1}}\n[]\n{"values": 3}\n{"step": {}, "values": {"b": [1]}}\n'
    )
    (folder / "samples.jsonl").write_text('{"rows": 5}\n{"rows": [1, [null, {"a": NaN}]], "time": [], "columns": 7}\n')
    shown = plane.every_view("old")
    assert shown["progress"]["step"] is None and shown["progress"]["loss"] is None
    assert {series["name"] for series in plane.get("jobs/old/metrics")["series"]} == {"loss", "a"}


def test_a_row_that_cannot_be_shown_is_named_and_the_others_of_its_page_are_shown(plane: Plane) -> None:
    plane.job("whole")
    plane.job("broken")
    with plane.runtime.database.write() as session:
        session.connection().exec_driver_sql("UPDATE job SET document = '[1]', started_at = 'soon' WHERE id = 'broken'")
    shown = {job["id"]: job for job in plane.get("jobs", limit=200)["items"]}
    assert "can't be shown" in shown["broken"]["message"] and shown["whole"]["message"] is None
    assert plane.get("jobs/broken")["spec"] == {}
