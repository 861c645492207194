"""What a submit would do now, without doing it: where each container would go, and what would keep it from running."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlmodel import Session, col, select

from jobs.launch import Address, ContainerPlan, Launch, plan_containers
from jobs.placement import HostCapacity, Placement, Waits, place
from jobs.spec import JobSpec, redacted
from service.access.principals import LOCAL, Principal
from service.backends.engines import Engines, ImageFacts
from service.backends.errors import EngineError, ImageMissing
from service.backends.fitness import LOOKED_FOR, misfit, remarks
from service.backends.references import find_image, how_to_get, same_image
from service.contract import schemas
from service.intake.admission import check_possible, demand_of, parse, resolve
from service.intake.spec_paths import Resolved
from service.settings import Settings
from service.store.capacity import capacities
from service.store.database import Database
from service.store.tables import ImageBuild


class Plans:
    """Answers to `dry_run`."""

    def __init__(self, database: Database, settings: Settings, engines: Engines) -> None:
        self._database, self._settings, self._engines = database, settings, engines

    def plan(self, document: Mapping[str, Any], actor: Principal = LOCAL) -> schemas.Plan:
        """Where the job would go and what would run there. Raises the same Problems as a submit."""
        spec = parse(document)
        with self._database.read() as session:
            resolved = resolve(session, spec, self._settings, actor)
            hosts = capacities(session)
            builds = _builds_under_way(session)
        check_possible(spec, hosts, resolved.needs)
        placement = place(demand_of(spec, resolved.needs), hosts)
        images = _Images(self._engines, spec, builds)
        why = resolved.why or (placement.why if isinstance(placement, Waits) else None)
        if why is not None or isinstance(placement, Waits):
            images.look([host for host in hosts if not host.unusable])
            return self._plan(spec, images, why=why)
        placed = {replica.host_id for replica in placement.replicas}
        others = [host for host in hosts if host.id not in placed and not host.unusable]
        images.look([host for host in hosts if host.id in placed], everywhere=True, others=others)
        if images.silent:
            return self._plan(spec, images, why=f"needs a host: {'; '.join(images.silent)}")
        named = {host.id: host.name for host in hosts}
        containers = self._containers(spec, document, placement, named, resolved)
        replicas = [_planned(rank, container, named) for rank, container in enumerate(containers)]
        return self._plan(spec, images, replicas=replicas)

    @staticmethod
    def _plan(
        spec: JobSpec, images: "_Images", *, why: str | None = None, replicas: Sequence[schemas.PlannedReplica] = ()
    ) -> schemas.Plan:
        return schemas.Plan(
            spec=_shown(spec),
            placeable=why is None,
            why=why,
            problems=images.problems,
            notes=images.notes,
            replicas=list(replicas),
        )

    def _containers(
        self,
        spec: JobSpec,
        document: Mapping[str, Any],
        placement: Placement,
        named: Mapping[str, str],
        resolved: Resolved,
    ) -> tuple[ContainerPlan, ...]:
        addresses = [Address(p.host_id, named[p.host_id], "127.0.0.1") for p in placement.replicas]
        launch = Launch(
            deployment="0" * 8,
            job_id="0" * 12,
            job_name=spec.name if document.get("name") else f"{spec.type}-1a2b",
            attempt=1,
            run_dir=str(self._settings.job_dir("JOB") / "run"),
            authorized_keys="",
            host_key="",
            host_key_public="",
            secrets=dict.fromkeys(spec.secrets, ""),
            extra_mounts=tuple(resolved.mounts.values()),
            training=resolved.training,
        )
        return plan_containers(spec, placement, addresses, launch)


class _Images:
    """Whether the job's image is where it is needed, and what would become of the job where it isn't."""

    def __init__(self, engines: Engines, spec: JobSpec, builds: Sequence[ImageBuild]) -> None:
        self._engines, self._spec, self._builds = engines, spec, builds
        self.problems: list[schemas.PlanProblem] = []
        self.notes: list[str] = []
        self.silent: list[str] = []
        """Hosts that did not answer when they were asked."""

    def look(
        self, hosts: Sequence[HostCapacity], *, everywhere: bool = False, others: Sequence[HostCapacity] = ()
    ) -> None:
        """Asks these hosts; the image must be on all of them, or (as long as it isn't clear where) on one.

        `others` are asked where it is missing: it is copied from one that has it.
        """
        without: list[HostCapacity] = []
        found: ImageFacts | None = None
        where: HostCapacity | None = None
        for host in hosts:
            try:
                there = find_image(self._engines.engine(host.id), self._spec.image)
            except EngineError as error:
                self.silent.append(f"{host.name} doesn't answer: {error}")
                continue
            if there is None:
                without.append(host)
            else:
                found, where = there, host
        if found is not None and where is not None:
            self._there(where, found)
        if without and where is None:
            where = next((host for host in others if self._has(host)), None)
        if without and where is not None and everywhere:
            names = ", ".join(host.name for host in without)
            self.notes.append(f"Image {self._spec.image} is copied to {names} from {where.name} first.")
        elif without and where is None:
            self._missing(without)

    def _has(self, host: HostCapacity) -> bool:
        try:
            return find_image(self._engines.engine(host.id), self._spec.image) is not None
        except EngineError:
            return False

    def _there(self, host: HostCapacity, image: ImageFacts) -> None:
        """Whether the image that a host has can run the job, and what is unusual about it."""
        try:
            wrong = misfit(self._spec, image, partial(self._engines.engine(host.id).holding, image.id, LOOKED_FOR))
        except EngineError as error:
            self.silent.append(f"{host.name} doesn't answer: {error}")
            return
        if wrong is not None:
            self._problem(wrong.message, wrong.hint, code="image_unsuitable")
        else:
            self.notes.extend(remarks(self._spec, image))

    def _missing(self, hosts: Sequence[HostCapacity]) -> None:
        image, names = self._spec.image, ", ".join(host.name for host in hosts)
        for build in self._builds:
            if same_image(image, build.tag):
                said = f"Image {image} is still being built (build {build.id}, {build.message or build.state})."
                self._problem(said, "Submit the job when it is ready: `navarch image ls` shows it then.")
                return
        try:
            for host in hosts:
                self._engines.engine(host.id).offered(image)
        except EngineError as error:
            cause = f" ({error})" if isinstance(error, ImageMissing) else ""
            self._problem(f"Image {image} is not on {names} and can't be pulled{cause}.", how_to_get(image))
            return
        self.notes.append(f"Image {image} is not on {names}: it is pulled first.")

    def _problem(self, detail: str, hint: str, code: str = "image_missing") -> None:
        self.problems.append(schemas.PlanProblem(code=code, detail=detail, hint=hint))


def _builds_under_way(session: Session) -> list[ImageBuild]:
    return list(session.exec(select(ImageBuild).where(col(ImageBuild.state).in_(["queued", "running"]))))


def _shown(spec: JobSpec) -> dict[str, Any]:
    document = spec.model_dump(mode="json", exclude={"training"})
    return redacted({**document, **spec.training})


def _planned(rank: int, plan: ContainerPlan, names: Mapping[str, str]) -> schemas.PlannedReplica:
    return schemas.PlannedReplica(
        node_rank=rank,
        host=names[plan.host_id],
        gpus=list(plan.gpus),
        image=plan.image,
        command=list(plan.command),
        environment=dict(plan.environment),
        ports={str(inside): outside for inside, outside in plan.ports.items()},
        workdir=plan.workdir,
        shm=plan.shm_size,
        mounts=[f"{m.source}:{m.target}:{'ro' if m.read_only else 'rw'}" for m in plan.mounts],
    )
