"""`navarch workspace`: long-lived containers for people, with an address that stays."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import output, ssh
from service.cli.context import Json, connect
from service.cli.listing import Column, listing
from service.cli.submit import authorise
from service.cli.waiting import busy
from service.contract.errors import Problem

if TYPE_CHECKING:
    from service.client import Client
    from service.contract.workspaces import Workspace

app = typer.Typer(help="Long-lived containers to work in: by SSH, PyCharm or VS Code.", no_args_is_help=True)


def complete_workspaces(incomplete: str) -> list[tuple[str, str]]:
    """Names of workspaces; silent when the control plane doesn't answer at once."""
    from service.client import ClientError

    try:
        with connect(timeout_s=1.0) as client:
            found = list(client.workspaces(limit=100))
    except ClientError:
        return []
    return [(item.name, item.state) for item in found if item.name.startswith(incomplete)]


Name = Annotated[
    str, typer.Argument(help="A workspace's name or id.", metavar="NAME", autocompletion=complete_workspaces)
]
Switch = Annotated[
    bool,
    typer.Option("--switch", help="Make its container anew: address and home stay, what was installed elsewhere goes."),
]
Image = Annotated[str | None, typer.Option("--image", help="Another image; needs --switch.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Return when that is done.")]


@app.command("create")
def create(
    name: Annotated[
        str, typer.Argument(help="Its name; or a YAML file that describes it (type: workspace).", metavar="NAME|FILE")
    ],
    image: Annotated[str | None, typer.Option(help="An image or a recipe's name; default: workspace.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="How many, `all` of one host, or HOST:0,1: these of that host.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where it is to be.")] = None,
    port: Annotated[
        list[str] | None, typer.Option("--port", "-p", help="7000, 8095:22 or auto:6006 (repeatable).")
    ] = None,
    mount: Annotated[
        list[str] | None, typer.Option("--mount", "-v", help="/host/folder:/folder[:ro] (repeatable).")
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE (repeatable).")] = None,
    ipc: Annotated[str | None, typer.Option(help="host: shared memory of the host.")] = None,
    shm: Annotated[str | None, typer.Option(help="Shared memory (/dev/shm), such as 16GB.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory, such as 64GB.")] = None,
    home: Annotated[str | None, typer.Option(help="A folder of the host as its /root; default: a volume.")] = None,
    most: Annotated[str | None, typer.Option("--max", help="Stop it after so long, such as 7d.")] = None,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Make a workspace and start it."""
    resources = {"gpus": gpus, "shm": shm, "cpus": cpus, "memory": memory}
    given: dict[str, Any] = {
        **{"image": image, "host": host, "ipc": ipc, "home": home, "max": most},
        **{"ports": port, "mounts": mount, "env": dict(map(_variable, env or ()))},
        "resources": {key: value for key, value in resources.items() if value is not None},
    }
    document = {**_document(name), **{key: value for key, value in given.items() if value}}
    with connect() as client:
        authorise(client)
        made = client.create_workspace(document)
        if wait:
            made = _settled(client, made, "starts")
    _tell(made, as_json=as_json)


def _document(name: str) -> dict[str, Any]:
    if not name.endswith((".yaml", ".yml")):
        return {"type": "workspace", "name": name}
    from service.cli import specs

    document = specs.read(name, [])
    if document.get("type") != "workspace":
        raise Problem(
            "invalid_spec", f"{name} describes no workspace: its type is {document.get('type')!r}.", "Submit a job."
        )
    return document


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Problem("invalid_override", f"{text!r} is not NAME=VALUE.", "Write variables as -e HF_HOME=/data/hf.")
    return name, value


COLUMNS: list[Column[Workspace]] = [
    Column("NAME", lambda item: f"[bold]{output.escape(item.name)}[/]"),
    Column("STATE", lambda item: output.state(item.state)),
    Column("HOST", lambda item: output.escape(item.host), gives_way=3),
    Column("SSH", lambda item: f"{output.escape(item.ssh.host)}:{item.ssh.port}", gives_way=5),
    Column("GPUS", lambda item: str(len(item.gpus)) if item.gpus else "–", right=True, gives_way=4),
    Column("IMAGE", lambda item: output.escape(item.image), gives_way=2),
    Column("OWNER", lambda item: output.escape(item.owner), gives_way=1),
    Column("UP", lambda item: output.duration(time.time() - item.ready_at) if item.ready_at else "", gives_way=6),
    Column("DETAIL", lambda item: f"[dim]{output.escape(_detail(item))}[/]"),
]


def _detail(item: Workspace) -> str:
    if item.unreachable_since is not None:
        return f"its host doesn't answer since {output.date(item.unreachable_since)}"
    return "" if item.state == "running" else item.message or ""


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List workspaces, the newest first."""
    with connect() as client:
        found = list(client.workspaces())
    none = "No workspaces. [dim]navarch workspace create NAME makes one.[/]"
    listing(found, COLUMNS, as_json=as_json, empty=none)


@app.command("show")
def show(name: Name, as_json: Json = False) -> None:
    """Show one workspace: where it is, how to reach it, what happened to it."""
    with connect() as client:
        found = client.workspace(name)
        events = [] if as_json else list(client.workspace_events(found.id, limit=8))
    if as_json:
        output.as_json(found)
        return
    output.say(f"[bold]{output.escape(found.name)}[/]  {output.state(found.state)}  [dim]workspace · {found.id}[/]")
    said = f" [dim]({output.escape(found.reason)})[/]" if found.reason else ""
    output.fact("message", output.escape(found.message or "") + said)
    if found.unreachable_since is not None:
        output.fact("host", f"[red]unreachable since {output.date(found.unreachable_since)}[/]")
    output.fact(
        "ssh", f"{ssh.plain_command(found.ssh)}   [dim]or: navarch workspace ssh {output.escape(found.name)}[/]"
    )
    output.fact("image", output.escape(found.image))
    output.fact("host", output.escape(found.host))
    output.fact("gpus", output.escape(", ".join(found.gpus)))
    output.fact("ports", ", ".join(f"{outside}→{inside}" for inside, outside in found.ports.items()))
    output.fact("home", output.escape(found.home))
    output.fact("container", output.escape(found.container))
    output.fact("owner", output.escape(found.owner))
    output.fact("made", f"{output.date(found.created_at)} [dim]({output.ago(found.created_at)})[/]")
    if found.ready_at is not None:
        output.fact("runs", f"since {output.date(found.ready_at)} [dim]({output.ago(found.ready_at)})[/]")
    if found.runs_until is not None and found.state == "running":
        output.fact("until", f"{output.date(found.runs_until)} [dim](navarch workspace extend {found.name} 1d)[/]")
    output.say("\n[bold]events[/]")
    for event in reversed(events):
        output.say(f"  [dim]{output.date(event.time)}[/]  {output.escape(event.message)}")


@app.command("start")
def start(name: Name, image: Image = None, switch: Switch = False, wait: Wait = True, as_json: Json = False) -> None:
    """Start a workspace, with all that was installed in it."""
    _begin("start", name, image, switch, wait=wait, as_json=as_json)


@app.command("restart")
def restart(name: Name, image: Image = None, switch: Switch = False, wait: Wait = True, as_json: Json = False) -> None:
    """Stop and start a workspace; it keeps its GPUs meanwhile."""
    _begin("restart", name, image, switch, wait=wait, as_json=as_json)


def _begin(verb: str, name: str, image: str | None, switch: bool, *, wait: bool, as_json: bool) -> None:
    with connect() as client:
        authorise(client)
        ask = client.start_workspace if verb == "start" else client.restart_workspace
        found = ask(name, image=image, switch=switch)
        if wait:
            found = _settled(client, found, f"{verb}s")
    _tell(found, as_json=as_json)


@app.command("stop")
def stop(name: Name, wait: Wait = True, as_json: Json = False) -> None:
    """Stop a workspace and give back its GPUs. Its container, address and home stay."""
    with connect() as client:
        found = client.stop_workspace(name)
        if wait:
            found = _settled(client, found, "stops")
    if as_json:
        output.as_json(found)
        return
    output.say(f"[bold]{output.escape(found.name)}[/] {output.state(found.state)}")


@app.command("extend")
def extend(
    name: Name,
    by: Annotated[str, typer.Argument(help="How much longer, such as 12h or 2d.", metavar="TIME")],
    as_json: Json = False,
) -> None:
    """Let a workspace run longer than its --max."""
    from jobs.units import parse_duration

    try:
        seconds = parse_duration(by)
    except ValueError as error:
        raise Problem("invalid_override", f"TIME {error}.", None) from None
    with connect() as client:
        found = client.extend_workspace(name, seconds)
    if as_json:
        output.as_json(found)
        return
    output.say(f"[bold]{output.escape(found.name)}[/] may run until {output.date(found.runs_until or 0.0)}")


@app.command("rm")
def rm(
    name: Name,
    home: Annotated[bool, typer.Option("--home", help="Delete the volume of its home, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Remove a workspace with its container. Its home stays for the next one of this name, unless --home."""
    with connect() as client:
        found = client.workspace(name)
        if sys.stdin.isatty() and not yes and not as_json:
            lost = "its container and its home" if home else "its container; its home is kept"
            typer.confirm(f"Remove {found.name}: {lost}?", abort=True)
        found = client.delete_workspace(found.id, home="delete" if home else "keep")
        if wait:
            _gone(client, found)
    if as_json:
        output.as_json({"removed": [found.name]})
        return
    kept = "" if home else f" [dim](its home is kept: {output.escape(found.home)})[/]"
    output.say(f"{output.escape(found.name)} removed{kept}")


@app.command("ssh", context_settings={"ignore_unknown_options": True})
def login(
    name: Name,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run this: several words as they are, a single one as a line of shell.", metavar="[-- CMD]…"
        ),
    ] = None,
    forward: Annotated[list[str] | None, typer.Option("-L", help="Forward a local port, as ssh -L does.")] = None,
    reverse: Annotated[list[str] | None, typer.Option("-R", help="Forward a port of the container, as ssh -R.")] = None,
    dynamic: Annotated[list[str] | None, typer.Option("-D", help="A SOCKS proxy, as ssh -D does.")] = None,
    only_forward: Annotated[bool, typer.Option("-N", help="Run nothing, only forward.")] = False,
    show_only: Annotated[bool, typer.Option("--print", help="Print the ssh command; do not run it.")] = False,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for it to be ready.")] = 120,
) -> None:
    """Log in to a workspace, or run a command in it."""
    with connect() as client:
        found = client.workspace(name)
        if found.state != "running" and not found.settled:
            found = _settled(client, found, "starts", wait_s)
    if found.state != "running":
        raise Problem(
            "no_ssh",
            f"Workspace {found.name} is {found.state}" + (f": {found.message}" if found.message else "") + ".",
            f"Start it: navarch workspace start {found.name}",
        )
    extra = ssh.forwards(forward, reverse, dynamic, only_forward=only_forward)
    workdir = str(found.spec.get("workdir") or ssh.WORKDIR)
    ssh.enter(found, workdir, command or [], extra, only_forward=only_forward, show=show_only)


@app.command("check")
def check(name: Name, as_json: Json = False) -> None:
    """Try over SSH what an IDE does in a workspace, and name what fails."""
    with connect() as client:
        found = client.check_workspace(name)
    if as_json:
        output.as_json(found)
    for item in found.checks if not as_json else ():
        mark = "[green]ok[/]   " if item.ok else "[red]fails[/]"
        output.say(f"{mark} {output.escape(item.name):<16} [dim]{output.escape(item.detail)}[/]")
    if not found.ok:
        raise typer.Exit(output.FAILED)


@app.command("ide")
def ide(name: Name, as_json: Json = False) -> None:
    """Show what to type into PyCharm, VS Code, Cursor or Gateway to work in a workspace."""
    from service.client.ssh import user_key
    from service.contract.workspaces import IdeBlocks
    from service.locations import config_dir
    from service.workspaces.ide import ide_blocks

    with connect() as client:
        found = client.workspace(name)
    blocks = ide_blocks(found, str(user_key(config_dir()).private))
    if as_json:
        output.as_json(IdeBlocks(items=blocks))
        return
    for block in blocks:
        output.say(f"[bold]{output.escape(block.name)}[/]")
        for line in [*block.text.splitlines(), *([block.link] if block.link else [])]:
            output.plain(f"  {line}")


def _settled(client: Client, found: Workspace, does: str, patience_s: float = 900.0) -> Workspace:
    """The workspace once nothing is under way with it. Raises Problem when it failed."""
    deadline = time.monotonic() + patience_s
    with busy(f"{found.name} {does}"):
        while not found.settled and time.monotonic() < deadline:
            time.sleep(0.2)
            found = client.workspace(found.id)
    if found.state == "failed":
        raise Problem(
            "no_ssh", f"Workspace {found.name} failed: {found.message}", f"navarch workspace show {found.name}"
        )
    return found


def _gone(client: Client, found: Workspace) -> None:
    from service.client import ApiError

    with busy(f"{found.name} is being removed"):
        for _ in range(600):
            try:
                client.workspace(found.id)
            except ApiError as error:
                if error.code == "workspace_not_found":
                    return
                raise
            time.sleep(0.2)


def _tell(found: Workspace, *, as_json: bool) -> None:
    if as_json:
        output.as_json(found)
        return
    output.say(f"[bold]{output.escape(found.name)}[/] {output.state(found.state)}")
    output.fact("ssh", ssh.plain_command(found.ssh))
    others = [f"{outside}→{inside}" for inside, outside in found.ports.items() if inside != "22"]
    output.fact("ports", ", ".join(others))
    name = output.escape(found.name)
    output.say(f"[dim]navarch workspace ssh {name}   navarch workspace ide {name}   navarch workspace stop {name}[/]")
