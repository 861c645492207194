"""One Docker Engine behind the Engine interface, through the Docker SDK's low-level client."""

import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.types import DeviceRequest, Healthcheck, Ulimit

from jobs.launch import CONTAINER_DIR, LABEL_DEPLOYMENT, ContainerPlan
from service.backends.docker import local_machine
from service.backends.docker.gpus import REPORT, ask, probe
from service.backends.docker.handover import hand_over
from service.backends.docker.image_copy import ImageCopy
from service.backends.docker.image_files import files_in
from service.backends.docker.infiniband import DEVICES, has_infiniband
from service.backends.docker.log_stream import DockerLog
from service.backends.docker.mounting import Mounting, Prepared, put_links
from service.backends.docker.refusals import engine_errors
from service.backends.docker.remote_machine import RemoteMachine
from service.backends.docker.remote_mounting import RemoteMounting
from service.backends.docker.seen import Seen, closer
from service.backends.docker.spool import Spool
from service.backends.docker.streams import Events, PullStream
from service.backends.engines import (
    DEFAULT_SEARCH_PATH,
    ContainerFacts,
    Created,
    Engine,
    EngineFacts,
    Examination,
    Gpu,
    ImageFacts,
    LogStream,
    Stream,
)
from service.backends.errors import BadContainer, ContainerGone, EngineError, ImageMissing, NameTaken, Unreachable

CALL_TIMEOUT_S = 60
LOG_CONFIG = {"Type": "local", "Config": {"max-size": "100m", "max-file": "2", "compress": "false"}}
"""What the engine keeps of a container's log, so that it can't fill the disk. A file is large enough for what a
container can print while the collector goes from one to the next. The driver json-file would cost the engine more, and
breaks the characters where it cuts a long line."""
_SECRET = frozenset({"env", "ssh_host_ed25519_key", "authorized_keys", "id_ed25519", "id_rsa"})
"""Files in /run/navarch that are root's alone."""
_ANSWER_S = 10
"""An engine that is well says so much sooner."""
_PROBE_PATIENCE_S = 10
_REGISTRY_PATIENCE_S = 10


class DockerHost:
    """Calls of one Docker Engine; any thread may use it. Connects at the first call."""

    def __init__(
        self,
        url: str,
        mounting: Mounting | RemoteMounting,
        bind_address: str = "0.0.0.0",
        remote: RemoteMachine | None = None,
        logins: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """`remote`: the machine behind the URL, which is that of a socket here, where it is another one.

        `logins` has a client use those at registries.
        """
        self._url, self._logins = url, logins
        self._remote = remote
        self._bind_address = bind_address
        self._mounting = mounting
        self._prepared: dict[str, Prepared] = {}
        """By container: what its mounts name, held open until it runs."""
        self._client: docker.APIClient | None = None
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._closed = False
        self._infiniband: bool | None = None
        self._holding: dict[tuple[str, tuple[str, ...]], frozenset[str]] = {}

    @property
    def api(self) -> Any:
        """The SDK's client, which has no useful types. Raises Unreachable where there is no way to the host."""
        if self._remote is not None:
            self._remote.check()
        with self._lock:
            if self._client is None:
                with engine_errors(f"The Docker Engine {self._where} doesn't answer"):
                    self._client = docker.APIClient(base_url=self._url, version="auto", timeout=CALL_TIMEOUT_S)
            return self._client

    def close(self) -> None:
        """Waits for a probe that is under way, so that its container doesn't stay behind."""
        self._closed = True
        if self._probing.acquire(timeout=_PROBE_PATIENCE_S):
            self._probing.release()
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def facts(self) -> EngineFacts:
        with engine_errors(f"The Docker Engine {self._where} doesn't answer"):
            api = self.api
            info = api._result(api._get(api._url("/info"), timeout=_ANSWER_S), True)
        local = self._url.removeprefix("unix://") if self._url.startswith("unix://") else None
        seen = self._remote.look() if self._remote else local_machine.look(local) if local else Seen()
        return EngineFacts(
            version=str(info.get("ServerVersion", "")),
            cpus=int(info.get("NCPU", 1)),
            memory_bytes=int(info.get("MemTotal", 0)),
            boot_id=seen.boot_id,
            started_at=seen.engine_started_at,
        )

    def examine(self, deployment: str) -> Examination:
        with self._probing, engine_errors(f"The Docker Engine {self._where} doesn't answer"):
            if self._closed:
                raise Unreachable("The connection to the engine was closed")
            root = str(self.api.info().get("DockerRootDir") or "/var/lib/docker")
            seen = closer(self._remote.shell if self._remote else local_machine.shell, root)
            report = ask(self.api, deployment, None, REPORT) if seen.gpu_devices != 0 else None
        return replace(seen, report=report)

    def reaches(self, address: str, port: int) -> str | None:
        return self._remote.reaches(address, port) if self._remote else local_machine.reaches(address, port)

    def ping(self) -> None:
        with engine_errors(f"The Docker Engine {self._where} doesn't answer"):
            api = self.api
            api._result(api._get(api._url("/_ping"), timeout=_ANSWER_S))

    @property
    def _where(self) -> str:
        return f"of {self._remote.shown}" if self._remote else f"at {self._url}"

    def gpus(self, deployment: str, image: str | None = None) -> list[Gpu]:
        with self._probing, engine_errors("The GPUs could not be listed"):
            if self._closed:
                raise Unreachable("The connection to the engine was closed")
            return probe(self.api, deployment, image)

    def image(self, reference: str) -> ImageFacts | None:
        with engine_errors(f"Image {reference} could not be looked up"):
            try:
                found = self.api.inspect_image(reference)
            except docker.errors.NotFound:
                return None
        config = found.get("Config") or {}
        return ImageFacts(
            found["Id"],
            reference,
            config.get("Labels") or {},
            user=str(config.get("User") or ""),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            volumes=tuple(sorted(config.get("Volumes") or ())),
            search_path=_search_path(config.get("Env") or ()),
            healthcheck=((config.get("Healthcheck") or {}).get("Test") or ["NONE"])[0] != "NONE",
        )

    def holding(self, image_id: str, paths: tuple[str, ...]) -> frozenset[str]:
        found = self._holding.get((image_id, paths))
        if found is None:
            with engine_errors(f"Image {image_id} could not be looked through"):
                found = self._holding[image_id, paths] = files_in(self.api, image_id, paths)
        return found

    def offered(self, reference: str) -> None:
        client: Any = docker.APIClient(base_url=self._url, version="auto", timeout=_REGISTRY_PATIENCE_S)
        try:
            with engine_errors(f"The registry doesn't say whether it has {reference}"):
                self._logins(client)
                client.inspect_distribution(reference)
        except EngineError as error:
            raise ImageMissing(str(error)) from error
        finally:
            client.close()

    def pull(self, reference: str) -> PullStream:
        with engine_errors(f"Image {reference} could not be pulled"):
            self._logins(self.api)
            return PullStream(self.api, reference, lambda: self.image(reference))

    def copy(self, source: Engine, reference: str, spool: Spool, name: str) -> Stream[str] | None:
        if not isinstance(source, DockerHost):
            return None
        return ImageCopy(source.api, self.api, reference, spool, name)

    def create(self, plan: ContainerPlan) -> Created:
        with engine_errors(f"Container {plan.name} could not be created"):
            prepared = self._mounting.prepare(self.api, plan)
            try:
                created = self._create(plan, prepared)
            except BaseException:
                prepared.close()
                raise
        self._let_go(created.id)
        if created.started:
            prepared.close()
        else:
            self._prepared[created.id] = prepared
        return created

    def _create(self, plan: ContainerPlan, prepared: Prepared) -> Created:
        try:
            rdma = plan.host_network and self._has_infiniband(plan)
            arguments = create_arguments(self.api, plan, prepared.mounts, self._bind_address, rdma=rdma)
        except (TypeError, ValueError) as error:
            raise BadContainer(str(error)) from error
        try:
            container_id = str(self.api.create_container(**arguments)["Id"])
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise
            found = self._namesake(plan)
            if found.started:
                return Created(found.id, started=True)
            # Its mounts may name a process that isn't there any more. Not by force: it may be about to start.
            self.api.remove_container(found.id, v=True)
            container_id = str(self.api.create_container(**arguments)["Id"])
        put_links(self.api, container_id, prepared)
        self.put(container_id, plan.files)
        return Created(container_id)

    def _has_infiniband(self, plan: ContainerPlan) -> bool:
        if self._infiniband is None:
            labels = {LABEL_DEPLOYMENT: plan.labels[LABEL_DEPLOYMENT]}
            self._infiniband = has_infiniband(self.api, plan.image, labels)
        return self._infiniband

    def _namesake(self, plan: ContainerPlan) -> ContainerFacts:
        """The container that has the name, when it is the very one that was asked for."""
        found = self.inspect(plan.name)
        if found is None:
            raise EngineError(f"The name {plan.name} was taken a moment ago and is free now")
        if dict(found.labels).items() >= dict(plan.labels).items():
            return found
        raise NameTaken(f"A container named {plan.name} exists and belongs to something else", found.id)

    def start(self, container_id: str) -> None:
        with engine_errors("The container could not be started"):
            self.api.start(container_id)
        self._let_go(container_id)

    def resume(self, container_id: str, plan: ContainerPlan) -> None:
        with engine_errors(f"Container {plan.name} could not be started again"):
            prepared = self._mounting.prepare(self.api, plan)
            try:
                self.put(container_id, plan.files)
                self.api.start(container_id)
            finally:
                prepared.close()

    def remove_volume(self, name: str) -> None:
        with engine_errors(f"Volume {name} could not be removed"):
            try:
                self.api.remove_volume(name)
            except docker.errors.NotFound:
                return

    def _let_go(self, container_id: str) -> None:
        prepared = self._prepared.pop(container_id, None)
        if prepared is not None:
            prepared.close()

    def put(self, container_id: str, files: Mapping[str, bytes]) -> None:
        with engine_errors(f"Files could not be put into container {container_id[:12]}"):
            self.api.put_archive(container_id, "/", archive(files))

    def inspect(self, name_or_id: str) -> ContainerFacts | None:
        with engine_errors(f"Container {name_or_id} could not be inspected"):
            api = self.api
            url = api._url("/containers/{0}/json", name_or_id)
            try:  # an engine that hangs must not keep a step for as long as other calls may take
                return container_facts(api._result(api._get(url, timeout=_ANSWER_S), True))
            except docker.errors.NotFound:
                return None

    def containers(self, deployment: str) -> list[ContainerFacts]:
        with engine_errors("The containers could not be listed"):
            listed = self.api.containers(all=True, filters={"label": f"{LABEL_DEPLOYMENT}={deployment}"})
        return [
            ContainerFacts(
                id=item["Id"],
                name=item["Names"][0].lstrip("/") if item.get("Names") else item["Id"],
                labels=item.get("Labels") or {},
                running=item.get("State") in ("running", "paused", "restarting"),
                started=item.get("State") != "created",
                created_at=float(item.get("Created", 0)),
            )
            for item in listed
        ]

    def strangers(self, deployment: str) -> list[str]:
        with engine_errors("The containers could not be listed"):
            listed = self.api.containers(filters={"label": LABEL_DEPLOYMENT})
        return sorted(
            f"{item['Labels'][LABEL_DEPLOYMENT]} {item['Names'][0].lstrip('/')}"
            for item in listed
            if item["Labels"][LABEL_DEPLOYMENT] != deployment and item.get("Names")
        )

    def signal(self, container_id: str, name: str) -> None:
        with engine_errors(f"Container {container_id[:12]} could not be sent {name}"):
            try:
                self.api.kill(container_id, signal=name)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # gone, or not running any more
                    raise

    def remove(self, container_id: str) -> None:
        with engine_errors(f"Container {container_id[:12]} could not be removed"):
            try:
                self.api.remove_container(container_id, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # gone, or being removed right now
                    raise
        self._let_go(container_id)

    def hand_over(self, folder: Path, image_id: str, deployment: str) -> None:
        with engine_errors(f"What lies in {folder} could not be given to this account"):
            hand_over(self.api, image_id, folder, deployment)

    def follow(
        self, container_id: str, since: int, *, wait: bool, ended: bool = False, tail: int | None = None
    ) -> LogStream:
        what = f"The log of container {container_id[:12]} could not be read"
        with engine_errors(what):
            api = self.api
            parameters = {
                "stdout": 1,
                "stderr": 1,
                "timestamps": 1,
                "follow": int(wait),
                "since": since,
                "tail": "all" if tail is None else tail,
            }
            url = api._url("/containers/{0}/logs", container_id)
            response = api.get(url, params=parameters, stream=True, timeout=(CALL_TIMEOUT_S, None))
            try:
                api._raise_for_status(response)
            except docker.errors.NotFound as error:
                raise ContainerGone(f"{what}: {error.explanation}") from error
            return DockerLog(response, what, ended=ended)

    def events(self, deployment: str) -> Events:
        with engine_errors("The engine's events could not be followed"):
            filters = {"type": ["container"], "label": [f"{LABEL_DEPLOYMENT}={deployment}"]}
            return Events(self.api.events(since=int(time.time()), filters=filters, decode=True))


def archive(files: Mapping[str, bytes]) -> bytes:
    """A tar of files under /run/navarch."""
    target = io.BytesIO()
    now = int(time.time())
    with tarfile.open(fileobj=target, mode="w") as tar:
        folder = tarfile.TarInfo(CONTAINER_DIR.lstrip("/"))
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, now
        tar.addfile(folder)
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{CONTAINER_DIR.lstrip('/')}/{name}")
            entry.size, entry.mtime = len(content), now
            entry.mode = 0o600 if name in _SECRET else 0o644
            tar.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def create_arguments(
    api: Any, plan: ContainerPlan, mounts: Sequence[Mapping[str, Any]], bind_address: str, *, rdma: bool = False
) -> dict[str, Any]:
    """The SDK's arguments for a container; `mounts` as the engine takes them. `rdma`: it gets the host's InfiniBand."""
    ulimits = {**({"memlock": -1} if rdma else {}), **plan.ulimits}  # what is sent from must stay where it is
    host: dict[str, Any] = {
        "mounts": [*mounts, *(_named(name, target, plan.labels) for target, name in plan.volumes.items())],
        "network_mode": "host" if plan.host_network else "bridge",
        "shm_size": plan.shm_size,
        "ipc_mode": plan.ipc,
        "mem_limit": plan.memory,
        "memswap_limit": plan.memory,
        "nano_cpus": int(plan.cpus * 1e9) if plan.cpus else None,
        "ulimits": [Ulimit(name=name, soft=limit, hard=limit) for name, limit in ulimits.items()],
        "devices": [f"{DEVICES}:{DEVICES}:rwm"] if rdma else [],
        "log_config": LOG_CONFIG,
        "init": plan.init or None,
    }
    if plan.gpus:
        host["device_requests"] = [DeviceRequest(device_ids=list(plan.gpus), capabilities=[["gpu"]])]
    if not plan.host_network:
        host["port_bindings"] = {inside: (bind_address, outside) for inside, outside in plan.ports.items()}
    return {
        "image": plan.image,
        "entrypoint": list(plan.entrypoint) or None,
        "command": list(plan.command),
        "healthcheck": Healthcheck(test=["NONE"]),
        "name": plan.name,
        "environment": dict(plan.environment),
        "labels": dict(plan.labels),
        "working_dir": plan.workdir,
        "hostname": None if plan.host_network else (plan.hostname or plan.name.split("-", 2)[-1])[:63],
        "ports": [] if plan.host_network else list(plan.ports),
        "host_config": api.create_host_config(**{k: v for k, v in host.items() if v not in (None, [], {})}),
    }


def _named(name: str, target: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """A volume that outlives the container; what the image has in that place is its first content."""
    options = {"Labels": {LABEL_DEPLOYMENT: labels[LABEL_DEPLOYMENT]}}
    return {"Type": "volume", "Source": name, "Target": target, "VolumeOptions": options}


def container_facts(found: Mapping[str, Any]) -> ContainerFacts:
    """What `docker inspect` says, as facts."""
    state = found["State"]
    running = bool(state.get("Running"))
    started_at = parse_time(state.get("StartedAt"))
    ended = not running and started_at is not None
    return ContainerFacts(
        id=found["Id"],
        name=found["Name"].lstrip("/"),
        labels=found["Config"].get("Labels") or {},
        running=running,
        started=started_at is not None,
        exit_code=int(state["ExitCode"]) if ended else None,
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
        started_at=started_at,
        finished_at=parse_time(state.get("FinishedAt")) if ended else None,
        created_at=parse_time(found.get("Created")),
    )


def _search_path(variables: Iterable[str]) -> str:
    """The PATH among an image's NAME=value lines."""
    paths = [line.removeprefix("PATH=") for line in variables if line.startswith("PATH=")]
    return paths[-1] if paths else DEFAULT_SEARCH_PATH


def parse_time(text: str | None) -> float | None:
    """Seconds since the epoch of the engine's RFC 3339 time; None for its zero time."""
    if not text or text.startswith("0001-"):
        return None
    return datetime.fromisoformat(text).timestamp()
