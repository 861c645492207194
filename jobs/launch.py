"""From a spec and its placement to the exact containers: image, command, environment, ports, mounts, devices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from jobs.gang import GangKeys, Member, gang_files, hostfile
from jobs.placement import Placed, Placement
from jobs.spec import SSH_PORT, JobSpec, JobType, Mount

CONTAINER_DIR = "/run/navarch"
TRAINING_BIN = "/opt/navarch/bin"
"""By full path: an image's own torchrun may be an old one."""
RUN_TARGET = "/workspace/run"
GO_FILE = f"{CONTAINER_DIR}/go"
SINGLE_NODE_MASTER_PORT = 29500
DEFAULT_SHM = 4 << 30
LABEL_DEPLOYMENT = "navarch.deployment"
LABEL_JOB = "navarch.job"
LABEL_ATTEMPT = "navarch.attempt"
LABEL_REPLICA = "navarch.replica"
LABEL_WORKSPACE = "navarch.workspace"
"""Instead of the three above, on the container of a workspace: its id."""


class Asked(Protocol):
    """What a job and a workspace have in common, as far as an image has to fit it."""

    @property
    def type(self) -> str: ...
    @property
    def image(self) -> str: ...
    @property
    def ssh(self) -> bool: ...
    @property
    def trains(self) -> bool: ...
    @property
    def command(self) -> list[str] | None: ...
    @property
    def secrets(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class ContainerPlan:
    """Everything that the engine is told about one container."""

    name: str
    host_id: str
    image: str
    command: tuple[str, ...]
    workdir: str
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    ports: Mapping[int, int]
    """Container port → host port; with host networking both are the same and nothing is published."""
    mounts: tuple[Mount, ...]
    gpus: tuple[str, ...]
    host_network: bool
    ipc: str | None
    shm_size: int | None
    cpus: float | None
    memory: int | None
    ulimits: Mapping[str, int]
    files: Mapping[str, bytes] = field(repr=False)
    """Name within /run/navarch → content."""
    entrypoint: tuple[str, ...] = ()
    """What starts the command; known once the image is, whose own ENTRYPOINT it replaces."""
    init: bool = False
    """Docker's init as the first process, for images that don't bring one."""
    hostname: str = ""
    """Empty: from the container's name."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """Place in the container → the name of a volume that outlives it."""
    pins: str = ""
    """A folder of the control plane's own. What is mounted of the host gets a name there, by which the engine finds it
    whenever the container is started. Empty: the container is started once."""


@dataclass(frozen=True)
class Address:
    """How one replica's host is reached by the others."""

    host_id: str
    host_name: str
    address: str
    interface: str = ""
    """Which of its network interfaces has it; empty: it is looked for."""
    run_dir: str = ""
    """The job's run folder on this host, where it is another one than `Launch.run_dir`."""


@dataclass(frozen=True)
class Launch:
    """What the containers of one attempt have in common."""

    deployment: str
    job_id: str
    job_name: str
    attempt: int
    run_dir: str
    """The job's run folder on the control plane's machine."""
    authorized_keys: str
    host_key: str
    host_key_public: str
    secrets: Mapping[str, str] = field(repr=False)
    extra_mounts: tuple[Mount, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    """The training sections with every path as the container sees it."""
    namespace: str = ""
    """Tells jobs of one name apart in the containers' names."""
    gang_keys: GangKeys | None = None
    """With which the containers of a gang log in to each other."""


def owner_of(labels: Mapping[str, str]) -> str:
    """The id of the job or the workspace whose container has these labels; empty for one of neither."""
    return labels.get(LABEL_JOB) or labels.get(LABEL_WORKSPACE) or ""


def container_name(deployment: str, job_name: str, attempt: int, rank: int, namespace: str = "") -> str:
    """`namespace`: whose job it is, where others may have one of the same name."""
    whose = f".{namespace}" if namespace else ""
    return f"navarch-{deployment[:8]}-{job_name}{whose}-{attempt}-{rank}"


def job_command(spec: JobSpec, world_size: int, node_rank: int, master: str, master_port: int) -> tuple[str, ...]:
    """What the container runs: the user's own words, navarch-train, or torchrun with navarch-train in it."""
    if spec.type is JobType.COMMAND:
        return tuple(spec.command or ())
    train = (f"{TRAINING_BIN}/navarch-train", spec.type.value, "--config", f"{CONTAINER_DIR}/run.yaml")
    if world_size == 1 or spec.type is JobType.SERVE:
        return train
    return (
        f"{TRAINING_BIN}/torchrun",
        f"--nnodes={spec.resources.nodes}",
        f"--node-rank={node_rank}",
        "--rdzv-backend=static",
        "--max-restarts=0",
        f"--nproc-per-node={spec.resources.processes_per_node}",
        f"--master-addr={master}",
        f"--master-port={master_port}",
        "--no-python",
        *train,
    )


def port_map(spec: JobSpec, placed: Placed) -> dict[int, int]:
    """Container port → host port of one replica. Ports that the user asked for are rank 0's; sshd's is everyone's."""
    pool = iter(placed.pool_ports)
    ports: dict[int, int] = {}
    for request in spec.published():
        outside = next(pool) if request.host is None else request.host
        is_ssh = request.container == SSH_PORT
        if placed.node_rank > 0 and request.host is not None:
            continue
        inside = outside if spec.host_network and not is_ssh else request.container
        ports[inside] = outside
    return ports


def pool_ports(spec: JobSpec) -> int:
    """How many ports each replica needs from its host's pool."""
    return sum(1 for request in spec.published() if request.host is None)


def plan_containers(
    spec: JobSpec, placement: Placement, addresses: Sequence[Address], launch: Launch
) -> tuple[ContainerPlan, ...]:
    """One ContainerPlan for each replica; `addresses` in the order of the ranks."""
    master = addresses[0].address if spec.host_network else "127.0.0.1"
    master_port = placement.master_port or SINGLE_NODE_MASTER_PORT
    members = gang_of(spec, placement, addresses)
    return tuple(
        _container(spec, placed, at.run_dir or launch.run_dir, launch, master, master_port, members)
        for placed, at in zip(placement.replicas, addresses, strict=True)
    )


def gang_of(spec: JobSpec, placement: Placement, addresses: Sequence[Address]) -> tuple[Member, ...]:
    """The members of a gang of several containers, in the order of their ranks; none where there is one."""
    if not spec.host_network:
        return ()
    return tuple(
        Member(placed.node_rank, at.host_name, at.address, port_map(spec, placed)[SSH_PORT], placed.gpus, at.interface)
        for placed, at in zip(placement.replicas, addresses, strict=True)
    )


def _container(
    spec: JobSpec,
    placed: Placed,
    run_dir: str,
    launch: Launch,
    master: str,
    master_port: int,
    members: Sequence[Member],
) -> ContainerPlan:
    ports = port_map(spec, placed)
    resources = spec.resources
    environment = {
        "MASTER_ADDR": master,
        "MASTER_PORT": str(master_port),
        "WORLD_SIZE": str(spec.world_size),
        "NNODES": str(resources.nodes),
        "NODE_RANK": str(placed.node_rank),
        "NPROC_PER_NODE": str(resources.processes_per_node),
        "NAVARCH_JOB": launch.job_name,
        "NAVARCH_ATTEMPT": str(launch.attempt),
        "NAVARCH_RUN_DIR": RUN_TARGET,
        "NAVARCH_HOSTFILE": f"{CONTAINER_DIR}/hostfile",
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait bring a busy machine to a standstill
        # torchrun kills its ranks 30 s after SIGTERM unless it is told otherwise.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(spec.grace)),
    }
    if spec.host_network:
        environment["NAVARCH_SSH_PORT"] = str(ports[SSH_PORT])
        environment["NAVARCH_BARRIER"] = "1"
        environment["NAVARCH_HOST"] = members[placed.node_rank].host
    if launch.attempt > 1 and spec.type is not JobType.COMMAND:
        environment["NAVARCH_RESUME"] = "auto"
    environment.update(spec.env)
    return ContainerPlan(
        name=container_name(launch.deployment, launch.job_name, launch.attempt, placed.node_rank, launch.namespace),
        host_id=placed.host_id,
        image=spec.image,
        command=job_command(spec, spec.world_size, placed.node_rank, master, master_port),
        workdir=spec.workdir,
        environment=environment,
        labels={
            LABEL_DEPLOYMENT: launch.deployment,
            LABEL_JOB: launch.job_id,
            LABEL_ATTEMPT: str(launch.attempt),
            LABEL_REPLICA: str(placed.node_rank),
        },
        ports=ports,
        mounts=(*spec.mounts, *launch.extra_mounts, Mount(source=run_dir, target=RUN_TARGET)),
        gpus=placed.gpus,
        host_network=spec.host_network,
        ipc=spec.ipc,
        shm_size=shared_memory(spec),
        cpus=resources.cpus,
        memory=resources.memory,
        ulimits=dict(resources.ulimits),
        files=_files(spec, launch, placed.node_rank, members, master_port),
    )


def shared_memory(spec: JobSpec) -> int | None:
    """Bytes of /dev/shm: 4 GB for each GPU unless the spec says otherwise; None where it is the host's own.

    Data loaders and NCCL need more than Docker's 64 MB. It is a limit: only what is written there takes memory, and
    that counts as the container's.
    """
    resources = spec.resources
    return shared_memory_of(spec.ipc, resources.shm, resources.gpus, resources.memory)


def shared_memory_of(ipc: str | None, shm: int | None, gpus: int, memory: int | None) -> int | None:
    """The same for what a container asks for and gets."""
    if ipc == "host":
        return None
    default = DEFAULT_SHM * max(1, gpus)
    return shm or (default if memory is None else min(default, memory))


def _files(spec: JobSpec, launch: Launch, rank: int, members: Sequence[Member], master_port: int) -> dict[str, bytes]:
    slots = spec.resources.processes_per_node
    files = {"hostfile": hostfile(members, slots) if members else f"localhost slots={slots}\n".encode()}
    if members:
        keys = launch.gang_keys or GangKeys("", "")
        wanted = {"preflight": spec.preflight, "torch": spec.trains or spec.resources.gpus > 0}
        files.update(gang_files(members, rank, master_port, keys, launch.host_key_public, **wanted))
    if spec.ssh:
        files["authorized_keys"] = launch.authorized_keys.encode()
        files["ssh_host_ed25519_key"] = launch.host_key.encode()
        files["ssh_host_ed25519_key.pub"] = launch.host_key_public.encode()
    if launch.secrets:
        files["env"] = "".join(f"{name}={value}\n" for name, value in launch.secrets.items()).encode()
    if spec.type.trains:
        files["run.yaml"] = yaml.safe_dump(dict(launch.training), sort_keys=False, allow_unicode=True).encode()
    return files
