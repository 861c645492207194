"""`navarch host` and `navarch events`: what there is to run on, and what happened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import output
from service.cli.context import Json, complete_jobs, connect
from service.cli.listing import Column, listing, remove, single
from service.contract.errors import Problem

if TYPE_CHECKING:
    from service.contract.schemas import Gpu, Host

app = typer.Typer(help="Docker hosts: this machine, and others over SSH.", no_args_is_help=True)


def complete_hosts(incomplete: str) -> list[tuple[str, str]]:
    """Names of hosts; silent when the control plane doesn't answer at once."""
    from service.client import ClientError

    try:
        with connect(timeout_s=1.0) as client:
            found = client.hosts()
    except ClientError:
        return []
    return [(host.name, host.state) for host in found if host.name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="A host's name.", metavar="NAME", autocompletion=complete_hosts)]
ClusterAddress = Annotated[
    str | None, typer.Option("--cluster-address", metavar="IP", help="Where the other hosts find it, if elsewhere.")
]
Interface = Annotated[
    str | None, typer.Option("--interface", metavar="IF", help="The network interface with that address.")
]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label, for jobs to ask for.")]
Ports = Annotated[str | None, typer.Option("--ports", metavar="FIRST-LAST", help="Ports that jobs get from its pool.")]
SharedRoot = Annotated[
    str | None, typer.Option("--shared-root", metavar="FOLDER", help="A folder that hosts share, such as NFS.")
]

COLUMNS: list[Column[Host]] = [
    Column("NAME", lambda host: f"[bold]{output.escape(host.name)}[/]"),
    Column("STATE", lambda host: output.escape(host.state)),
    Column("REACHABLE", lambda host: "[green]yes[/]" if host.reachable else "[red]no[/]"),
    Column("CPUS", lambda host: str(host.cpus or ""), right=True, gives_way=3),
    Column("MEMORY", lambda host: output.size(host.memory_bytes), gives_way=2),
    Column("GPUS", lambda host: str(len(host.gpus)) if host.gpus else "–", gives_way=4),
    Column("FREE", lambda host: str(sum(gpu.job is None for gpu in host.gpus)) if host.gpus else "–", gives_way=5),
    Column("ENGINE", lambda host: output.escape(host.engine_version or ""), gives_way=1),
    Column("DETAIL", lambda host: f"[dim]{output.escape(host.message or host.url)}[/]"),
]


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List hosts with their GPUs."""
    with connect() as client:
        hosts = client.hosts()
    if listing(hosts, COLUMNS, as_json=as_json):
        for host in hosts:
            for gpu in host.gpus:
                output.say(_gpu(host, gpu))


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What it is called from now on.", metavar="NAME")],
    url: Annotated[str, typer.Argument(help="ssh://USER@ADDRESS[:PORT]", metavar="URL")],
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="The private key that logs in; else the control plane's own."),
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option("--fingerprint", metavar="SHA256:…", help="Refuse it if it shows another SSH host key."),
    ] = None,
    cluster_address: ClusterAddress = None,
    interface: Interface = None,
    label: Labels = None,
    ports: Ports = None,
    shared_root: SharedRoot = None,
    as_json: Json = False,
) -> None:
    """Run jobs on another machine, too: Docker and SSH are all that it needs.

    Its SSH host key is pinned: a host that shows another one later is not used.
    """
    settings = _settings(cluster_address, interface, label, ports, shared_root)
    if key is not None:
        try:
            settings["key"] = key.expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Problem("path_missing", f"{key} can't be read: {error}.", "Name a private key's file.") from error
    with connect(timeout_s=120) as client:
        host = client.add_host(name, url, fingerprint=fingerprint, **settings)
    if as_json:
        output.as_json(host)
        return
    output.say(f"[bold]{output.escape(host.name)}[/] is a host now. Its SSH host key is pinned: {host.fingerprint}")
    if fingerprint is None:
        output.say("[dim]Compare: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on that host says the same.[/]")
    _facts(host, as_json=False)


@app.command("show")
def show(host: Name, as_json: Json = False) -> None:
    """Show one host: its GPUs, and what the last check found."""
    with connect() as client:
        _facts(client.host(host), as_json=as_json)


@app.command("set")
def set_(
    host: Name,
    cluster_address: ClusterAddress = None,
    interface: Interface = None,
    label: Labels = None,
    ports: Ports = None,
    shared_root: SharedRoot = None,
    as_json: Json = False,
) -> None:
    """Change what is known of a host; its labels are those that are given, and no others."""
    with connect() as client:
        _facts(
            client.change_host(host, **_settings(cluster_address, interface, label, ports, shared_root)),
            as_json=as_json,
        )


@app.command("check")
def check(
    host: Name,
    accept: Annotated[
        bool, typer.Option("--accept", help="The GPUs and the driver that it has now are the right ones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look closely at a host: GPUs, driver, disk, clock, the way to and from the others. 1 when something is wrong."""
    with connect(timeout_s=120) as client:
        found = client.check_host(host, accept=accept)
    _facts(found, as_json=as_json)
    if not as_json and not found.findings:
        output.say("[green]nothing is wrong[/]")
    if any(finding.level == "error" for finding in found.findings):
        raise typer.Exit(1)


@app.command("drain")
def drain(host: Name, as_json: Json = False) -> None:
    """Place nothing new on a host; what runs there runs on."""
    with connect() as client:
        _facts(client.change_host(host, state="draining"), as_json=as_json)


@app.command("undrain")
def undrain(host: Name, as_json: Json = False) -> None:
    """Use a host again."""
    with connect() as client:
        _facts(client.change_host(host, state="active"), as_json=as_json)


@app.command("trust")
def trust(
    host: Name,
    fingerprint: Annotated[str, typer.Argument(help="SHA256:… of the SSH host key that it has now.")],
    as_json: Json = False,
) -> None:
    """Pin a host's new SSH host key, after it was installed anew."""
    with connect(timeout_s=60) as client:
        _facts(client.change_host(host, fingerprint=fingerprint), as_json=as_json)


@app.command("rm")
def rm(
    hosts: Annotated[list[str], typer.Argument(metavar="NAME…", autocompletion=complete_hosts)], as_json: Json = False
) -> None:
    """Use a host no more; refused while anything runs or lies there."""
    with connect() as client:
        remove(hosts, client.remove_host, as_json=as_json)


@app.command("key")
def key() -> None:
    """Print the control plane's public SSH key: a line for authorized_keys on hosts."""
    with connect() as client:
        print(client.host_key())


def _settings(
    cluster_address: str | None,
    interface: str | None,
    labels: list[str] | None,
    ports: str | None,
    shared_root: str | None,
) -> dict[str, Any]:
    """What was given, as the REST API takes it."""
    given: dict[str, Any] = {
        "cluster_address": cluster_address,
        "interface": interface,
        "labels": dict(_label(label) for label in labels) if labels is not None else None,
        "ports": _range(ports) if ports is not None else None,
        "shared_root": shared_root,
    }
    return {name: value for name, value in given.items() if value is not None}


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not of the form KEY=VALUE", param_hint="--label")
    return name, value


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not of the form FIRST-LAST", param_hint="--ports")
    return int(found.group(1)), int(found.group(2))


def _facts(host: Host, *, as_json: bool) -> None:
    title = f"[bold]{output.escape(host.name)}[/] {output.escape(host.state)} [dim]{output.escape(host.url)}[/]"
    facts = (
        ("reachable", "yes" if host.reachable else None),
        ("since", None if host.reachable or not host.unreachable_since else output.date(host.unreachable_since)),
        ("message", host.message),
        ("engine", host.engine_version),
        ("cpus", host.cpus),
        ("memory", output.size(host.memory_bytes)),
        ("address", host.address),
        ("cluster", " ".join(part for part in (host.cluster_address, host.interface) if part)),
        ("ports", f"{host.first_port}-{host.last_port}"),
        ("labels", " ".join(f"{name}={value}" for name, value in host.labels.items())),
        ("shared", host.shared_root),
        ("host key", host.fingerprint),
    )
    single(host, title, facts, as_json=as_json)
    if as_json:
        return
    for gpu in host.gpus:
        output.say(_gpu(host, gpu))
    for finding in host.findings:
        colour = {"error": "red", "warning": "yellow"}.get(finding.level, "dim")
        output.say(f"  [{colour}]{output.escape(finding.name)}[/] {output.escape(finding.detail)}")


def _gpu(host: Host, gpu: Gpu) -> str:
    used = f"[yellow]{output.escape(gpu.job)}[/]" if gpu.job else "[green]free[/]"
    name, memory = output.escape(gpu.name), output.size(gpu.memory_mib << 20)
    return f"  [dim]{output.escape(host.name)}[/] {name} {memory} {used} [dim]{output.escape(gpu.uuid)}[/]"


def events(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", autocompletion=complete_jobs)] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most N, the latest.")] = 50,
    as_json: Json = False,
) -> None:
    """What happened, to one job or everywhere; the latest last."""
    with connect() as client:
        found = list(client.events(job, limit=limit))
    found.reverse()
    if as_json:
        output.as_json(found)
        return
    for event in found:
        name = f"[bold]{output.escape(event.job_name)}[/] " if event.job_name and job is None else ""
        text = output.escape(event.message or event.kind)
        who = output.escape(f"{event.actor:<12}")
        output.say(f"[dim]{output.date(event.time)}  {who}[/] {name}{text} [dim]{output.escape(event.kind)}[/]")
