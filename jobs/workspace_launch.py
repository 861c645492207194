"""From a workspace and what it was given to the exact container, and from what hosts have free to a place for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.launch import LABEL_DEPLOYMENT, LABEL_WORKSPACE, ContainerPlan, shared_memory_of
from jobs.placement import NEVER, Demand, HostCapacity, Placed, Placement, Waits, place
from jobs.workspace import HOME, WorkspaceSpec

LABEL_MADE = "navarch.made"
"""How often a container was made for the workspace, this one counted."""


@dataclass(frozen=True)
class WorkspaceLaunch:
    """What a workspace was given, beyond what its spec says."""

    deployment: str
    id: str
    host_id: str
    container: str
    made: int
    ports: Mapping[int, int]
    gpus: tuple[str, ...]
    home_volume: str
    pins: str
    """A folder of the control plane's own for names that its mounts keep for life."""
    authorized_keys: str
    host_key: str = field(repr=False)
    host_key_public: str
    secrets: Mapping[str, str] = field(repr=False)


def workspace_container(deployment: str, name: str, made: int, namespace: str = "") -> str:
    """`namespace`: whose workspace it is, where others may have one of the same name."""
    whose = f".{namespace}" if namespace else ""
    return f"navarch-{deployment[:8]}-{name}{whose}-w{made}"


def home_volume(deployment: str, name: str, owner_digest: str) -> str:
    """The volume of the home that this person's workspaces of this name have, one after the other."""
    return f"navarch-{deployment[:8]}-home-{name}-{owner_digest[:8]}"


def plan_workspace(spec: WorkspaceSpec, launch: WorkspaceLaunch) -> ContainerPlan:
    """Its container; the same plan whenever it is asked for, but for keys and secrets."""
    resources = spec.resources
    files = {
        "authorized_keys": launch.authorized_keys.encode(),
        "ssh_host_ed25519_key": launch.host_key.encode(),
        "ssh_host_ed25519_key.pub": launch.host_key_public.encode(),
    }
    if launch.secrets:
        files["env"] = "".join(f"{name}={value}\n" for name, value in launch.secrets.items()).encode()
    return ContainerPlan(
        name=launch.container,
        host_id=launch.host_id,
        image=spec.image,
        command=(),
        workdir=spec.workdir,
        environment={"NAVARCH_WORKSPACE": spec.name, **spec.env},
        labels={
            LABEL_DEPLOYMENT: launch.deployment,
            LABEL_WORKSPACE: launch.id,
            LABEL_MADE: str(launch.made),
        },
        ports=launch.ports,
        mounts=spec.mounts_with_home(),
        gpus=launch.gpus,
        host_network=False,
        ipc=spec.ipc,
        shm_size=shared_memory_of(spec.ipc, resources.shm, len(launch.gpus), resources.memory),
        cpus=resources.cpus,
        memory=resources.memory,
        ulimits=dict(resources.ulimits),
        files=files,
        hostname=spec.name,
        volumes={} if spec.home is not None else {HOME: launch.home_volume},
        pins=launch.pins,
    )


def ports_of(spec: WorkspaceSpec, pool: Sequence[int]) -> dict[int, int]:
    """Container port → host port."""
    given = iter(pool)
    return {request.container: request.host or next(given) for request in spec.published()}


def find_place(spec: WorkspaceSpec, hosts: Sequence[HostCapacity], seed: int = 0) -> Placed | Waits:
    """Where a new workspace goes and what it gets, or why there is no room for it now."""
    wanted = spec.host or (spec.devices.host if spec.devices else None)
    named = [host for host in hosts if wanted in (None, host.id, host.name)]
    if not named:
        return Waits(f"there is no host {wanted}; there are {', '.join(host.name for host in hosts) or 'none'}")
    if spec.resources.gpus == "all":
        with_gpus = sorted((host for host in named if host.gpus), key=lambda host: (-len(host.free_gpus), host.name))
        if not with_gpus:
            return Waits(f"needs GPUs, but {'; '.join(f'{host.name} has none' for host in named)}")
        tried = [_place(spec, [host], len(host.gpus), seed) for host in with_gpus]
        return next((found for found in tried if isinstance(found, Placed)), tried[0])
    if spec.devices is not None:
        host = named[0]
        return _place(spec, [_only(host, spec.devices.indexes)], len(spec.devices.indexes), seed)
    return _place(spec, named, int(spec.resources.gpus), seed)


def find_room(spec: WorkspaceSpec, host: HostCapacity, gpus: Sequence[str] | None) -> Placed | Waits:
    """What a workspace that has its address gets when it starts: these GPUs, or any (None) that its spec allows."""
    if gpus is not None:
        return _place(spec, [replace(host, gpus=tuple(gpus))], len(gpus), 0, has_address=True)
    if spec.resources.gpus == "all":
        return _place(spec, [host], len(host.gpus), 0, has_address=True)
    if spec.devices is not None:
        only = _only(host, spec.devices.indexes)
        return _place(spec, [only], len(spec.devices.indexes), 0, has_address=True)
    return _place(spec, [host], int(spec.resources.gpus), 0, has_address=True)


def _place(
    spec: WorkspaceSpec, hosts: Sequence[HostCapacity], gpus: int, seed: int, *, has_address: bool = False
) -> Placed | Waits:
    demand = Demand(
        gpus=gpus,
        fixed_ports=() if has_address else spec.fixed_ports,
        pool_ports=0 if has_address else spec.pool_ports,
        cpus=spec.resources.cpus,
        memory=spec.resources.memory,
        lasts=spec.max or NEVER,
    )
    found = place(demand, hosts, seed)
    return found.replicas[0] if isinstance(found, Placement) else found


def _only(host: HostCapacity, indexes: Sequence[int]) -> HostCapacity:
    """The host as if it had these GPUs only."""
    return replace(host, gpus=tuple(host.gpus[index] for index in indexes if index < len(host.gpus)))
