"""The rows: what is wanted, what was last seen, and who holds what. Times are seconds since the epoch."""

import time
import uuid
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, LargeBinary, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from jobs.stored import VERSION

LOCAL, CONTROLLER = "local", "controller"
"""Ids of principals: the account that runs the control plane, and that itself."""
_NO_ID_TWICE = {"sqlite_autoincrement": True}
"""SQLite would give the number of a deleted row to the next one."""


class Meta(SQLModel, table=True):
    """Facts of the deployment itself, such as its id."""

    __tablename__ = "meta"
    key: str = Field(primary_key=True)
    value: str


class Principal(SQLModel, table=True):
    """Somebody who acts. The row stays, so that what they did and own goes on to name them."""

    __tablename__ = "principal"
    id: str = Field(primary_key=True)
    """The name that they had first."""
    name: str = Field(unique=True)
    role: str
    kind: str
    created_at: float = Field(default_factory=time.time)
    removed_at: float | None = None
    """Since when they have no access any more."""
    quota: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The most that they may hold at once: gpus, workspaces, jobs, disk (bytes); what is not there has no limit."""


class Token(SQLModel, table=True):
    """A token by which a principal is known: its hash, never itself."""

    __tablename__ = "token"
    principal_id: str = Field(foreign_key="principal.id", primary_key=True)
    name: str = Field(primary_key=True)
    sha256: str = Field(unique=True)
    created_at: float = Field(default_factory=time.time)
    expires_at: float | None = None
    last_used_at: float | None = None
    """To the minute or so: it is not written at each request."""


class SshKey(SQLModel, table=True):
    """A public key that somebody logs in with."""

    __tablename__ = "ssh_key"
    owner_id: str = Field(foreign_key="principal.id", primary_key=True)
    fingerprint: str = Field(primary_key=True)
    line: str
    everywhere: bool = False
    """Everybody's containers authorise it, not only its owner's."""
    created_at: float = Field(default_factory=time.time)


class Secret(SQLModel, table=True):
    """What somebody's jobs and workspaces are given without anybody seeing it."""

    __tablename__ = "secret"
    owner_id: str = Field(foreign_key="principal.id", primary_key=True)
    name: str = Field(primary_key=True)
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """Its value, encrypted."""
    set_at: float = Field(default_factory=time.time)


class Registry(SQLModel, table=True):
    """A login at a registry of images, for pulls and pushes of everybody."""

    __tablename__ = "registry"
    address: str = Field(primary_key=True)
    username: str
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """The password, encrypted."""
    set_at: float = Field(default_factory=time.time)


class Job(SQLModel, table=True):
    """What a user asked for, and how far it is."""

    __tablename__ = "job"
    __table_args__ = (
        # One active job of a name for each owner; a finished job's name is free again.
        Index(
            "ix_job_active_name",
            "owner_id",
            "name",
            unique=True,
            sqlite_where=text("finished_at IS NULL"),
        ),
        Index("ix_job_queue", "state", "desired", "demand", text("priority DESC"), "created_at", "id", "not_before"),
        Index("ix_job_retry", "state", "not_before"),
        Index("ix_job_list", "created_at", "id"),
        Index("ix_job_state_list", "state", "created_at", "id"),
        Index("ix_job_name", "name", "created_at"),
        Index("ix_job_owner_list", "owner_id", "created_at", "id"),
    )
    id: str = Field(primary_key=True)
    name: str
    type: str
    document: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """The spec as given, values of secrets hidden."""
    spec_version: int = VERSION
    """Which kind of document it is: `jobs.stored` reads older ones."""
    secrets: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """The secrets' values, encrypted."""
    resolved: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """What submit made of the spec's paths: mounts to add and the training sections as the container sees them."""
    owner_id: str = Field(foreign_key="principal.id")
    priority: int = 50
    state: str = Field(default="queued")
    reason: str | None = None
    message: str | None = None
    why: str | None = None
    """What a waiting job waits for."""
    desired: str = "run"
    nodes: int = 1
    gpus: int = 0
    cpus: float | None = None
    memory: int | None = Field(default=None, sa_column=Column(BigInteger))
    """Bytes."""
    lasts: float | None = None
    """Seconds after which an attempt has ended at the latest: `Demand.lasts`."""
    ports: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """{"fixed": [host ports], "pool": how many from the pool}, of each node."""
    needs: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=Column(JSON, nullable=False, server_default="[]")
    )
    """[{"what": in words, "hosts": [ids of those that have it]}]."""
    demand: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """The same for jobs that need the same (`Demand.key`): the scheduling pass looks at the first of them only."""
    placing: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}"))
    """{"spread", "labels", "avoid": [host ids that failed the check of an earlier attempt]}; each may be missing."""
    attempts: int = 0
    user_retries: int = 0
    system_retries: int = 0
    progress: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    host_key: str | None = None
    """The public SSH host key of the job's containers."""
    created_at: float = Field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    not_before: float = 0.0
    """A retry waits until then, and a job whose inputs are still to be made for ever, until they are."""
    unreachable_since: float | None = None
    failures: int = 0
    """Steps of the controller that failed one after the other, for backing off."""

    @property
    def namespace(self) -> str:
        """What tells jobs of one name apart on hosts: whose it is, unless it is the local account's."""
        return "" if self.owner_id == LOCAL else self.owner_id


class Attempt(SQLModel, table=True):
    """One try at a job: a gang of containers, all or none."""

    __tablename__ = "attempt"
    __table_args__ = (UniqueConstraint("job_id", "number"), _NO_ID_TWICE)
    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(foreign_key="job.id", index=True)
    number: int
    state: str = "provisioning"
    reason: str | None = None
    message: str | None = None
    backend: str = Field(default="docker", sa_column_kwargs={"server_default": "docker"})
    """Which of the backends runs it."""
    master_port: int | None = None
    created_at: float = Field(default_factory=time.time)
    started_at: float | None = None
    """When its containers were all ready."""
    released_at: float | None = None
    """When the barrier was opened."""
    final: bool = False
    """Its failure isn't retried, whatever the reason."""
    stop_deadline: float | None = None
    """When what still runs is killed."""
    finished_at: float | None = None

    @property
    def holder(self) -> str:
        """The id under which it holds leases."""
        return f"attempt/{self.id}"


class Replica(SQLModel, table=True):
    """One container of an attempt."""

    __tablename__ = "replica"
    __table_args__ = (
        UniqueConstraint("attempt_id", "node_rank"),
        Index(
            "ix_replica_live_container",
            "container_name",
            unique=True,
            sqlite_where=text("removed_at IS NULL"),
        ),
        _NO_ID_TWICE,
    )
    id: int | None = Field(default=None, primary_key=True)
    attempt_id: int = Field(foreign_key="attempt.id", index=True)
    job_id: str = Field(foreign_key="job.id", index=True)
    node_rank: int
    host_id: str | None = Field(default=None, foreign_key="host.id")
    """None: the backend chooses where it runs, and may not have done so yet."""
    container_name: str
    container_id: str | None = None
    state: str = "pending"
    gpus: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    ports: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """Container port → host port."""
    exit_code: int | None = None
    oom_killed: bool = False
    error: str | None = None
    """What the engine said."""
    error_kind: str | None = None
    error_message: str | None = None
    error_host: str | None = None
    """What was said in its last `error` event."""
    started_at: float | None = None
    finished_at: float | None = None
    signalled_at: float | None = None
    """When it was sent SIGTERM."""
    harvested_at: float | None = None
    """When its exit facts and the end of its log were stored."""
    removed_at: float | None = None
    lifted: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    """Bytes of its log whose events have been lifted."""
    dropped: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}"))
    """Printed events that could not be used: why → how many."""

    @property
    def host(self) -> str:
        """The id of its host, where that is known."""
        assert self.host_id is not None, f"{self.container_name} has no host yet"
        return self.host_id


class Host(SQLModel, table=True):
    """A Docker Engine; lifecycle, reachability and health are separate facts."""

    __tablename__ = "host"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    url: str
    address: str
    """Where published ports are reached, and where the other hosts find it."""
    lifecycle: str = "active"
    reachable: bool = False
    unreachable_since: float | None = None
    message: str | None = None
    boot_id: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """cpus, memory_bytes, engine_version, gpus: [{uuid, name, memory_mib, index}], driver."""
    first_port: int = 20000
    last_port: int = 21999
    max_containers: int = 8
    seen_at: float | None = None
    host_key: str | None = None
    """The SSH host key that was pinned when it was added, as a line."""
    private_key: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """The key that logs in there, encrypted; None: the control plane's own."""
    cluster_address: str | None = None
    """Where the other hosts find it, if that is another address."""
    interface: str | None = None
    """The network interface that has the cluster address, where it isn't found by itself."""
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}"))
    shared_root: str | None = None
    """A folder that all hosts with the same one share."""
    findings: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=Column(JSON, nullable=False, server_default="[]")
    )
    """What the last check found: [{name, level, detail, gpu}]."""
    checked_at: float | None = None


class Holder(SQLModel, table=True):
    """Who holds leases now. Its row goes when it gives back what it has, and its leases go with it."""

    __tablename__ = "holder"
    id: str = Field(primary_key=True)
    """attempt/ID, workspace/ID."""
    kind: str
    """job, workspace."""
    name: str
    """The job's or the workspace's, as others are told who wait for what it has."""


class Workspace(SQLModel, table=True):
    """A long-lived container for a person. Its name, host, ports and home are its own until it is removed."""

    __tablename__ = "workspace"
    __table_args__ = (UniqueConstraint("owner_id", "name"),)
    id: str = Field(primary_key=True)
    name: str
    document: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """The spec as it stands now, values of secrets hidden."""
    secrets: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """The secrets' values, encrypted."""
    owner_id: str = Field(foreign_key="principal.id")
    state: str = Field(default="starting", index=True)
    wanted: str = "run"
    reason: str | None = None
    message: str | None = None
    host_id: str = Field(foreign_key="host.id")
    ports: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """Container port → host port."""
    gpus: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """Those that its container is made for; they are leased while it runs."""
    made: int = 1
    """How often a container was made for it, the present one counted."""
    container_id: str | None = None
    remake: bool = False
    """The next start makes its container anew."""
    remove_home: bool = False
    """Its home goes with it."""
    host_key: str | None = None
    """The public SSH host key."""
    created_at: float = Field(default_factory=time.time)
    started_at: float | None = None
    """When it was last asked to start: since then it holds its GPUs."""
    ready_at: float | None = None
    """When it was last ready; None while it isn't."""
    runs_until: float | None = None
    """When it is stopped, whatever it does."""
    stop_deadline: float | None = None
    """When what still runs is killed."""
    not_before: float = 0.0
    """The next try to start waits until then."""
    tries: int = 0
    """Starts one after the other after which it wasn't ready."""
    failures: int = 0
    """Steps of the controller that failed one after the other."""
    unreachable_since: float | None = None

    @property
    def holder(self) -> str:
        """The id under which it holds leases, and by which the controller knows it."""
        return f"workspace/{self.id}"

    @property
    def namespace(self) -> str:
        """What tells workspaces of one name apart on hosts, as with jobs."""
        return "" if self.owner_id == LOCAL else self.owner_id


class GpuLease(SQLModel, table=True):
    """This GPU belongs to this holder. The primary key is what makes two holders impossible."""

    __tablename__ = "gpu_lease"
    gpu: str = Field(primary_key=True)
    host_id: str = Field(foreign_key="host.id", index=True)
    holder_id: str = Field(foreign_key="holder.id", index=True, ondelete="CASCADE")


class PortLease(SQLModel, table=True):
    """This port of a host belongs to this holder."""

    __tablename__ = "port_lease"
    host_id: str = Field(foreign_key="host.id", primary_key=True)
    port: int = Field(primary_key=True)
    holder_id: str = Field(foreign_key="holder.id", index=True, ondelete="CASCADE")


class Event(SQLModel, table=True):
    """One thing that happened, and who did it."""

    __tablename__ = "event"
    __table_args__ = _NO_ID_TWICE
    id: int | None = Field(default=None, primary_key=True)
    time: float = Field(default_factory=time.time)
    actor_id: str = Field(foreign_key="principal.id")
    kind: str
    """job.submitted, job.state, host.unreachable, image.built, artifact.registered, …"""
    subject: str = Field(index=True)
    """job/ID, host/ID, image/TAG, artifact/NAME."""
    job_id: str | None = Field(default=None, index=True)
    job_name: str | None = None
    old: str | None = None
    new: str | None = None
    reason: str | None = None
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class ImageBuild(SQLModel, table=True):
    """One build of an image, so that a build survives the control plane's restart."""

    __tablename__ = "image_build"
    id: str = Field(primary_key=True)
    recipe: str
    tag: str
    options: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    state: str = Field(default="queued", index=True)
    """queued, running, succeeded, failed."""
    message: str | None = None
    image_id: str | None = None
    owner_id: str = Field(foreign_key="principal.id")
    created_at: float = Field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    starts: int = 0
    """How often it was started; more than once means that a restart interrupted it."""


class Artifact(SQLModel, table=True):
    """One version of a model, adapter, checkpoint or dataset, with a path and where it came from."""

    __tablename__ = "artifact"
    __table_args__ = (UniqueConstraint("name", "version", name="uq_artifact_name_version"),)
    id: str = Field(primary_key=True)
    name: str
    version: int = 1
    """Each run of a job, and each import, under one name makes the next version."""
    kind: str
    path: str
    owner_id: str = Field(foreign_key="principal.id")
    """Who made this version; its name is everybody's."""
    digest: str | None = None
    size: int | None = Field(default=None, sa_column=Column(BigInteger))
    state: str = "ready"
    message: str | None = None
    source: str | None = None
    job_id: str | None = Field(default=None, index=True)
    attempt: int | None = None
    run_path: str | None = None
    """Path within the job's run folder, for what a job left."""
    host_id: str | None = Field(default=None, foreign_key="host.id")
    """The remote host on which it lies; None: the control plane's machine."""
    metrics: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at: float = Field(default_factory=time.time)


class JobInput(SQLModel, table=True):
    """An artifact that a job's spec names, and the version that all its attempts use; or a job that it comes after."""

    __tablename__ = "job_input"
    __table_args__ = (
        Index("ix_job_input_artifact_id", "artifact_id"),
        Index("ix_job_input_maker_id", "maker_id"),
        Index(
            "ix_job_input_missing",
            "job_id",
            sqlite_where=text("version IS NULL"),
        ),
        _NO_ID_TWICE,
    )
    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(foreign_key="job.id", index=True)
    key: str
    """Where in the spec, such as `model` or `reward.model`."""
    name: str
    """Empty: no artifact, but the success of the job `maker_id`."""
    target: str
    """Where the container sees it."""
    version: int | None = None
    """None: it is waited for."""
    artifact_id: str | None = None
    digest: str | None = None
    """None until it has been computed."""
    maker_id: str | None = None
    """The job that left it; while `version` is None, the one that will."""
    maker_name: str | None = None


class Idempotency(SQLModel, table=True):
    """A key that somebody's client sent with a submit, and what came of it."""

    __tablename__ = "idempotency"
    owner_id: str = Field(foreign_key="principal.id", primary_key=True)
    key: str = Field(primary_key=True)
    digest: str
    """SHA-256 of the request's body."""
    job_id: str = Field(index=True)
    created_at: float = Field(default_factory=time.time)
