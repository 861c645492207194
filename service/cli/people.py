"""`navarch user | token | key | secret`: who uses a control plane, and by what they are known."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli import output
from service.cli.context import Json, connect
from service.cli.listing import Column, listing, remove, single
from service.contract.errors import Problem

if TYPE_CHECKING:
    from service.contract.people import Key, Secret, Token, User

users = typer.Typer(help="People who use the control plane.", no_args_is_help=True)
tokens = typer.Typer(help="API tokens: what a person's programs are known by.", no_args_is_help=True)
secrets = typer.Typer(help="Secrets that one's jobs and workspaces are given.", no_args_is_help=True)
keys = typer.Typer(help="SSH keys that containers authorise.", no_args_is_help=True)

Role = Literal["admin", "member"]
UserName = Annotated[str, typer.Argument(help="A user's name.", metavar="USER")]
Only = Annotated[str | None, typer.Option("--user", help="Of one user.")]
Whose = Annotated[str, typer.Option("--user", help="Somebody else's; for admins.")]

USERS: list[Column[User]] = [
    Column("NAME", lambda user: f"[bold]{output.escape(user.name)}[/]"),
    Column("ROLE", lambda user: output.escape(user.role)),
    Column("GPUS", lambda user: _share(user.gpus, user.quota.gpus), right=True),
    Column("JOBS", lambda user: _share(user.jobs, user.quota.jobs), right=True, gives_way=3),
    Column("WORKSPACES", lambda user: _share(user.workspaces, user.quota.workspaces), right=True, gives_way=2),
    Column("HOLDS", lambda user: f"[dim]{output.escape(', '.join(user.holds))}[/]"),
    Column("SINCE", lambda user: output.date(user.created_at), gives_way=1),
]


def _share(has: int, most: int | None) -> str:
    return f"{has}/{most}" if most is not None else str(has)


Gpus = Annotated[str | None, typer.Option(help="GPUs that they may hold at once; none: no limit.")]
Workspaces = Annotated[str | None, typer.Option(help="Workspaces that they may have.")]
Jobs = Annotated[str | None, typer.Option(help="Jobs of theirs that may run at once.")]
Disk = Annotated[str | None, typer.Option(help="Disk for their jobs' files and artifacts, such as 500GB.")]


def _quota(gpus: str | None, workspaces: str | None, jobs: str | None, disk: str | None) -> dict[str, int | None]:
    """The limits that options name; "none" lifts one."""
    from jobs.units import parse_size

    found: dict[str, int | None] = {}
    for name, text in {"gpus": gpus, "workspaces": workspaces, "jobs": jobs, "disk": disk}.items():
        if text is None:
            continue
        try:
            found[name] = None if text == "none" else parse_size(text) if name == "disk" else int(text)
        except ValueError:
            expected = "a size such as 500GB" if name == "disk" else "a number"
            raise Problem(
                "invalid_override", f"--{name} is {text!r}, which is not {expected}, or none.", None
            ) from None
    return found


@users.command("quota")
def quota(
    name: UserName,
    gpus: Gpus = None,
    workspaces: Workspaces = None,
    jobs: Jobs = None,
    disk: Disk = None,
    as_json: Json = False,
) -> None:
    """Limit what a user may hold at once, or lift limits (none); what is not said stays."""
    with connect() as client:
        found = client.change_user(name, quota=_quota(gpus, workspaces, jobs, disk))
    _tell(found, as_json=as_json)


@users.command("add")
def add(
    name: UserName,
    gpus: Gpus = None,
    workspaces: Workspaces = None,
    jobs: Jobs = None,
    disk: Disk = None,
    role: Annotated[Role, typer.Option(help="An admin may do everything; a member what is theirs.")] = "member",
    as_json: Json = False,
) -> None:
    """Add a user, and show their first token, this once."""
    with connect() as client:
        limits = {kind: most for kind, most in _quota(gpus, workspaces, jobs, disk).items() if most is not None}
        made = client.add_user(name, role=role, quota=limits)
        url = client.url
    if as_json:
        output.as_json(made)
        return
    output.say(f"[bold]{output.escape(made.name)}[/] added, {output.escape(made.role)}")
    output.note("[dim]What they type on their machine; the token can't be shown again:[/]")
    output.plain(f"export NAVARCH_URL={url} NAVARCH_TOKEN={made.token}")


@users.command("ls")
def ls(as_json: Json = False) -> None:
    """List users with what they hold."""
    with connect() as client:
        listing(client.users(), USERS, as_json=as_json)


@users.command("show")
def show(name: UserName, as_json: Json = False) -> None:
    """Show one user."""
    with connect() as client:
        found = client.user(name)
    _tell(found, as_json=as_json)


def _tell(found: User, *, as_json: bool) -> None:
    title = f"[bold]{output.escape(found.name)}[/]  {output.escape(found.role)}"
    facts = [
        ("since", output.date(found.created_at)),
        ("gpus", _share(found.gpus, found.quota.gpus) + (f" ({', '.join(found.holds)})" if found.holds else "")),
        ("jobs", f"{_share(found.jobs, found.quota.jobs)} running"),
        ("workspaces", _share(found.workspaces, found.quota.workspaces)),
        ("disk", f"at most {output.size(found.quota.disk)}" if found.quota.disk is not None else ""),
    ]
    single(found, title, facts, as_json=as_json)


@users.command("role")
def role(name: UserName, role: Annotated[Role, typer.Argument(metavar="admin|member")], as_json: Json = False) -> None:
    """Make a user an admin, or a member."""
    with connect() as client:
        found = client.change_user(name, role=role)
    if as_json:
        output.as_json(found)
        return
    output.say(f"{output.escape(found.name)} is {output.escape(found.role)} now")


@users.command("rm")
def rm(name: Annotated[list[str], typer.Argument(metavar="USER…")], as_json: Json = False) -> None:
    """Remove users: their tokens and keys count no more; what they did goes on to name them."""
    with connect() as client:
        remove(name, client.remove_user, as_json=as_json)


TOKENS: list[Column[Token]] = [
    Column("NAME", lambda token: f"[bold]{output.escape(token.name)}[/]"),
    Column("USER", lambda token: output.escape(token.user)),
    Column("MADE", lambda token: output.date(token.created_at), gives_way=1),
    Column("EXPIRES", lambda token: _expiry(token.expires_at), gives_way=2),
    Column("LAST USED", lambda token: output.ago(token.last_used_at) or "[dim]never[/]"),
]


def _expiry(moment: float | None) -> str:
    if moment is None:
        return "never"
    return output.date(moment) if moment > time.time() else "[red]expired[/]"


@tokens.command("new")
def new_token(
    name: Annotated[str, typer.Argument(help="What it is for, such as laptop.")],
    user: Whose = "",
    lasts: Annotated[str | None, typer.Option("--lasts", help="How long it counts, such as 90d.")] = None,
    as_json: Json = False,
) -> None:
    """Make another token for oneself, and show it, this once."""
    with connect() as client:
        made = client.add_token(name, user=user, lasts=_seconds(lasts))
    if as_json:
        output.as_json(made)
        return
    output.plain(made.token or "")
    output.note("[dim]Keep it: it can't be shown again. Clients send it from NAVARCH_TOKEN.[/]")


def _seconds(lasts: str | None) -> float | None:
    from jobs.units import parse_duration

    try:
        return parse_duration(lasts) if lasts is not None else None
    except ValueError as error:
        raise Problem("invalid_override", f"--lasts {error}.", None) from None


@tokens.command("ls")
def ls_tokens(user: Only = None, as_json: Json = False) -> None:
    """List one's tokens; an admin sees everybody's."""
    with connect() as client:
        found = client.tokens(user)
    listing(found, TOKENS, as_json=as_json, empty="No tokens. [dim]navarch token new NAME makes one.[/]")


@tokens.command("rm")
def rm_token(
    name: Annotated[list[str], typer.Argument(metavar="NAME…")], user: Whose = "", as_json: Json = False
) -> None:
    """Withdraw tokens, at once."""
    with connect() as client:
        remove(name, lambda one: client.remove_token(one, user=user), as_json=as_json)


KEYS: list[Column[Key]] = [
    Column("FINGERPRINT", lambda key: output.escape(key.fingerprint)),
    Column("TYPE", lambda key: output.escape(key.type), gives_way=1),
    Column("USER", lambda key: output.escape(key.user)),
    Column("OPENS", lambda key: "[yellow]all containers[/]" if key.everywhere else "their containers"),
    Column("COMMENT", lambda key: output.escape(key.comment)),
]


@keys.command("add")
def add_key(
    file: Annotated[str, typer.Argument(help="A .pub file; - reads it from standard input.", metavar="FILE")] = "",
    user: Whose = "",
    everywhere: Annotated[bool, typer.Option("--everywhere", help="In everybody's containers; for admins.")] = False,
    as_json: Json = False,
) -> None:
    """Have one's containers authorise a key, also those that run; without FILE, one's own key."""
    with connect() as client:
        made = client.add_key(_key(file), user=user, everywhere=everywhere)
    if as_json:
        output.as_json(made)
        return
    output.say(f"{output.escape(made.fingerprint)} of {output.escape(made.user)} is authorised")


def _key(file: str) -> str:
    from service.client.ssh import user_key
    from service.locations import config_dir

    if not file:
        return user_key(config_dir()).public.line
    try:
        return sys.stdin.read() if file == "-" else Path(file).expanduser().read_text()
    except OSError as error:
        raise Problem("path_missing", f"{file} can't be read: {error.strerror}.", None) from None


@keys.command("ls")
def ls_keys(user: Only = None, as_json: Json = False) -> None:
    """List the keys that containers authorise."""
    with connect() as client:
        found = client.keys(user)
    listing(found, KEYS, as_json=as_json, empty="No keys. [dim]navarch key add makes yours known.[/]")


@keys.command("rm")
def rm_key(
    fingerprint: Annotated[list[str], typer.Argument(metavar="FINGERPRINT…")], user: Whose = "", as_json: Json = False
) -> None:
    """Revoke keys: within seconds no container takes them any more."""
    with connect() as client:
        remove(fingerprint, lambda one: client.remove_key(one, user=user), as_json=as_json)


SECRETS: list[Column[Secret]] = [
    Column("NAME", lambda secret: f"[bold]{output.escape(secret.name)}[/]"),
    Column("SET", lambda secret: output.ago(secret.set_at)),
]


@secrets.command("set")
def set_secret(name: Annotated[str, typer.Argument(help="Such as HF_TOKEN.")], as_json: Json = False) -> None:
    """Set a secret, asked for at the terminal or read from standard input; what one starts from now on has it."""
    value = typer.prompt(name, hide_input=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    with connect() as client:
        made = client.set_secret(name, value)
    if as_json:
        output.as_json(made)
        return
    output.say(f"{output.escape(made.name)} is set")


@secrets.command("ls")
def ls_secrets(as_json: Json = False) -> None:
    """List the names of one's secrets."""
    with connect() as client:
        found = client.secrets()
    listing(found, SECRETS, as_json=as_json, empty="No secrets. [dim]navarch secret set HF_TOKEN sets one.[/]")


@secrets.command("rm")
def rm_secret(name: Annotated[list[str], typer.Argument(metavar="NAME…")], as_json: Json = False) -> None:
    """Remove secrets; what runs keeps them."""
    with connect() as client:
        remove(name, client.remove_secret, as_json=as_json)
