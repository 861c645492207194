"""The interface to one host's engine: the few things that a backend of plain hosts asks of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jobs.launch import ContainerPlan

Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True)
class Gpu:
    uuid: str
    name: str
    memory_mib: int
    index: int


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself and its machine."""

    version: str
    cpus: int
    memory_bytes: int
    boot_id: str | None = None
    """Changes when the machine is rebooted; None when that can't be seen from here."""
    started_at: float | None = None
    """When the engine itself was started; None when that can't be seen from here."""


@dataclass(frozen=True)
class Examination:
    """What a closer look at an engine's machine found; None: it can't be seen from here."""

    report: str | None = None
    """What `nvidia-smi -q -x` says in a container; None where containers get no GPUs."""
    gpu_devices: int | None = None
    """GPUs that the machine's NVIDIA driver knows."""
    disk_free: int | None = None
    """Bytes, where the engine keeps images and containers."""
    disk_size: int | None = None
    shm: int | None = None
    """Bytes of /dev/shm."""
    skew_s: float | None = None
    """How far its clock is ahead of this machine's, as far as that is certain."""
    xids: tuple[str, ...] = ()
    """The last errors of the NVIDIA driver in the kernel's log."""


DEFAULT_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH where an image says nothing."""


@dataclass(frozen=True)
class ImageFacts:
    id: str
    reference: str
    labels: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    """Its USER; empty: root."""
    entrypoint: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: bool = False
    search_path: str = DEFAULT_SEARCH_PATH
    """Its PATH."""


@dataclass(frozen=True)
class ContainerFacts:
    """One container as the engine sees it."""

    id: str
    name: str
    labels: Mapping[str, str]
    running: bool
    started: bool
    """Whether it was ever started."""
    exit_code: int | None = None
    """None while it runs, or when it never ran."""
    oom_killed: bool = False
    error: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    created_at: float | None = None


@dataclass(frozen=True)
class Created:
    """A container that is there now, and whether it was ever started: then it must not be started again."""

    id: str
    started: bool = False


class LogStream(Protocol):
    """A container's log that is being read: batches of whole lines, as they come.

    A line is `TIME TEXT` and a line break, in UTF-8 as far as the container printed that; TIME is RFC 3339 with nine
    digits of a second, as the engine wrote it. One that ends with CR LF is the state of a progress bar: it passes.
    """

    def __iter__(self) -> Iterator[list[bytes]]: ...

    def close(self) -> None:
        """Ends the iteration, also one that waits; any thread may."""
        ...


@dataclass(frozen=True)
class EngineEvent:
    """Something happened to a container of ours: start, die, oom, destroy, …"""

    action: str
    container_id: str
    owner: str
    """The id of the job or the workspace whose container it is."""
    time: float


class Stream(Protocol[Item]):
    """A long answer. Iterating may raise the errors of service.backends.errors."""

    def __iter__(self) -> Iterator[Item]: ...

    def close(self) -> None:
        """Ends it, from whichever thread."""
        ...


class Engine(Protocol):
    """One host's engine. Every method may raise the errors of service.backends.errors."""

    def facts(self) -> EngineFacts: ...

    def ping(self) -> None:
        """Returns soon when the engine is well; else raises soon, whatever it is that hangs."""
        ...

    def examine(self, deployment: str) -> Examination:
        """A closer look, which may take some seconds."""
        ...

    def reaches(self, address: str, port: int) -> str | None:
        """Why a TCP packet from this host to another address gets no answer; None when it gets one.

        A refusal is an answer. Raises EngineError where that can't be tried.
        """
        ...

    def gpus(self, deployment: str, image: str | None = None) -> list[Gpu]:
        """The machine's GPUs, by a short probe container; empty when there are none or no image to probe with.

        Probes that an earlier process of the deployment left behind are removed.
        """
        ...

    def image(self, reference: str) -> ImageFacts | None:
        """An image that is present, or None."""
        ...

    def holding(self, image_id: str, paths: tuple[str, ...]) -> frozenset[str]:
        """Which of these files an image has; nothing of it is run."""
        ...

    def offered(self, reference: str) -> None:
        """Returns when the image's registry has it. Raises ImageMissing with what it, or the way to it, said."""
        ...

    def pull(self, reference: str) -> Stream[str]:
        """Begins to fetch an image; gives lines about its progress, and ends when it is there. Raises ImageMissing."""
        ...

    def copy(self, source: "Engine", reference: str, spool: Any, name: str) -> Stream[str] | None:
        """Begins to fetch an image from another host's engine; as `pull`, but None where these two can't do it.

        `spool`: keeps what is on its way; `name`: the other host's, for people.
        """
        ...

    def create(self, plan: ContainerPlan) -> Created:
        """Creates the container and puts its files in. An equal one that is there already is taken, as it is."""
        ...

    def start(self, container_id: str) -> None:
        """Starts a container that never ran. Engines start one that has ended again: see `Created.started`."""
        ...

    def resume(self, container_id: str, plan: ContainerPlan) -> None:
        """Starts a container that has run and was kept: what its mounts name is looked up anew, its files are put in.

        Raises ContainerGone. One that runs is left alone.
        """
        ...

    def remove_volume(self, name: str) -> None:
        """Removes a named volume; nothing happens when there is none."""
        ...

    def put(self, container_id: str, files: Mapping[str, bytes]) -> None:
        """Writes files into /run/navarch of a container."""
        ...

    def inspect(self, name_or_id: str) -> ContainerFacts | None: ...

    def containers(self, deployment: str) -> list[ContainerFacts]:
        """Every container of a deployment, in whatever state."""
        ...

    def strangers(self, deployment: str) -> list[str]:
        """Containers of other control planes, as "DEPLOYMENT NAME"."""
        ...

    def signal(self, container_id: str, name: str) -> None:
        """Sends a signal; nothing happens when the container doesn't run any more."""
        ...

    def remove(self, container_id: str) -> None:
        """Removes a container that has ended; nothing happens when it is gone already."""
        ...

    def hand_over(self, folder: Path, image_id: str, deployment: str) -> None:
        """Makes all that containers wrote into a run folder the property of this process's account."""
        ...

    def follow(
        self, container_id: str, since: int, *, wait: bool, ended: bool = False, tail: int | None = None
    ) -> LogStream:
        """Lines from the second `since` on, the last `tail` of them; with `wait` as they come until the container ends.

        `ended`: the container has ended, so that what it printed last without a line break is a line, too.
        Raises ContainerGone.
        """
        ...

    def events(self, deployment: str) -> Stream[EngineEvent]:
        """Events of a deployment's containers from now on; the stream stands when this returns."""
        ...

    def close(self) -> None: ...


class Engines(Protocol):
    """The engines of all hosts."""

    def engine(self, host_id: str) -> Engine: ...
