"""`navarch token`: who may use the control plane of this machine, besides the account that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import Json, asked_data_dir
from service.cli.server import DataDir, settings_of
from service.contract.errors import Problem

if TYPE_CHECKING:
    from service import access
    from service.client import Client
    from service.contract.pages import Token

app = typer.Typer(help="API tokens of the control plane on this machine.", no_args_is_help=True)


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Whose it is.")], data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Make a token for another account or machine, and show it, this once."""
    with _kept(data_dir) as kept:
        made = kept.add_token(name).token
    assert made is not None
    if as_json:
        output.as_json({"name": name, "token": made})
        return
    output.plain(made)
    output.note("[dim]Keep it: it can't be shown again. Clients send it from NAVARCH_TOKEN.[/]")


@app.command("ls")
def ls(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the tokens' names."""
    with _kept(data_dir) as kept:
        known = kept.tokens()
    if as_json:
        output.as_json({"tokens": [{"name": token.name, "created_at": token.created_at} for token in known]})
        return
    for token in known:
        output.say(f"[bold]{output.escape(token.name)}[/] [dim]made {output.date(token.created_at)}[/]")
    if not known:
        output.say("No tokens: only the account that runs the control plane may use it, on this machine.")


@app.command("rm")
def rm(name: str, data_dir: DataDir = None) -> None:
    """Withdraw a token, at once."""
    with _kept(data_dir) as kept:
        kept.remove_token(name)
    output.say(f"{output.escape(name)} withdrawn")


class _Offline:
    """The client's functions on tokens where no control plane answers: in the database itself."""

    def __init__(self, tokens: access.tokens.Tokens) -> None:
        self._tokens = tokens

    def tokens(self) -> list[Token]:
        from service.contract.pages import Token

        return [Token(name=token.name, created_at=token.created_at) for token in self._tokens.all()]

    def add_token(self, name: str) -> Token:
        from service.contract.pages import Token

        return Token(name=name, created_at=0.0, token=self._tokens.create(name))

    def remove_token(self, name: str) -> None:
        if not self._tokens.remove(name):
            raise Problem("not_found", f"There is no token {name!r}.", "`navarch token ls` lists them.")


@contextmanager
def _kept(data_dir: Path | None) -> Iterator[Client | _Offline]:
    """The tokens of a data folder: asked of the control plane that serves it, if one does."""
    from service import process
    from service.client import Client
    from service.locations import LOCAL_TOKEN

    settings = settings_of(data_dir=asked_data_dir(data_dir))
    running = process.running(settings.data_dir)
    if running is None:
        with process.offline(settings) as tokens:
            yield _Offline(tokens)
    else:
        with Client(running.url, token=(settings.data_dir / LOCAL_TOKEN).read_text().strip()) as client:
            yield client
