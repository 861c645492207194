"""What a user writes to ask for a job: the models behind a job's YAML document."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from jobs.documents import DocumentError, read_yaml
from jobs.mistakes import MOST, Mistake, SpecError, from_validation, shown, unknown_key
from jobs.training import check_training, own_name, training_keys
from jobs.units import format_size, parse_duration, parse_size
from jobs.values import Mount as Mount
from jobs.values import PortRequest as PortRequest
from jobs.values import (
    parse_command,
    parse_env,
    parse_image,
    parse_mount,
    parse_name,
    parse_port,
    parse_secrets,
    parse_ulimits,
    parse_workdir,
)

REDACTED = "********"
DEFAULT_GRACE_S = 120.0
SSH_PORT = 22
DEFAULT_SERVE_PORT = 8000
MIN_MEMORY = 6 << 20
MAX_GRACE_S = 7 * 86400.0
MAX_PORTS, MAX_MOUNTS, MAX_AFTER = 100, 100, 50
MAX_VARIABLES, MAX_ARGUMENTS = 500, 2000


class JobType(StrEnum):
    COMMAND = "command"
    PT = "pt"
    SFT = "sft"
    RM = "rm"
    DPO = "dpo"
    PPO = "ppo"
    GRPO = "grpo"
    SERVE = "serve"

    @property
    def trains(self) -> bool:
        """Whether navarch-train runs it (everything but `command`)."""
        return self is not JobType.COMMAND


def _parse_after(value: object) -> object:
    """One job's name, or a list of them."""
    return [value] if isinstance(value, str) else value


def _some_time(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("must be more than nothing; leave it out for no limit")
    return seconds


def _grace(value: object) -> float:
    seconds = parse_duration(value)
    if seconds > MAX_GRACE_S:
        raise ValueError(f"can be at most 7d, not {shown(value)}")
    return seconds


def _memory(value: object) -> int:
    size = parse_size(value)
    if size < MIN_MEMORY:
        raise ValueError(f"must be at least {format_size(MIN_MEMORY)}, which Docker needs, not {shown(value)}")
    return size


_Length = Annotated[str, Field(max_length=80)]
"""A size or duration in words."""
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | _Length)]
Memory = Annotated[int, BeforeValidator(_memory, json_schema_input_type=int | _Length)]
Duration = Annotated[float, BeforeValidator(_some_time, json_schema_input_type=float | _Length)]
Grace = Annotated[float, BeforeValidator(_grace, json_schema_input_type=float | _Length)]
Ulimits = Annotated[
    dict[str, int], BeforeValidator(parse_ulimits, json_schema_input_type=dict[str, int | Literal["unlimited"]])
]
_Variables = dict[str, str | float | bool] | None
Environment = Annotated[
    dict[str, str], BeforeValidator(parse_env, json_schema_input_type=_Variables), Field(max_length=MAX_VARIABLES)
]
Secrets = Annotated[
    dict[str, str], BeforeValidator(parse_secrets, json_schema_input_type=_Variables), Field(max_length=MAX_VARIABLES)
]


_Label = Annotated[StrictStr, Field(min_length=1, max_length=100)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(Section):
    nodes: Annotated[StrictInt, Field(ge=1, le=256)] = 1
    gpus: Annotated[StrictInt, Field(ge=0, le=64)] = 0
    """GPUs of each node."""
    processes: Annotated[StrictInt, Field(ge=1, le=256)] | None = None
    """Ranks of each node; None means one per GPU, or 1 without GPUs."""
    cpus: Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)] | None = None
    memory: Memory | None = None
    shm: Size | None = None
    spread: StrictBool = False
    """Whether each node is on a host of its own, instead of as few hosts as possible."""
    labels: Annotated[dict[_Label, _Label], Field(max_length=20)] = Field(default_factory=dict)
    """What the hosts must be labelled with."""
    ulimits: Ulimits = Field(default_factory=dict)

    @property
    def processes_per_node(self) -> int:
        return self.processes or self.gpus or 1


class JobSpec(Section):
    """A job as asked for. `training` holds the top-level keys that belong to training.config.stages."""

    type: JobType
    name: Annotated[str, BeforeValidator(parse_name)] = ""
    image: Annotated[str, BeforeValidator(parse_image)]
    command: (
        Annotated[
            list[str],
            BeforeValidator(parse_command, json_schema_input_type=str | list[str]),
            Field(max_length=MAX_ARGUMENTS),
        ]
        | None
    ) = None
    workdir: Annotated[str, BeforeValidator(parse_workdir)] = "/workspace"
    resources: Resources = Field(default_factory=Resources)
    ipc: Literal["private", "shareable", "host"] | None = None
    ssh: StrictBool = True
    """False runs any image, without Navarch's sshd in it; there is then no way to log in."""
    ports: Annotated[
        list[Annotated[PortRequest, BeforeValidator(parse_port, json_schema_input_type=int | str)]],
        Field(max_length=MAX_PORTS),
    ] = Field(default_factory=list)
    mounts: Annotated[
        list[Annotated[Mount, BeforeValidator(parse_mount, json_schema_input_type=str)]], Field(max_length=MAX_MOUNTS)
    ] = Field(default_factory=list)
    env: Environment = Field(default_factory=dict)
    secrets: Secrets = Field(default_factory=dict)
    preflight: StrictBool = True
    """Whether a gang of several nodes tries its hosts and the ways between them before each start."""
    retries: Annotated[StrictInt, Field(ge=0, le=100)] = 0
    after: Annotated[
        list[Annotated[StrictStr, Field(min_length=1, max_length=100)]],
        BeforeValidator(_parse_after, json_schema_input_type=str | list[str]),
        Field(max_length=MAX_AFTER),
    ] = Field(default_factory=list)
    """Jobs that must have succeeded before this one starts, by name or id."""
    max_duration: Duration | None = None
    grace: Grace = DEFAULT_GRACE_S
    """Seconds between SIGTERM and SIGKILL when the job is stopped."""
    priority: Annotated[StrictInt, Field(ge=0, le=100)] = 50
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether navarch-train runs it."""
        return self.type.trains

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
    """The mapping in a YAML (or JSON) text. Raises DocumentError."""
    document = read_yaml(text)
    if not isinstance(document, dict):
        raise DocumentError(f"a job is a mapping that starts with `type:`, not {shown(document)}")
    return document


def parse_spec(document: Mapping[str, Any], *, stored: bool = False) -> JobSpec:
    """The job in a document. Raises SpecError with the mistakes in it, each a sentence.

    A stored document was checked when it was submitted: what newer code thinks of its training sections is no matter.
    """
    kinds = ", ".join(JobType)
    given = document.get("type")
    if given is None:
        raise SpecError([Mistake("type", f"`type` is missing; it is one of {kinds}")])
    if given not in list(JobType):
        advice = "; `navarch workspace create FILE` makes one" if given == "workspace" else ""
        raise SpecError([Mistake("type", f"`type` must be one of {kinds}, not {shown(given)}{advice}")])
    kind = JobType(given)
    of_training = training_keys(kind.value) if kind.trains else frozenset[str]()
    known = {**_SECTION_KEYS, "": COMMON_KEYS | of_training}
    mistakes: list[Mistake] = []
    common: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for key, value in document.items():
        if key in COMMON_KEYS:
            common[key] = value
        elif key in of_training or (stored and kind.trains):
            training[key] = value
        elif len(mistakes) < MOST:
            hint = own_name(str(key), kind.value) if kind.trains else ""
            mistakes.append(unknown_key(str(key), str(key), known[""], f"a job of type {kind}", hint))
    spec = None
    try:
        spec = JobSpec.model_validate({**common, "name": common.get("name") or kind.value, "training": training})
    except ValidationError as error:
        mistakes.extend(from_validation(error, known, f"a job of type {kind}"))
    if kind is JobType.COMMAND and common.get("command") is None:
        mistakes.append(Mistake("command", "`command` is missing; a job of type command says what to run"))
    if kind.trains and common.get("command") is not None:
        mistakes.append(Mistake("command", f"a job of type {kind} has no `command`; for your own, use `type: command`"))
    if kind.trains and not stored:
        size = spec.world_size if spec is not None else 1
        gpus = spec.resources.gpus if spec is not None else 0
        mistakes.extend(check_training(kind.value, training, world_size=size, gpus=gpus))
    if spec is not None:
        mistakes.extend(_contradictions(spec))
    if mistakes or spec is None:
        raise SpecError(mistakes[:MOST])
    return spec


def _contradictions(spec: JobSpec) -> list[Mistake]:
    mistakes = contradictions(spec.ports, spec.mounts, spec.env, spec.secrets)
    if spec.resources.nodes > 1 and any(p.host != p.container for p in spec.ports):
        mistakes.append(
            Mistake("ports", "with several nodes containers share their host's network: write ports as one number")
        )
    if spec.resources.nodes > 1 and not spec.ssh:
        mistakes.append(Mistake("ssh", "`ssh: false` works on one node only: a gang waits for its containers by SSH"))
    return mistakes


def contradictions(
    ports: Sequence[PortRequest], mounts: Sequence[Mount], env: Mapping[str, str], secrets: Mapping[str, str]
) -> list[Mistake]:
    """What can't be meant together, whatever the container is for."""
    mistakes = []
    inside = [p.container for p in ports]
    for port in sorted({p for p in inside if inside.count(p) > 1}):
        mistakes.append(Mistake("ports", f"`ports` publishes container port {port} twice"))
    outside = [p.host for p in ports if p.host is not None]
    for port in sorted({p for p in outside if outside.count(p) > 1}):
        mistakes.append(Mistake("ports", f"`ports` asks for host port {port} twice"))
    targets = [m.target for m in mounts]
    for target in sorted({t for t in targets if targets.count(t) > 1}):
        mistakes.append(Mistake("mounts", f"`mounts` mounts something at {target} twice"))
    for name in sorted(set(env) & set(secrets)):
        mistakes.append(Mistake("secrets", f"`{name}` is both in `env` and in `secrets`; keep one"))
    return mistakes


def redacted(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as it may be stored and shown: values of `secrets` hidden."""
    result = dict(document)
    secrets = result.get("secrets")
    if isinstance(secrets, Mapping):
        result["secrets"] = {str(name): REDACTED for name in secrets}
    return result
