"""What users are told: every code occurs, and every command that a sentence names exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from service.cli.main import app
from service.contract.errors import KINDS

ROOT = Path(__file__).parents[2]
SOURCES = [file for folder in ("jobs", "images", "service") for file in (ROOT / folder).rglob("*.py")]
TEXTS = [*SOURCES, *ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("images/*.md")]
_NAMED = re.compile(r"`navarch ([^`]*)`")
COMMANDS = typer.main.get_command(app)


def named() -> Iterator[tuple[str, str]]:
    for file in TEXTS:
        for words in _NAMED.findall(file.read_text()):
            yield str(file.relative_to(ROOT)), words


@pytest.mark.parametrize(("file", "words"), sorted(set(named())))
def test_every_command_that_is_advised_exists(file: str, words: str) -> None:
    group: click.Command = COMMANDS
    for alternative in words.split("|")[0:1]:
        for word in alternative.split():
            commands: dict[str, click.Command] = getattr(group, "commands", {})
            if not commands or not re.fullmatch(r"[a-z][a-z-]*", word):
                break
            assert word in commands, f"{file}: navarch {words}"
            group = commands[word]
    options = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for option in re.findall(r"(?<![\w-])--[a-z-]+", words.partition(" -- ")[0]):
        assert option in options | {"--help", "--url"}, f"{file}: navarch {words}"


def _occurs(word: str, besides: str) -> bool:
    return any(word in file.read_text() for file in SOURCES if not str(file).endswith(besides))


@pytest.mark.parametrize("code", sorted(KINDS))
def test_every_problem_code_is_given_somewhere(code: str) -> None:
    assert _occurs(f'"{code}"', "contract/errors.py")
