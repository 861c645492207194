"""`navarch ps | show | stop | rm`: the jobs themselves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import JobName, Json, complete_active_jobs, complete_jobs, connect
from service.cli.listing import Column, listing, table
from service.cli.ssh import plain_command
from service.cli.waiting import busy
from service.contract.errors import Problem

if TYPE_CHECKING:
    from pydantic import BaseModel

    from service.client import Client
    from service.contract.schemas import BulkItem, Job, JobStatus, Replica

ACTIVE = ["queued", "provisioning", "running", "stopping"]


def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Finished ones too.")] = False,
    state: Annotated[list[str] | None, typer.Option(help="Only in this state (repeatable).")] = None,
    kind: Annotated[list[str] | None, typer.Option("--type", help="Only of this type (repeatable).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most N jobs, the newest.")] = 50,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second.")] = False,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    states = state or (None if everything else ACTIVE)
    with connect() as client:
        if watch and not as_json:
            _watch(client, states, kind, limit)
            return
        jobs = list(client.jobs(states=states, types=kind, limit=limit))
    none = "No jobs." if everything else "No active jobs. [dim]navarch ps -a lists finished ones.[/]"
    listing(jobs, COLUMNS, as_json=as_json, empty=none)


def _watch(client: Client, states: list[str] | None, types: list[str] | None, limit: int) -> None:
    from rich.live import Live

    from service.client import Unreachable

    with Live(console=output.console(), auto_refresh=False, screen=False) as live:
        try:
            while True:
                try:
                    jobs = list(client.jobs(states=states, types=types, limit=limit))
                    live.update(table(jobs, COLUMNS, output.console().width), refresh=True)
                except Unreachable as error:
                    live.update(f"[red]{output.escape(error)}[/] Trying again…", refresh=True)
                time.sleep(1)
        except KeyboardInterrupt:
            return


def _gpus(job: Job) -> str:
    resources = job.spec.get("resources") or {}
    count = int(resources.get("gpus") or 0) * int(resources.get("nodes") or 1)
    return str(count) if count else "–"


def _hosts(job: Job) -> list[str]:
    return [replica.host for replica in job.attempts[-1].replicas if replica.host] if job.attempts else []


def _ran(job: Job) -> str:
    if job.started_at is None:
        return ""
    return output.duration((job.finished_at or time.time()) - job.started_at)


def _detail(job: Job) -> str:
    from service.cli.follow import figures

    if job.unreachable_since is not None and not job.finished:
        return f"[red]host unreachable since {output.date(job.unreachable_since)}[/]"
    if job.state == "queued" and job.why:
        return f"[dim]{output.escape(job.why)}[/]"
    if job.state in ("failed", "stopped") and job.message:
        return f"[dim]{output.escape(job.message)}[/]"
    if job.type == "serve" and job.state == "running":
        return output.escape(job.url) if job.url else "[dim]loads its model[/]"
    return f"[dim]{figures(job)}[/]"


COLUMNS: list[Column[Job]] = [
    Column("NAME", lambda job: f"[bold]{output.escape(job.name)}[/]"),
    Column("TYPE", lambda job: output.escape(job.type), gives_way=6),
    Column("STATE", lambda job: output.state(job.state)),
    Column("AGE", lambda job: output.duration(time.time() - job.created_at), right=True, gives_way=5),
    Column("RAN", _ran, gives_way=3),
    Column("GPUS", _gpus, right=True, gives_way=2),
    Column("HOST", lambda job: output.escape(", ".join(dict.fromkeys(_hosts(job)))), gives_way=1),
    Column("SSH", lambda job: str(job.ssh.port) if job.ssh else "", gives_way=4),
    Column("DETAIL", _detail),
]


def show(
    job: JobName,
    samples: Annotated[bool, typer.Option("--samples", help="What the model answered to the sample prompts.")] = False,
    spec: Annotated[bool, typer.Option("--spec", help="Only the spec, as YAML that can be submitted.")] = False,
    as_json: Json = False,
) -> None:
    """Show one job in full."""
    with connect() as client:
        found = client.job(job)
        if samples:
            from service.cli.follow import samples as show_samples

            answered = client.samples(found.id)
            if as_json:
                output.as_json(answered)
            elif answered.items:
                show_samples(client, found.id)
            else:
                output.say("It has no samples: its spec has no `samples` section, or it has not come so far.")
            return
        events = list(client.events(found.id, limit=8)) if not as_json else []
    if as_json:
        output.as_json(found)
        return
    from service.cli.specs import dump

    if spec:
        output.plain(dump(found.spec))
        return
    _show(found)
    if events:
        output.say("\n[bold]events[/]")
        for event in reversed(events):
            output.say(f"  [dim]{output.date(event.time)}[/]  {output.escape(event.message or event.kind)}")
    output.say("\n[bold]spec[/]")
    output.plain(dump(found.spec))


def _show(job: Job) -> None:
    from service.cli.follow import figures

    output.say(
        f"[bold]{output.escape(job.name)}[/]  {output.state(job.state)}  [dim]{output.escape(job.type)} · {job.id}[/]"
    )
    if job.message:
        output.fact(
            "message", output.escape(job.message) + (f" [dim]({output.escape(job.reason)})[/]" if job.reason else "")
        )
    if job.why and job.state == "queued":
        output.fact("waits", output.escape(job.why))
    if job.unreachable_since is not None:
        output.fact("host", f"[red]unreachable since {output.date(job.unreachable_since)}[/]")
    output.fact("submitted", f"{output.date(job.created_at)} [dim]({output.ago(job.created_at)})[/]")
    if job.started_at is not None:
        output.fact("ran", _ran(job))
    if figures(job):
        output.fact("progress", figures(job))
    for warning in job.warnings:
        output.fact("warning", f"[yellow]{output.escape(warning)}[/]")
    if job.ssh is not None:
        output.fact("ssh", f"{plain_command(job.ssh)}   [dim]or: navarch ssh {output.escape(job.name)}[/]")
    if job.url is not None:
        output.fact("url", output.escape(job.url))
    elif job.type == "serve" and job.state == "running":
        output.fact("url", "[dim]not yet: it loads its model[/]")
    for used in job.inputs:
        exact = f"artifact:{used.name}@{used.version}" if used.version else f"artifact:{used.name}"
        facts = (f"of job {used.job}" if used.job else "", (used.digest or "")[:19])
        said = "  ".join(fact for fact in facts if fact)
        output.fact("uses", f"{output.escape(used.key)}: {output.escape(exact)}  [dim]{output.escape(said)}[/]")
    for artifact in job.artifacts:
        exact = output.escape(f"artifact:{artifact.name}@{artifact.version}")
        output.fact(output.escape(artifact.kind), f"{exact}  [dim]{output.escape(artifact.location)}[/]")
    for attempt in job.attempts:
        said = f"  {output.escape(attempt.message)}" if attempt.message else ""
        output.say(f"\n[bold]attempt {attempt.number}[/] {output.state(attempt.state)}{said}")
        output.console().print(table(attempt.replicas, REPLICA_COLUMNS, output.console().width))


REPLICA_COLUMNS: list[Column[Replica]] = [
    Column("RANK", lambda replica: str(replica.node_rank)),
    Column("HOST", lambda replica: output.escape(replica.host or ""), gives_way=1),
    Column("CONTAINER", lambda replica: output.escape(replica.container_name or "")),
    Column("STATE", lambda replica: output.escape(replica.state)),
    Column("EXIT", lambda replica: _exited(replica)),
    Column("GPUS", lambda replica: str(len(replica.gpus)) if replica.gpus else "–", gives_way=2),
    Column("PORTS", lambda replica: ", ".join(f"{outside}→{inside}" for inside, outside in replica.ports.items())),
]


def _exited(replica: Replica) -> str:
    code = "" if replica.exit_code is None else str(replica.exit_code)
    return code + (" [red]OOM[/]" if replica.oom_killed else "")


def stop(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", autocompletion=complete_active_jobs)],
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return when it has stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Stop jobs: SIGTERM, then a grace period in which a training saves a checkpoint."""
    with connect() as client:
        items = client.stop_many(jobs)
        if wait:
            for item in items:
                if item.job is not None and not item.job.finished:
                    with busy(f"stopping {item.job.name}"):
                        client.wait(item.job.id)
            items = client.stop_many([item.job.id if item.job is not None else item.ref for item in items])
    asked = {item.ref: "" if item.job is not None and item.job.finished else " and was asked to stop" for item in items}
    _tell(items, lambda item, job: f"is {output.state(job.state)}{asked[item.ref]}", as_json=as_json)


def rm(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", autocompletion=complete_jobs)],
    force: Annotated[bool, typer.Option("--force", "-f", help="Stop it first if it is active.")] = False,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Delete the models and adapters that it left, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before artifacts are deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Remove finished jobs with their logs, metrics and files. Artifacts that they left stay."""
    with connect() as client:
        if artifacts and not as_json:
            _agreed(client, jobs, ask=not yes and sys.stdin.isatty())
        if force:
            for item in client.stop_many(jobs):
                if item.job is not None and not item.job.finished:
                    with busy(f"stopping {item.job.name}"):
                        client.wait(item.job.id)
        items = client.delete_many(jobs, artifacts="delete" if artifacts else "keep")
    _tell(items, lambda item, job: _removed(item), as_json=as_json, whole=True)


def _agreed(client: Client, jobs: Iterable[str], *, ask: bool) -> None:
    """Says which artifacts are about to go with these jobs, and lets a person think twice."""
    found = False
    for ref in jobs:
        with suppress(Problem):  # said with the job itself
            for artifact in client.job(ref).artifacts:
                name = output.escape(f"artifact:{artifact.name}@{artifact.version}")
                size = output.size(artifact.size) or "size not read yet"
                output.note(f"{name}  {size}  will be deleted with job {output.escape(ref)}")
                found = True
    if found and ask:
        typer.confirm("Delete them for good?", abort=True, err=True)


def _removed(item: BulkItem) -> str:
    """What became of a job that was deleted, a line for each of its artifacts."""
    lines = ["removed"]
    for verb, found in (("stays", item.kept), ("deleted", item.deleted)):
        for artifact in found:
            name = output.escape(f"artifact:{artifact.name}@{artifact.version}")
            where = f"  [dim]{output.escape(artifact.path)}[/]" if verb == "stays" else ""
            lines.append(f"  {verb:<8}{name}  {output.size(artifact.size)}{where}")
    return "\n".join(lines)


def _tell(
    items: Iterable[BulkItem], says: Callable[[BulkItem, JobStatus], str], *, as_json: bool, whole: bool = False
) -> None:
    """What came of it for each job (as JSON how it stands, or the `whole` answer); exits with 1 when one failed."""
    done: list[BaseModel] = []
    failed = False
    for item in items:
        if item.job is not None:
            done.append(item if whole else item.job)
            if not as_json:
                output.say(f"{output.escape(item.job.name)} {says(item, item.job)}")
        elif item.problem is not None:
            failed = True
            output.report(item.problem.detail, item.problem.hint, code=item.problem.code, machine=as_json)
    if as_json:
        output.as_json(done)
    if failed:
        raise typer.Exit(output.FAILED)
