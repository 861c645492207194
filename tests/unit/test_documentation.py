"""The pages and the advice that errors give name what is there: commands, options, files, settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from service.cli.main import app
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "images/README.md", *(ROOT / "docs").glob("*.md"), ROOT / "compose.yaml"])
SOURCES = sorted(
    path
    for folder in ("jobs", "images", "service", "scripts")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sh", ".yaml", "") and path.is_file() and "__pycache__" not in path.parts
)
COMMAND = typer.main.get_command(app)


def fragments(text: str) -> list[str]:
    """Every piece of text that is a call of the command: in backticks, or a line of a console block or a comment."""
    inline = re.findall(r"`(navarch [^`\n]+)`", text)
    lines = re.findall(r"^[\w-]*\$ (?:[A-Z_]+=\S+ )*(navarch [^\n]+)$", text, re.MULTILINE)
    shown = re.findall(r"^    (navarch [^\n]+)$", text, re.MULTILINE)
    return [*inline, *lines, *shown]


def wrong(fragment: str) -> str | None:
    """What the command line does not know of a call; None where it knows all."""
    for call in re.split(r" && | \| |; ", fragment):
        call = re.split(r"  +#| #|  +\(|…$| > ", call)[0]
        words = shlex.split(call.replace("'", '"') if call.count("'") % 2 else call)
        if not words or words[0] != "navarch":
            continue
        command: Any = COMMAND
        options = {name for param in command.params for name in param.opts}
        for word in words[1:]:
            if word == "--":
                break
            if word.startswith("-") and word.strip("-"):
                named = [*options, *(name for param in command.params for name in (*param.opts, *param.secondary_opts))]
                if word.partition("=")[0] not in {*named, "--help", "-h"}:
                    return f"{command.name} has no option {word}"
            elif hasattr(command, "commands"):
                if re.fullmatch(r"[A-Z…|]+|…", word):
                    break
                inner = command.commands.get(word)
                if inner is None:
                    return f"{command.name} has no command {word}"
                command = inner
    return None


BUILT = {"service/dashboard/dist"}
"""What pages name and a command of theirs makes; a fresh checkout doesn't have it."""


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_named_exist(path: Path) -> None:
    found = {fragment: said for fragment in fragments(path.read_text()) if (said := wrong(fragment))}
    assert found == {}


def test_a_wrong_command_would_be_noticed() -> None:
    assert wrong("navarch image biuld cpu") == "image has no command biuld"
    assert wrong("navarch ps --everything") == "ps has no option --everything"
    assert wrong("navarch submit run.yaml train.lr=1e-5 --dry-run") is None
    assert fragments("Do `navarch down` or\n$ A=b navarch up\n") == ["navarch down", "navarch up"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    named = re.findall(r"(?<![\w./])((?:jobs|images|service|training|tests|scripts|docs)/[\w./-]+)", text)
    names = {name.rstrip("/.") for name in named} - BUILT
    assert [
        name for name in sorted(names) if not any((base / name).exists() for base in (ROOT, ROOT / "training"))
    ] == []


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `NAVARCH_(\w+)` \|([^|]*)\|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    said = {name.lower(): default.strip().strip("`") for name, default in rows}
    assert set(Settings.model_fields) <= set(said)
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, bool):
            assert said[name] == str(field.default).lower(), name
        elif isinstance(field.default, int | float):
            assert float(said[name]) == field.default, name
        elif isinstance(field.default, str) and field.default:
            assert said[name] == field.default, name
        elif isinstance(field.default, tuple):
            assert said[name] == str(list(field.default)), name
