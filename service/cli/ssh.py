"""`navarch ssh`: a login to a job's container that never asks anything."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import ActiveJob, connect
from service.cli.submit import authorise
from service.contract.errors import Problem

if TYPE_CHECKING:
    from service.client import Client
    from service.client.ssh import Login
    from service.contract.schemas import Job, SshAccess
    from service.contract.workspaces import Workspace

WORKDIR = "/workspace"
_PATIENCE_S = 8.0
"""A key that was added is taken by containers that run within five seconds."""
SSH_FAILED = 255
"""ssh's own exit code, when it could not connect or log in."""


def ssh(
    job: ActiveJob,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run this: several words exactly as they are, a single one as a line of shell.", metavar="[-- CMD]…"
        ),
    ] = None,
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
    """Log in to a job's first container, or run a command there, in the job's working folder."""
    with connect() as client:
        found, login = prepare(client, job, wait)
    if config:
        output.plain(login.config())
        return
    extra = forwards(forward, reverse, dynamic, only_forward=only_forward)
    workdir = str(found.spec.get("workdir") or WORKDIR)
    _enter(found, login, workdir, command or [], extra, only_forward=only_forward, show=show)


def enter(
    found: Workspace,
    workdir: str,
    command: list[str],
    extra: list[str],
    *,
    only_forward: bool = False,
    show: bool = False,
) -> None:
    """A login to a workspace that is ready; ends with ssh's exit code. Raises Problem when it does not take our key."""
    login = login_to(found.name, found.ssh)
    _enter(found, login, workdir, command, extra, only_forward=only_forward, show=show)


def _enter(
    found: Job | Workspace,
    login: Login,
    workdir: str,
    command: list[str],
    extra: list[str],
    *,
    only_forward: bool,
    show: bool,
) -> None:
    """One whose key is not known yet is made known, and then let in."""
    code = run(login, workdir, command, extra, only_forward=only_forward, show=show)
    if code == SSH_FAILED and _refused(login):
        _introduce(found, login)
        code = run(login, workdir, command, extra, only_forward=only_forward, show=show)
    raise typer.Exit(code)


def forwards(
    local: list[str] | None, remote: list[str] | None, dynamic: list[str] | None, *, only_forward: bool
) -> list[str]:
    """The options of ssh that forward ports."""
    given = (("-L", local), ("-R", remote), ("-D", dynamic))
    return [*(w for flag, values in given for v in values or () for w in (flag, v)), *(["-N"] if only_forward else [])]


def run(login: Login, workdir: str, command: list[str], extra: list[str], *, only_forward: bool, show: bool) -> int:
    """Runs ssh, or only shows how; its exit code."""
    if show:
        output.plain(shlex.join(login.command(_remote(workdir, command) if command else [], extra=extra)))
        return 0
    if shutil.which("ssh") is None:
        raise Problem("not_found", "There is no `ssh` on this machine.", "Install the OpenSSH client (openssh-client).")
    terminal = True if sys.stdin.isatty() and sys.stdout.isatty() and not only_forward else None
    return _run(login.command([] if only_forward else _remote(workdir, command), tty=terminal, extra=extra))


def plain_command(access: SshAccess) -> str:
    """The plain command, as markup; it names the key when it is one that ssh doesn't find by itself."""
    from service.client.ssh import find_key
    from service.locations import config_dir

    key = find_key(config_dir())
    identity = f" -i {key.private}" if key is not None and key.private.parent != Path.home() / ".ssh" else ""
    return output.escape(f"ssh{identity} -p {access.port} {access.user}@{access.host}")


def _remote(workdir: str, command: list[str]) -> list[str]:
    """What the container's shell is given: sshd hands one line to it, whatever words ssh got."""
    there = f"cd {shlex.quote(workdir)}"
    if not command:
        return [f'{there}; exec "${{SHELL:-/bin/sh}}" -l']
    return [f"{there} || exit; {command[0] if len(command) == 1 else 'exec ' + shlex.join(command)}"]


def _run(argv: list[str]) -> int:
    """The exit code of ssh; Ctrl-C is for what runs there."""
    process = subprocess.Popen(argv)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def _refused(login: Login) -> bool:
    """Whether the container does not accept our key."""
    argv = login.command(["true"], tty=False, extra=["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"])
    tried = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return tried.returncode == SSH_FAILED and "Permission denied" in tried.stderr


def _introduce(found: Job | Workspace, login: Login) -> None:
    """Has the container take our key, which it does within seconds where it is ours. Raises Problem."""
    with connect() as client:
        authorise(client)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if not _refused(login):
            return
        time.sleep(0.3)
    raise Problem(
        "no_ssh",
        f"The container of {found.name}, which belongs to {found.owner}, does not accept your key {login.key}.",
        "A container accepts its owner's keys, and those that an admin has authorised everywhere "
        "(`navarch key add --everywhere`). To show another key: NAVARCH_SSH_KEY=FILE.",
    )


def prepare(client: Client, ref: str, wait_s: float) -> tuple[Job, Login]:
    """Everything that a login needs: the container ready, our key, its host key pinned. Raises Problem."""
    job, access = _wait_ready(client, ref, wait_s)
    return job, login_to(job.name, access)


def login_to(name: str, access: SshAccess) -> Login:
    """How to log in: with our key, the host key pinned under the name of the job or workspace."""
    from service.client.ssh import Login, pin_host_key, user_key
    from service.locations import config_dir

    folder = config_dir()
    alias = f"navarch-{name}"
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
