"""What a user writes to ask for a job: the models behind a job's YAML document."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from jobs.problems import Problem, SpecError, from_validation, shown, unknown_key
from jobs.training import check_training, training_keys
from jobs.units import parse_duration, parse_size

REDACTED = "********"
DEFAULT_GRACE_S = 120.0
SSH_PORT = 22
DEFAULT_SERVE_PORT = 8000
_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
_ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_NOT_OVER = frozenset({"/", "/run", "/run/navarch", "/workspace/run"})
"""Places in the container that hold what Navarch puts there."""


class JobType(StrEnum):
    COMMAND = "command"
    PT = "pt"
    SFT = "sft"
    RM = "rm"
    DPO = "dpo"
    PPO = "ppo"
    SERVE = "serve"

    @property
    def trains(self) -> bool:
        """Whether navarch-train runs it (everything but `command`)."""
        return self is not JobType.COMMAND


def _port_number(text: str, value: object) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError(f"must be a port from 1 to 65535, HOST:CONTAINER or auto:CONTAINER, not {value!r}")
    return int(text)


class PortRequest(BaseModel):
    """One published port; `host` None means that the host's pool gives one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    container: int
    host: int | None


def _parse_port(value: object) -> object:
    """7000 publishes 7000 as itself, "8095:22" 22 as 8095, "auto:22" 22 as a free one of the host's pool."""
    if isinstance(value, PortRequest):
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be a port such as 7000, '8095:22' or 'auto:8000', not {shown(value)}")
    host, _, container = str(value).strip().rpartition(":")
    inner = _port_number(container, value)
    if host == "auto":
        return PortRequest(container=inner, host=None)
    return PortRequest(container=inner, host=_port_number(host, value) if host else inner)


class Mount(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    target: str
    read_only: bool = False


def _parse_mount(value: object) -> object:
    """ "HOST:CONTAINER" or "HOST:CONTAINER:ro"; both absolute."""
    if isinstance(value, Mount):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be HOST_PATH:CONTAINER_PATH, or that with :ro, not {shown(value)}")
    parts = value.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise ValueError(f"must be HOST_PATH:CONTAINER_PATH, or that with :ro, not {value!r}")
    for side, path in zip(("host", "container"), parts[:2], strict=True):
        if not path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise ValueError(f"has a {side} path that isn't absolute: {path!r}")
    source, target = _plain_path(parts[0]), _plain_path(parts[1])
    meant = f"/{target.removeprefix('/var/')}" if target == "/var/run" or target.startswith("/var/run/") else target
    if meant in _NOT_OVER or meant.startswith("/run/navarch/"):
        raise ValueError(f"can't be mounted over {target} in the container")
    return Mount(source=source, target=target, read_only=parts[2:] == ["ro"])


def _plain_path(path: str) -> str:
    """One spelling of an absolute path: no double slashes, dots or slash at its end."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _parse_env(value: object) -> object:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping of names to values, not {shown(value)}")
    result = {}
    for name, item in value.items():
        if not _ENV_NAME.match(str(name)):
            raise ValueError(f"has the name {name!r}; a variable's name holds letters, digits and _ only")
        if not isinstance(item, str | int | float):
            raise ValueError(f"has the name {name!r} with {shown(item)} as its value; write it as text")
        text = str(item).lower() if isinstance(item, bool) else str(item)
        if "\n" in text or "\0" in text:
            raise ValueError(f"has a line break in the value of {name!r}, which a variable can't carry")
        result[str(name)] = text
    return result


def _parse_ulimits(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping such as {{memlock: unlimited}}, not {shown(value)}")
    result = {}
    for name, limit in value.items():
        if limit == "unlimited":
            limit = -1
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < -1:
            raise ValueError(f"has {name!r} as {shown(limit)}; write a whole number or unlimited")
        result[str(name)] = limit
    return result


def _parse_command(value: object) -> object:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty; write the command that the container runs")
        return ["bash", "-c", value]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return value
    if isinstance(value, list) and value:
        wrong = next(part for part in value if not isinstance(part, str))
        raise ValueError(f"must be a list of texts; put quotes around {wrong!r}")
    raise ValueError(f"must be text or a list of texts, not {shown(value)}")


def _parse_after(value: object) -> object:
    """One job's name, or a list of them."""
    return [value] if isinstance(value, str) else value


def _parse_name(value: object) -> object:
    if not isinstance(value, str) or not _NAME.match(value):
        raise ValueError(f"must be 1 to 40 of a-z, 0-9 and - (not first or last), not {value!r}")
    return value


Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | str)]
Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=float | str)]
Environment = Annotated[
    dict[str, str], BeforeValidator(_parse_env, json_schema_input_type=dict[str, str | float | bool] | None)
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(Section):
    nodes: Annotated[StrictInt, Field(ge=1, le=256)] = 1
    gpus: Annotated[StrictInt, Field(ge=0, le=64)] = 0
    """GPUs of each node."""
    processes: Annotated[StrictInt, Field(ge=1, le=256)] | None = None
    """Ranks of each node; None means one per GPU, or 1 without GPUs."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    memory: Size | None = None
    shm: Size | None = None
    ulimits: Annotated[
        dict[str, int],
        BeforeValidator(_parse_ulimits, json_schema_input_type=dict[str, int | Literal["unlimited"]]),
    ] = Field(default_factory=dict)

    @property
    def processes_per_node(self) -> int:
        return self.processes or self.gpus or 1


class JobSpec(Section):
    """A job as asked for. `training` holds the top-level keys that belong to training.config.stages."""

    type: JobType
    name: Annotated[str, BeforeValidator(_parse_name)] = ""
    image: Annotated[StrictStr, Field(min_length=1)]
    command: Annotated[list[str], BeforeValidator(_parse_command, json_schema_input_type=str | list[str])] | None = None
    workdir: StrictStr = "/workspace"
    resources: Resources = Field(default_factory=Resources)
    ipc: Literal["private", "shareable", "host"] | None = None
    ssh: StrictBool = True
    """False runs any image, without Navarch's sshd in it; there is then no way to log in."""
    ports: list[Annotated[PortRequest, BeforeValidator(_parse_port, json_schema_input_type=int | str)]] = Field(
        default_factory=list
    )
    mounts: list[Annotated[Mount, BeforeValidator(_parse_mount, json_schema_input_type=str)]] = Field(
        default_factory=list
    )
    env: Environment = Field(default_factory=dict)
    secrets: Environment = Field(default_factory=dict)
    retries: Annotated[StrictInt, Field(ge=0, le=100)] = 0
    after: Annotated[list[StrictStr], BeforeValidator(_parse_after, json_schema_input_type=str | list[str])] = Field(
        default_factory=list
    )
    """Jobs that must have succeeded before this one starts, by name or id."""
    max_duration: Duration | None = None
    grace: Duration = DEFAULT_GRACE_S
    """Seconds between SIGTERM and SIGKILL when the job is stopped."""
    priority: Annotated[StrictInt, Field(ge=0, le=100)] = 50
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def world_size(self) -> int:
        return self.resources.nodes * self.resources.processes_per_node

    @property
    def host_network(self) -> bool:
        """Gangs of several containers share their hosts' network: NCCL needs it."""
        return self.resources.nodes > 1

    @property
    def fixed_ports(self) -> tuple[int, ...]:
        """Host ports that the user named."""
        return tuple(p.host for p in self.ports if p.host is not None)

    def published(self) -> list[PortRequest]:
        """The asked ports; and from the pool sshd's and the model server's, unless the user placed them."""
        asked = {p.container for p in self.ports}
        own = [SSH_PORT] if self.ssh else []
        if self.serve_port is not None:
            own.append(self.serve_port)
        return [*(PortRequest(container=port, host=None) for port in own if port not in asked), *self.ports]

    @property
    def serve_port(self) -> int | None:
        """The container port that a model server listens on."""
        if self.type is not JobType.SERVE:
            return None
        port = self.training.get("port")
        return port if isinstance(port, int) and port else DEFAULT_SERVE_PORT


COMMON_KEYS = frozenset(JobSpec.model_fields) - {"training"}
_SECTION_KEYS = {"": COMMON_KEYS, "resources": frozenset(Resources.model_fields)}


def load_document(text: str) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) text. Raises SpecError with the line of a syntax error."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError([Problem("", f"the job isn't valid YAML{where}: {getattr(error, 'problem', error)}")]) from None
    if not isinstance(document, dict):
        raise SpecError([Problem("", f"a job is a mapping that starts with `type:`, not {shown(document)}")])
    return document


def parse_spec(document: Mapping[str, Any], *, stored: bool = False) -> JobSpec:
    """The job in a document. Raises SpecError with every problem found, each a sentence.

    A stored document was checked when it was submitted: what newer code thinks of its training sections is no matter.
    """
    kinds = ", ".join(JobType)
    given = document.get("type")
    if given is None:
        raise SpecError([Problem("type", f"`type` is missing; it is one of {kinds}")])
    if given not in list(JobType):
        raise SpecError([Problem("type", f"`type` must be one of {kinds}, not {shown(given)}")])
    kind = JobType(given)
    of_training = training_keys(kind.value) if kind.trains else frozenset[str]()
    known = {**_SECTION_KEYS, "": COMMON_KEYS | of_training}
    problems: list[Problem] = []
    common: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for key, value in document.items():
        if key in COMMON_KEYS:
            common[key] = value
        elif key in of_training or (stored and kind.trains):
            training[key] = value
        else:
            problems.append(unknown_key(str(key), str(key), known[""], f"a job of type {kind}"))
    spec = None
    try:
        spec = JobSpec.model_validate({**common, "name": common.get("name") or kind.value, "training": training})
    except ValidationError as error:
        problems.extend(from_validation(error, known, f"a job of type {kind}"))
    if kind is JobType.COMMAND and common.get("command") is None:
        problems.append(Problem("command", "`command` is missing; a job of type command says what to run"))
    if kind.trains and common.get("command") is not None:
        problems.append(Problem("command", f"a job of type {kind} has no `command`; for your own, use `type: command`"))
    if kind.trains and not stored:
        size = spec.world_size if spec is not None else 1
        gpus = spec.resources.gpus if spec is not None else 0
        problems.extend(check_training(kind.value, training, world_size=size, gpus=gpus))
    if spec is not None:
        problems.extend(_contradictions(spec))
    if problems or spec is None:
        raise SpecError(problems)
    return spec


def _contradictions(spec: JobSpec) -> list[Problem]:
    problems = []
    inside = [p.container for p in spec.ports]
    for port in sorted({p for p in inside if inside.count(p) > 1}):
        problems.append(Problem("ports", f"`ports` publishes container port {port} twice"))
    outside = spec.fixed_ports
    for port in sorted({p for p in outside if outside.count(p) > 1}):
        problems.append(Problem("ports", f"`ports` asks for host port {port} twice"))
    targets = [m.target for m in spec.mounts]
    for target in sorted({t for t in targets if targets.count(t) > 1}):
        problems.append(Problem("mounts", f"`mounts` mounts something at {target} twice"))
    for name in sorted(set(spec.env) & set(spec.secrets)):
        problems.append(Problem("secrets", f"`{name}` is both in `env` and in `secrets`; keep one"))
    if spec.resources.nodes > 1 and any(p.host != p.container for p in spec.ports):
        problems.append(
            Problem("ports", "with several nodes containers share their host's network: write ports as one number")
        )
    if spec.resources.nodes > 1 and not spec.ssh:
        problems.append(Problem("ssh", "`ssh: false` works on one node only: a gang waits for its containers by SSH"))
    return problems


def redacted(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as it may be stored and shown: values of `secrets` hidden."""
    result = dict(document)
    secrets = result.get("secrets")
    if isinstance(secrets, Mapping):
        result["secrets"] = {str(name): REDACTED for name in secrets}
    return result
