"""What the dashboard asks beside the resources: lines of a log by number, curves, sessions, facts of the system."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from service.contract.schemas import Check, Schema


class NumberedLine(Schema):
    """One line of a log; its number is its place in the answer plus `first`."""

    time: float
    attempt: int
    replica: int
    text: str
    length: int | None = Field(default=None, description="bytes of the whole line where `text` is only its beginning")


class LinePage(Schema):
    """Lines of one attempt by their numbers."""

    first: int
    total: int = Field(description="lines that there are now")
    items: list[NumberedLine]


class Found(Schema):
    """Where a search came to."""

    line: int | None = Field(default=None, description="null: nowhere")


class SeriesName(Schema):
    """One metric that a job reported."""

    name: str
    points: int
    min: float | None = None
    max: float | None = None
    last: float | None = None


class SeriesNames(Schema):
    items: list[SeriesName]


class Restart(Schema):
    """Where a later attempt began, and why there is one."""

    x: float
    attempt: int
    reason: str | None = Field(default=None, description="why the attempt before it ended")


class SeriesData(Schema):
    """A part of one series, cut to what a screen can show; see `width`."""

    name: str
    x: list[float]
    y: list[float | None] = Field(description="null: the value was NaN or infinite")
    times: list[float] | None = Field(default=None, description="when each point was reported")
    marks: list[float] = Field(description="places where the value was NaN or infinite")
    restarts: list[Restart] = Field(default_factory=list)
    total: int = Field(description="points before cutting")
    cursor: str = Field(description="pass it as `after` for what comes later")
    delta: bool = Field(description="these points come behind those of the answer with the cursor `after`")


class SessionRequest(BaseModel):
    """How one signs in: with a token, or with the code of a link that was printed on the control plane's machine."""

    model_config = ConfigDict(extra="forbid")

    token: str | None = Field(default=None, max_length=200)
    code: str | None = Field(default=None, max_length=200)


class Session(Schema):
    """Who asks."""

    name: str
    role: str
    session: bool = Field(description="signed in by a cookie")


class SessionLink(Schema):
    """A link that signs in, below the control plane's address."""

    path: str


class JobCounts(Schema):
    """How many jobs there are in each state."""

    states: dict[str, int]


class System(Schema):
    """How the control plane is, and what room it has."""

    version: str
    deployment: str
    checks: list[Check]
    disk_total: int = Field(description="bytes, of the file system that holds the data folder")
    disk_free: int


class LineageItem(Schema):
    """One artifact or job on the way from the first model to what was made of it."""

    kind: str = Field(description="artifact or job")
    id: str
    name: str
    type: str
    depth: int = Field(description="Its layer: behind all that it was made of.")
    sources: list[str] = Field(description="Ids of what it was made of, or of the job that made it.")


class Lineage(Schema):
    items: list[LineageItem]


class Preview(Schema):
    """The first rows of a data set, as text."""

    file: str | None = None
    rows: list[str] = Field(default_factory=list)


class HostKey(Schema):
    """The key with which the control plane logs in on hosts."""

    public_key: str = Field(description="a line for authorized_keys")
