"""The `navarch` command: puts the commands together and turns every error into a sentence and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from service.cli import (
    artifacts,
    hosts,
    images,
    jobs,
    logs,
    metrics,
    people,
    server,
    ssh,
    ssh_config,
    submit,
    workspaces,
)
from service.cli.context import chosen
from service.cli.output import FAILED, INTERRUPTED, UNREACHABLE, USAGE, report

app = typer.Typer(
    name="navarch",
    help="Launches LLM post-training into GPU containers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"navarch {version('navarch')}")
        raise typer.Exit()


@app.callback()
def options(
    url: Annotated[
        str | None, typer.Option(help="The control plane; default: NAVARCH_URL, or the one that runs here.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version of this command.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    chosen.url = url


app.command("submit")(submit.submit)
app.command("ps")(jobs.ps)
app.command("show")(jobs.show)
app.command("logs")(logs.logs)
app.command("metrics")(metrics.metrics)
app.command("stop")(jobs.stop)
app.command("rm")(jobs.rm)
app.command("ssh", context_settings={"ignore_unknown_options": True})(ssh.ssh)
app.command("events")(hosts.events)
app.command("ssh-config")(ssh_config.ssh_config)
app.add_typer(workspaces.app, name="workspace")
app.add_typer(images.app, name="image")
app.add_typer(images.registries, name="registry")
app.add_typer(artifacts.app, name="artifact")
app.add_typer(hosts.app, name="host")
app.command("up")(server.up)
app.command("down")(server.down)
app.command("dashboard")(server.dashboard)
app.command("doctor")(server.doctor)
app.add_typer(people.users, name="user")
app.add_typer(people.tokens, name="token")
app.add_typer(people.keys, name="key")
app.add_typer(people.secrets, name="secret")
app.command("version")(server.version)


def main() -> None:
    """Entry point: exit codes are 0, 1 refused or failed, 2 wrong usage, 3 no control plane, 130 interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    from service.client.errors import ApiError, ClientError, Unreachable
    from service.contract.errors import Problem

    if isinstance(error, ApiError):
        report(str(error), error.hint, code=error.code, machine=chosen.machine)
        return FAILED
    if isinstance(error, ClientError):
        report(str(error), error.hint, code="unreachable", machine=chosen.machine)
        return UNREACHABLE if isinstance(error, Unreachable) else FAILED
    if isinstance(error, Problem):
        report(error.detail, error.hint, code=error.code, machine=chosen.machine)
        return USAGE if error.code == "invalid_override" else FAILED
    from service.store.faults import of_storage

    storage = of_storage(error)
    if storage is not None:
        report(storage.detail, storage.hint, code=storage.code, machine=chosen.machine)
        return FAILED
    if "NAVARCH_DEBUG" in __import__("os").environ:
        raise error
    hint = "Set NAVARCH_DEBUG=1 to see where; this should not happen, please report it."
    report(f"{type(error).__name__}: {error}", hint, code="internal", machine=chosen.machine)
    return FAILED


if __name__ == "__main__":
    main()
