"""`navarch ssh`: a login to a job's container that never asks anything."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import ActiveJob, connect
from service.contract.errors import Problem

if TYPE_CHECKING:
    from service.access.keys import Login
    from service.client import Client
    from service.contract.schemas import Job, SshAccess


def ssh(
    job: ActiveJob,
    command: Annotated[list[str] | None, typer.Argument(help="Run this, no shell.", metavar="[-- CMD]…")] = None,
    forward: Annotated[
        list[str] | None, typer.Option("-L", help="Forward a local port, as ssh -L does: 8888:localhost:8888.")
    ] = None,
    reverse: Annotated[list[str] | None, typer.Option("-R", help="Forward a port of the container, as ssh -R.")] = None,
    dynamic: Annotated[list[str] | None, typer.Option("-D", help="A SOCKS proxy, as ssh -D does.")] = None,
    only_forward: Annotated[bool, typer.Option("-N", help="Run nothing, only forward.")] = False,
    show: Annotated[bool, typer.Option("--print", help="Print the ssh command; do not run it.")] = False,
    config: Annotated[bool, typer.Option("--config", help="Print a Host block for ~/.ssh/config.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the container to be ready.")] = 120,
) -> None:
    """Log in to a job's first container, or run a command there."""
    with connect() as client:
        login = prepare(client, job, wait)
    if config:
        output.plain(login.config())
        return
    extra = [
        word
        for flag, values in (("-L", forward), ("-R", reverse), ("-D", dynamic))
        for v in values or ()
        for word in (flag, v)
    ]
    argv = login.command(list(command or []), extra=extra + (["-N"] if only_forward else []))
    if show:
        output.plain(shlex.join(argv))
        return
    found = shutil.which("ssh")
    if found is None:
        raise Problem("not_found", "There is no `ssh` on this machine.", "Install the OpenSSH client (openssh-client).")
    os.execv(found, argv)


def prepare(client: Client, ref: str, wait_s: float) -> Login:
    """Everything that a login needs: the container ready, our key, its host key pinned. Raises Problem."""
    from service.access.keys import Login, pin_host_key, user_key
    from service.locations import config_dir

    job, access = _wait_ready(client, ref, wait_s)
    folder = config_dir()
    alias = f"navarch-{job.name}-{job.id[:8]}"
    known_hosts = None
    if access.host_key is not None:
        known_hosts = folder / "known_hosts"
        pin_host_key(known_hosts, alias, access.host_key)
    key = user_key(folder)
    return Login(access.host, access.port, access.user, alias, key.private, known_hosts)


def _wait_ready(client: Client, ref: str, wait_s: float) -> tuple[Job, SshAccess]:
    deadline = time.monotonic() + wait_s
    said = None
    while True:
        job = client.job(ref)
        if job.ssh is not None:
            return job, job.ssh
        if job.finished:
            hint = f"`navarch logs {job.name}` shows what it printed; its files are kept until `navarch rm`."
            raise Problem("no_ssh", f"Job {job.name} is {job.state}; its container is gone.", hint)
        if job.spec.get("ssh") is False:
            raise Problem("no_ssh", f"Job {job.name} runs without sshd (`ssh: false`).", "Submit it with `ssh: true`.")
        if time.monotonic() > deadline:
            detail = f"Job {job.name} is still {job.state}" + (f": {job.why}" if job.why else "")
            raise Problem("no_ssh", f"{detail}.", "Wait longer with --wait SECONDS.")
        now = f"{job.name} is {job.state}" + (f": {job.why}" if job.why else "")
        if now != said:
            output.note(f"[dim]{output.escape(now)}; waiting until it can be reached…[/]")
            said = now
        time.sleep(0.3)
