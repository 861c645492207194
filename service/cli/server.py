"""`navarch up | down | doctor | version`: the control plane itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import output
from service.cli.context import Json, asked_data_dir, asked_url, connect
from service.cli.waiting import busy

if TYPE_CHECKING:
    from service.contract.schemas import Check
    from service.settings import Settings

DataDir = Annotated[
    Path | None, typer.Option(help="Where everything is kept; default: ./.navarch if there is one, else ~/.navarch.")
]


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for other machines, too.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default 8470; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    mount_root: Annotated[
        list[Path] | None, typer.Option(help="A folder that jobs may mount from (repeatable).", metavar="DIR")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background.")] = False,
    as_json: Json = False,
) -> None:
    """Start the control plane."""
    from service import process
    from service.client.ssh import user_key
    from service.journal import LOG_NAME
    from service.locations import config_dir

    settings = settings_of(host=host, port=port, data_dir=data_dir, mount_roots=mount_root)
    if not detach:
        process.serve(settings, _say_json if as_json else _say_ready, user_key(config_dir()).public)
        return
    before = process.running(settings.data_dir)
    with busy("starting the control plane"):
        found = process.start_detached(settings, _arguments(settings))
    if as_json:
        told = {"url": found.url, "pid": found.pid, "data_dir": str(settings.data_dir)}
        output.as_json({**told, **({"token": found.first_token} if found.first_token else {})})
        return
    output.say(f"Navarch {'already runs' if before else 'runs'} at [bold]{found.url}[/] [dim](pid {found.pid})[/]")
    if found.first_token is not None:
        output.note(_FIRST)
        output.plain(found.first_token)
    output.say(f"[dim]log {settings.data_dir / LOG_NAME}; API docs {found.url}/docs; navarch down ends it[/]")


def dashboard(as_json: Json = False) -> None:
    """Print a link that opens the dashboard and signs you in, once, within ten minutes."""
    with connect() as client:
        link = client.sign_in_link()
    if as_json:
        output.as_json({"url": link})
    else:
        output.say(link)


def _link(url: str) -> str:
    """The dashboard's address, signing in where that is possible."""
    from service.client import Client
    from service.client.errors import ClientError

    try:
        with Client(url) as client:
            return client.sign_in_link()
    except ClientError:
        return url


_FIRST = (
    "[dim]An admin's token for other machines, shown this once; navarch user add NAME makes one for a colleague:[/]"
)


def _say_ready(url: str, first_token: str | None) -> None:
    output.note(f"Navarch runs at {url} (API docs: {url}/docs). Ctrl-C ends it; containers go on.")
    if first_token is not None:
        output.note(_FIRST)
        output.note(first_token)


def _say_json(url: str, first_token: str | None) -> None:
    output.as_json({"url": url, **({"token": first_token} if first_token else {})})
    sys.stdout.flush()


def settings_of(**given: Any) -> Settings:
    from pydantic import ValidationError

    from service.contract.errors import Problem
    from service.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "NAVARCH_" + ".".join(str(part) for part in first["loc"]).upper()
        detail = f"{name} is {first['input']!r}: {first['msg'].lower()}."
        raise Problem("invalid_request", detail, "Correct the variable or the option.") from None


def _arguments(settings: Settings) -> list[str]:
    """The options with which the process in the background gets the same settings."""
    arguments = ["--host", settings.host, "--port", str(settings.port), "--data-dir", str(settings.data_dir)]
    for root in settings.mount_roots:
        arguments += ["--mount-root", str(root)]
    return arguments


def down(
    data_dir: DataDir = None,
    containers: Annotated[bool, typer.Option("--containers", help="Also remove all its containers.")] = False,
    as_json: Json = False,
) -> None:
    """End the control plane. Jobs go on in their containers and are taken up again by the next `navarch up`.

    Without --data-dir it is the one that --url or NAVARCH_URL names, if either is given.
    """
    from service import process

    settings = settings_of(data_dir=asked_data_dir(data_dir))
    with busy("ending the control plane"):
        found = process.stop(settings.data_dir)
    with busy("removing its containers"):
        removed = _remove_containers(settings) if containers else []
    if as_json:
        output.as_json({"stopped": found is not None, "removed": removed})
        return
    output.say(
        "Navarch has ended." if found else f"No control plane was running on {output.escape(settings.data_dir)}."
    )
    if containers:
        output.say(f"{len(removed)} containers removed." if len(removed) != 1 else "1 container removed.")


def _remove_containers(settings: Settings) -> list[str]:
    """Remove every container of this data folder's deployment, whatever its state; their names."""
    import docker
    from docker.errors import DockerException, NotFound

    from service.contract.errors import Problem

    deployment = _deployment(settings)
    if deployment is None:
        return []
    removed = []
    try:
        engine = docker.DockerClient(base_url=settings.engine_url, timeout=60)
        for container in engine.containers.list(all=True, filters={"label": f"navarch.deployment={deployment}"}):
            try:
                container.remove(force=True, v=True)
            except NotFound:
                continue
            removed.append(str(container.name))
    except DockerException as error:
        hint = f"See that the engine at {settings.engine_url} runs, then try again."
        raise Problem("engine_unreachable", f"Containers could not be removed: {error}", hint) from error
    return removed


def _deployment(settings: Settings) -> str | None:
    """The id that this data folder's containers carry; None if no control plane ever ran on it."""
    from service.store.database import Database
    from service.store.tables import Meta

    if not (settings.data_dir / "navarch.db").exists():
        return None
    database = Database(settings.url)
    try:
        with database.read() as session:
            row = session.get(Meta, "deployment")
            return row.value if row is not None else None
    finally:
        database.close()


def doctor(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Look at everything that Navarch stands on, and say what to do about what is wrong.

    Without --data-dir it looks at the control plane that --url or NAVARCH_URL names, if either is given.
    """
    from service.cli.doctor import examine

    checks = examine(settings_of(data_dir=data_dir), asked_url() if data_dir is None else None)
    if as_json:
        output.as_json(checks)
    else:
        for check in checks:
            _show(check)
    if not all(check.ok for check in checks):
        raise typer.Exit(output.FAILED)


def _show(check: Check) -> None:
    mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
    output.say(f"{mark} [bold]{check.name:<14}[/] {output.escape(check.detail)}")


def version(as_json: Json = False) -> None:
    """Print the versions of this command and of the control plane."""
    from importlib.metadata import version as installed

    from service.client import ClientError

    here = installed("navarch")
    try:
        with connect(timeout_s=3) as client:
            there = client.version()
    except ClientError:
        there = None
    if as_json:
        output.as_json({"client": here, "server": there.model_dump() if there else None})
        return
    output.say(f"navarch {here}, Python {sys.version.split()[0]}")
    said = f"control plane {there.version} (deployment {there.deployment})" if there else "no control plane answers"
    output.say(f"[dim]{said}[/]")
