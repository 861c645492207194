"""What a user writes to ask for a workspace: a long-lived container for a person, with an address that stays."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from jobs.mistakes import MOST, Mistake, SpecError, from_validation, shown, unknown_key
from jobs.spec import (
    MAX_MOUNTS,
    MAX_PORTS,
    SSH_PORT,
    Duration,
    Environment,
    Memory,
    Mount,
    PortRequest,
    Secrets,
    Section,
    Size,
    Ulimits,
    contradictions,
)
from jobs.values import parse_image, parse_mount, parse_name, parse_port, parse_workdir, plain_path

DEFAULT_IMAGE = "workspace"
HOME = "/root"
MAX_GPUS = 64
_DEVICES = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62}):([0-9]{1,2}(?:,[0-9]{1,2})*)")
_OVER_HOME = frozenset({HOME, "/root/.ssh"})


@dataclass(frozen=True)
class Devices:
    """Certain GPUs of a certain host, by their index."""

    host: str
    indexes: tuple[int, ...]


def _parse_gpus(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be a number, all or HOST:0,1 (these GPUs of that host), not {shown(value)}")
    text = str(value).strip()
    if text.isascii() and text.isdigit() and int(text[:6]) <= MAX_GPUS:
        return int(text)
    if text == "all":
        return text
    devices = parse_devices(text)
    if devices is None or len(set(devices.indexes)) < len(devices.indexes):
        raise ValueError(
            f"must be a number up to {MAX_GPUS}, all or HOST:0,1 (these GPUs of that host), not {shown(value)}"
        )
    return text


def parse_devices(text: str) -> Devices | None:
    """ "h1:0,1" → GPUs 0 and 1 of host h1."""
    match = _DEVICES.fullmatch(text)
    return Devices(match.group(1), tuple(map(int, match.group(2).split(",")))) if match else None


def _parse_home(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"must be a folder of the host, not {shown(value)}")
    return plain_path(value, "host ")


class Resources(Section):
    """What a workspace gets while it runs."""

    gpus: Annotated[int | str, BeforeValidator(_parse_gpus, json_schema_input_type=int | str)] = 0
    """How many; "all" of one host; or "HOST:0,1"."""
    cpus: Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)] | None = None
    memory: Memory | None = None
    shm: Size | None = None
    ulimits: Ulimits = Field(default_factory=dict)


class WorkspaceSpec(Section):
    """A workspace as asked for."""

    type: Literal["workspace"] = "workspace"
    name: Annotated[str, BeforeValidator(parse_name)]
    image: Annotated[str, BeforeValidator(parse_image)] = DEFAULT_IMAGE
    host: Annotated[str, Field(max_length=100)] | None = None
    """Where it is to be; None: where there is room."""
    workdir: Annotated[str, BeforeValidator(parse_workdir)] = "/workspace"
    resources: Resources = Field(default_factory=Resources)
    ipc: Literal["private", "shareable", "host"] | None = None
    ports: Annotated[
        list[Annotated[PortRequest, BeforeValidator(parse_port, json_schema_input_type=int | str)]],
        Field(max_length=MAX_PORTS),
    ] = Field(default_factory=list)
    mounts: Annotated[
        list[Annotated[Mount, BeforeValidator(parse_mount, json_schema_input_type=str)]], Field(max_length=MAX_MOUNTS)
    ] = Field(default_factory=list)
    home: Annotated[str, BeforeValidator(_parse_home)] | None = None
    """A folder of the host for /root; None: a volume of its own."""
    env: Environment = Field(default_factory=dict)
    secrets: Secrets = Field(default_factory=dict)
    max: Duration | None = None
    """It is stopped when it has run for so long."""

    @property
    def fixed_ports(self) -> tuple[int, ...]:
        """Host ports that the user named."""
        return tuple(p.host for p in self.ports if p.host is not None)

    def published(self) -> list[PortRequest]:
        """sshd's port, from the pool unless the user placed it; and the asked ones."""
        own = [] if any(p.container == SSH_PORT for p in self.ports) else [PortRequest(container=SSH_PORT, host=None)]
        return [*own, *self.ports]

    @property
    def pool_ports(self) -> int:
        """How many ports it needs from its host's pool."""
        return sum(1 for request in self.published() if request.host is None)

    def mounts_with_home(self) -> tuple[Mount, ...]:
        """All folders of the host that it sees."""
        return (*self.mounts, *([Mount(source=self.home, target=HOME)] if self.home is not None else []))

    @property
    def devices(self) -> Devices | None:
        """The very GPUs that it asks for, if it does."""
        return parse_devices(self.resources.gpus) if isinstance(self.resources.gpus, str) else None

    # What it has in common with a job, for whoever asks whether an image fits.

    @property
    def ssh(self) -> bool:
        return True

    @property
    def trains(self) -> bool:
        return False

    @property
    def command(self) -> None:
        return None


KEYS = frozenset(WorkspaceSpec.model_fields)
_SECTION_KEYS = {"": KEYS, "resources": frozenset(Resources.model_fields)}
_OWNER = "a workspace"


def parse_workspace(document: Mapping[str, Any]) -> WorkspaceSpec:
    """The workspace in a document. Raises SpecError with the mistakes in it, each a sentence."""
    mistakes: list[Mistake] = []
    if document.get("type", "workspace") != "workspace":
        mistakes.append(Mistake("type", f"`type` must be workspace, not {shown(document['type'])}"))
    known: dict[str, Any] = {}
    for key, value in document.items():
        if key in KEYS:
            known[key] = value
        elif len(mistakes) < MOST:
            mistakes.append(unknown_key(str(key), str(key), KEYS, _OWNER, _hint(str(key))))
    known.pop("type", None)
    if not known.get("name"):
        known.pop("name", None)
    spec = None
    try:
        spec = WorkspaceSpec.model_validate(known)
    except ValidationError as error:
        mistakes.extend(from_validation(error, _SECTION_KEYS, _OWNER))
    if spec is not None:
        mistakes.extend(contradictions(spec.ports, spec.mounts, spec.env, spec.secrets))
        if spec.devices and spec.host not in (None, spec.devices.host):
            mistakes.append(Mistake("host", f"`host` is {spec.host}, but `resources.gpus` names those of another"))
        for mount in spec.mounts:
            if mount.target in _OVER_HOME:
                mistakes.append(Mistake("mounts", f"{mount.target} is the home; name a folder for it with `home`"))
    if mistakes or spec is None:
        raise SpecError(mistakes[:MOST])
    return spec


def _hint(key: str) -> str:
    if key in ("gpus", "cpus", "memory", "shm", "ulimits"):
        return f"write it under `resources`, as resources.{key}"
    if key == "command":
        return "a workspace runs no command of its own; for a job, write type: command"
    return ""
