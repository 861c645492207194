"""`navarch ssh-config`: every workspace and running job by its name in ssh, VS Code, rsync and the like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli import output, ssh
from service.cli.context import connect


def ssh_config(
    show: Annotated[bool, typer.Option("--print", help="Print it; write nothing but the pinned host keys.")] = False,
) -> None:
    """Write a Host for each workspace and running job into a file that ~/.ssh/config takes in.

    Host keys are pinned in a known_hosts file of its own: nothing is asked, and nothing is trusted unseen.
    """
    from service.client import ssh_config as files
    from service.locations import config_dir

    with connect() as client:
        reached = [(item.name, item.ssh) for item in client.workspaces() if item.ssh.host_key]
        reached += [(job.name, job.ssh) for job in client.jobs(states=["running"]) if job.ssh and job.ssh.host_key]
    logins = [ssh.login_to(name, access) for name, access in reached]
    if show:
        output.plain(files.render(logins))
        return
    file, changed = files.write(config_dir(), logins)
    added = files.include(file, Path.home())
    hosts = "1 host" if len(logins) == 1 else f"{len(logins)} hosts"
    output.say(f"{output.escape(file)} has {hosts}" + ("" if changed else " [dim](as before)[/]"))
    if added:
        output.say("[dim]~/.ssh/config takes it in from now on.[/]")
    for login in sorted(logins, key=lambda login: login.alias):
        output.say(f"  ssh {output.escape(login.alias)}")
