"""`navarch submit`: a YAML file and overrides become a job, or a plan of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import Json, connect

if TYPE_CHECKING:
    from service.client import Client
    from service.contract.schemas import Plan


def submit(
    file: Annotated[str, typer.Argument(help="The job as YAML; - reads standard input.", metavar="FILE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to replace, as train.lr=1e-5.", metavar="[KEY=VALUE]…")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run where; start nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the job; exit with 0 if it succeeds.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with the same key gives the same job.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a job.

    Relative paths in FILE (model, data, mounts) are relative to FILE, those in overrides to the working folder.
    """
    from service.cli import specs

    document = specs.read(file, overrides or [])
    with connect() as client:
        if dry_run:
            plan = client.plan(document)
            output.as_json(plan) if as_json else _show_plan(plan)
            if plan.problems:
                raise typer.Exit(output.FAILED)
            return
        if document.get("ssh") is not False:
            authorise(client)
        job = client.submit(document, idempotency_key=idempotency_key)
        if as_json and not follow:
            output.as_json(job)
            return
        if not as_json:
            output.say(f"[bold]{output.escape(job.name)}[/] submitted [dim]({output.escape(job.type)}, id {job.id})[/]")
            if (job.why or "").startswith("waits for "):
                output.say(f"[dim]it {output.escape(job.why)}[/]")
        if follow:
            from service.cli.follow import follow_job

            raise typer.Exit(follow_job(client, job.id, as_json=as_json))
        name = output.escape(job.name)
        output.say(f"[dim]navarch logs -f {name}   navarch show {name}   navarch stop {name}[/]")
        if job.type == "serve":
            output.say("[dim]`navarch show` and `navarch ps` tell its URL as soon as it has answered a request.[/]")


def authorise(client: Client) -> None:
    """Let the control plane's containers know this person's key, once."""
    from service.client.ssh import user_key
    from service.locations import config_dir

    key = user_key(config_dir())
    known = {key.fingerprint for key in client.keys("")}
    if key.public.fingerprint not in known:
        client.add_key(key.public.line)


def _show_plan(plan: Plan) -> None:
    from service.cli.specs import dump

    if not plan.placeable:
        output.say(f"[yellow]It would wait:[/] {output.escape(plan.why or 'no reason given')}")
    elif not plan.problems:
        output.say("[green]It would start now.[/]")
    for problem in plan.problems:
        output.say(f"[red]It would fail:[/] {output.escape(problem.detail)}")
        if problem.hint:
            output.say(f"[dim]hint: {output.escape(problem.hint)}[/]")
    for note in plan.notes:
        output.say(output.escape(note))
    for replica in plan.replicas:
        output.say(f"\n[bold]replica {replica.node_rank}[/] on {output.escape(replica.host or 'no host yet')}")
        output.fact("image", output.escape(replica.image))
        output.fact("command", output.escape(_shell(replica.command)))
        output.fact("gpus", output.escape(", ".join(replica.gpus) or "none"))
        ports = (f"{outside or 'automatic'}→{inside}" for inside, outside in replica.ports.items())
        output.fact("ports", output.escape(", ".join(ports)))
        output.fact("workdir", output.escape(replica.workdir))
        if replica.shm is not None:
            default = "" if (plan.spec.get("resources") or {}).get("shm") else " (default; resources.shm changes it)"
            output.fact("shm", output.size(replica.shm) + default)
        for index, mount in enumerate(replica.mounts):
            output.fact("mounts" if index == 0 else "", output.escape(mount))
        environment = [f"{name}={value}" for name, value in sorted(replica.environment.items())]
        for index, line in enumerate(environment):
            output.fact("env" if index == 0 else "", output.escape(line))
    output.say("\n[bold]spec[/]")
    output.plain(dump(plan.spec))


def _shell(command: list[str]) -> str:
    import shlex

    return shlex.join(command)
