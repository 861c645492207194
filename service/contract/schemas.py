"""What the REST API sends and takes, as pydantic models that the server and the client share.

Reading is tolerant (unknown members are ignored), so that an older client understands a newer server.
Times are seconds since the epoch, UTC.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")

ArtifactFate = Literal["keep", "delete"]
"""What becomes of a job's artifacts when it is deleted."""

#: The states in which nothing more happens to a job.
FINISHED_STATES = frozenset({"succeeded", "failed", "stopped"})


class Schema(BaseModel):
    """Base of all: immutable, tolerant of members that it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class ProblemDocument(BaseModel):
    """An error, as RFC 9457 has it, with a stable `code` and a `hint` on what to do next."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    hint: str | None = None
    instance: str | None = None


class Page(Schema, Generic[Item]):
    """One page of a list; `next_cursor` fetches the next one, null on the last."""

    items: list[Item]
    next_cursor: str | None = None


class Progress(Schema):
    """How far a job's training is, from its latest events."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_s: float | None = None
    ready: int | None = Field(default=None, description="the attempt whose model server has answered")


class Replica(Schema):
    """One container of an attempt, as Docker last showed it."""

    node_rank: int
    host: str | None = None
    container_name: str | None = None
    container_id: str | None = None
    state: str
    exit_code: int | None = None
    oom_killed: bool = False
    gpus: list[str] = Field(default_factory=list, description="UUIDs of the GPUs that it holds")
    ports: dict[str, int] = Field(default_factory=dict, description="container port → host port")


class Attempt(Schema):
    """One try at a job: a gang of replicas, all or none."""

    number: int
    state: str
    reason: str | None = None
    message: str | None = None
    replicas: list[Replica] = Field(default_factory=list)


class SshAccess(Schema):
    """Where sshd of the job's first container answers; present once a handshake has succeeded."""

    host: str
    port: int
    user: str = "root"
    host_key: str | None = Field(default=None, description="public host key, to be pinned by the client")


class ArtifactRef(Schema):
    """A file or folder that the job left in its run directory."""

    name: str = Field(default="", description="what a spec calls it: artifact:NAME")
    version: int = Field(default=1, description="artifact:NAME@VERSION is this one, artifact:NAME the newest")
    path: str = Field(description="in the job's run folder")
    location: str = Field(default="", description="where it lies on the control plane's machine")
    kind: str
    size: int | None = Field(default=None, description="bytes; null until it has been read")
    metrics: dict[str, Any] = Field(default_factory=dict)


class JobInput(Schema):
    """An artifact that a job's spec names, and which version of it all attempts use."""

    key: str = Field(description="where in the spec, such as model or reward.model")
    name: str
    version: int | None = Field(default=None, description="null while the job waits for it")
    digest: str | None = Field(default=None, description="null until it has been computed")
    job: str | None = Field(default=None, description="the job that left it, or will; null when it was imported")


class Job(Schema):
    """What a user asked for, and how it stands."""

    id: str
    name: str
    type: str
    state: str
    reason: str | None = Field(default=None, description="why it is in this state, for machines")
    message: str | None = Field(default=None, description="why it is in this state, for people")
    why: str | None = Field(default=None, description="what a waiting job waits for")
    spec: dict[str, Any]
    priority: int = 0
    owner: str = Field(default="", description="who submitted it")
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    unreachable_since: float | None = None
    progress: Progress = Progress()
    attempts: list[Attempt] = Field(default_factory=list)
    ssh: SshAccess | None = None
    url: str | None = None
    inputs: list[JobInput] = Field(default_factory=list)
    artifacts: list[ArtifactRef] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list, description="what of its output could not be used, and how often")

    @property
    def finished(self) -> bool:
        return self.state in FINISHED_STATES


class PlannedReplica(Schema):
    """Where one container would go and what would run in it."""

    node_rank: int
    host: str | None = None
    gpus: list[str] = Field(default_factory=list)
    image: str
    command: list[str]
    environment: dict[str, str] = Field(default_factory=dict)
    ports: dict[str, int | None] = Field(default_factory=dict, description="null: from the host's pool at start")
    mounts: list[str] = Field(default_factory=list, description="source:target:mode")
    workdir: str = ""
    shm: int | None = Field(default=None, description="bytes of /dev/shm; null: the host's own")


class PlanProblem(Schema):
    """Something that would make the job fail as soon as it starts."""

    code: str
    detail: str
    hint: str | None = None


class Plan(Schema):
    """What a submit would do now (`dry_run`), without doing it."""

    spec: dict[str, Any] = Field(description="the spec with every default filled in")
    placeable: bool = Field(description="there is room for every container now")
    why: str | None = Field(default=None, description="what it would wait for")
    problems: list[PlanProblem] = Field(default_factory=list, description="why it would fail when it starts")
    notes: list[str] = Field(default_factory=list, description="what comes before, such as a pull of the image")
    replicas: list[PlannedReplica] = Field(default_factory=list)


class Event(Schema):
    """One thing that happened, and who did it."""

    id: int
    time: float
    actor: str
    kind: str
    message: str
    job_id: str | None = None
    job_name: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class LogLine(Schema):
    """One line that a container printed; reading after `cursor` gives the next."""

    cursor: str
    time: float
    replica: int
    line: str
    attempt: int = 1
    passing: bool = Field(default=False, description="the state of a progress bar, which the next line replaces")


class JobStatus(Schema):
    """How a job stands, sent beside its log lines while one follows them."""

    id: str
    name: str
    state: str
    reason: str | None = None
    message: str | None = None
    why: str | None = None
    unreachable_since: float | None = None
    progress: Progress = Progress()

    @property
    def finished(self) -> bool:
        return self.state in FINISHED_STATES


class BulkRequest(BaseModel):
    """Jobs to do the same with, by id or name."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(min_length=1, max_length=1000)


class DeleteRequest(BulkRequest):
    """Jobs to delete, and what is to become of the artifacts that they left."""

    artifacts: ArtifactFate = "keep"


class BulkItem(Schema):
    """What came of it for one of them."""

    ref: str = Field(description="as it was asked for")
    job: JobStatus | None = Field(default=None, description="how it stands now; of a deleted one, how it stood")
    kept: list[Artifact] = Field(default_factory=list, description="artifacts that stay after the job was deleted")
    deleted: list[Artifact] = Field(default_factory=list, description="artifacts that were deleted with the job")
    problem: ProblemDocument | None = None


class Deleted(Schema):
    """A job that was deleted, as it stood, and what has become of its artifacts."""

    job: JobStatus
    kept: list[Artifact] = Field(default_factory=list, description="they stay under their names")
    deleted: list[Artifact] = Field(default_factory=list, description="they are gone with the job")


class BulkAnswer(Schema):
    """One item for each job, in the order in which they were asked for."""

    items: list[BulkItem]


class LogPage(Schema):
    """Lines in the order in which they were stored; `next_cursor` continues, also after the job's end."""

    items: list[LogLine]
    next_cursor: str
    end: bool = Field(description="the job has ended and there are no more lines")


class Mark(Schema):
    """A point of a series that has no place on an axis."""

    index: int = Field(description="of the point in `steps`, `times` and `values`")
    value: Literal["NaN", "Infinity", "-Infinity"]


class Series(Schema):
    """One metric over time, downsampled to what was asked for."""

    name: str
    steps: list[int]
    times: list[float]
    values: list[float | None] = Field(description="null where the value is not finite: `marks` says what it is")
    marks: list[Mark] = Field(default_factory=list)
    total: int = Field(description="points before downsampling")
    not_finite: int = Field(default=0, description="how many of those are not finite")


class Metrics(Schema):
    job_id: str
    series: list[Series]

    @property
    def values(self) -> dict[str, list[float | None]]:
        """The values by the metric's name."""
        return {series.name: series.values for series in self.series}

    @property
    def steps(self) -> dict[str, list[int]]:
        """The steps that the values belong to, by the metric's name."""
        return {series.name: series.steps for series in self.series}


class Sample(Schema):
    """Answers to the sample prompts at one moment of the training."""

    title: str
    time: float
    columns: list[str]
    rows: list[list[str]]


class Samples(Schema):
    job_id: str
    items: list[Sample]


class ArtifactRequest(BaseModel):
    """What to register: a Hugging Face directory, a data set, or a GGUF file to be converted."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, max_length=4096, description="absolute path on the control plane's machine")
    name: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="default: from the path"
    )
    new_version: bool = Field(default=False, description="make it the next version where the name exists")
    kind: Literal["model", "adapter", "checkpoint", "dataset"] | None = Field(
        default=None, description="what it is; default: by looking"
    )


class Artifact(Schema):
    """One version of a model, adapter, checkpoint or data set, with a path, a digest and where it came from."""

    id: str
    name: str
    version: int = Field(default=1, description="artifact:NAME@VERSION is this one, artifact:NAME the newest")
    kind: str
    path: str
    digest: str | None = Field(
        default=None,
        description="sha256:… of the file, or of what `sha256sum` prints of the folder's files in the order of their "
        "paths; null until it has been computed, for what a job leaves after the job's end",
    )
    size: int | None = None
    state: str = "ready"
    message: str | None = None
    source: str | None = Field(default=None, description="where it came from: a file, or job:NAME")
    job: str | None = Field(default=None, description="id of the job that left it")
    created_at: float


class Gpu(Schema):
    """One device of a host, known by its UUID."""

    uuid: str
    name: str
    memory_mib: int
    index: int | None = None
    job: str | None = Field(default=None, description="the job that holds it now")
    holder: str | None = Field(default=None, description="the name of what holds it now")
    health: str | None = Field(default=None, description="ok, or what is wrong with it")
    health_message: str | None = None
    utilization: float | None = Field(default=None, description="percent, as last seen")
    memory_used_mib: int | None = Field(default=None, description="as last seen")


class Finding(Schema):
    """Something that a check of a host found."""

    name: str = Field(description="what was looked at, such as disk or ecc")
    level: Literal["note", "warning", "error"]
    detail: str = Field(description="what is wrong, and what to do on that host")
    gpu: str | None = Field(default=None, description="the UUID of the GPU that is not used because of it")


class Host(Schema):
    """A Docker Engine that Navarch may use; lifecycle, reachability and health are separate facts."""

    id: str
    name: str
    url: str
    state: str = Field(description="active, or draining: nothing new is placed on it")
    reachable: bool
    unreachable_since: float | None = None
    message: str | None = None
    address: str = Field(default="", description="where its published ports are reached")
    cluster_address: str | None = Field(default=None, description="where the other hosts find it")
    interface: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    first_port: int | None = None
    last_port: int | None = None
    shared_root: str | None = None
    fingerprint: str | None = Field(default=None, description="of its pinned SSH host key")
    findings: list[Finding] = Field(default_factory=list, description="what the last check found")
    checked_at: float | None = None
    engine_version: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    gpus: list[Gpu] = Field(default_factory=list)
    seen_at: float | None = None


class Check(Schema):
    """One thing that was looked at, and how it is."""

    name: str
    ok: bool
    detail: str


class Health(Schema):
    ok: bool
    checks: list[Check]


class Place(Schema):
    """Where a control plane runs, and what it was started with."""

    data_dir: str = Field(description="where everything is kept, on the control plane's machine")
    pid: int
    engine_url: str = Field(description="the Docker Engine that is the host `local`")
    mount_roots: list[str] = Field(description="host folders that jobs may mount from, besides the data folder")


class Version(Schema):
    version: str
    api: str = "v1"
    deployment: str
