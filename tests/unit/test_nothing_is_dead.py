"""Nothing is declared that nobody uses: error codes, reasons, fields of the API and columns of the database."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from sqlmodel import SQLModel

from jobs.states import Reason
from service.contract import pages, schemas
from service.contract.errors import KINDS
from service.store import tables

REPOSITORY = Path(__file__).parents[2]
DECLARED = {"service/contract/errors.py", "service/contract/schemas.py", "service/contract/pages.py"}
WAITING = {"why_code", "why_values", "utilization", "memory_used_mib", "health", "health_message"}
"""Declared for what the next landing fills in."""


def trees(*packages: str) -> Iterator[tuple[str, ast.AST]]:
    for package in packages:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            name = str(path.relative_to(REPOSITORY))
            if "migrations" not in name:
                yield name, ast.parse(path.read_text())


def words(*packages: str, without: set[str]) -> set[str]:
    """Every text, name, attribute and keyword in the code."""
    found: set[str] = set()
    for name, tree in trees(*packages):
        if name in without:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg:
                found.add(node.arg)
    return found


def written(without: set[str]) -> set[str]:
    """Every name to which something is given: keywords of calls, attributes, keys of dictionaries."""
    found: set[str] = set()
    for name, tree in trees("service", "images", "jobs"):
        if name in without:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg:
                found.add(node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Dict):
                found.update(
                    key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
                )
    return found


def read() -> set[str]:
    """Every attribute that something is taken from, and every name in a text."""
    return {
        node.attr
        for name, tree in trees("service")
        if name != "service/store/tables.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def models(module: object, base: type[BaseModel]) -> list[type[BaseModel]]:
    found = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base))
    return [model for model in found if model.__module__ == module.__name__]  # type: ignore[attr-defined]


def test_every_error_code_is_given_somewhere() -> None:
    assert sorted(KINDS.keys() - words("service", "images", "jobs", without=DECLARED)) == []


def test_every_reason_is_given_somewhere() -> None:
    used = words("service", "jobs", without={"jobs/states.py"})
    assert sorted(reason.name for reason in Reason if not {reason.name, reason.value} & used) == []


@pytest.mark.parametrize("module", [schemas, pages])
def test_every_field_of_an_answer_is_filled_in_somewhere(module: object) -> None:
    answers = [model for model in models(module, schemas.Schema) if model is not schemas.Schema]
    given = written(DECLARED) | WAITING
    dead = {
        f"{model.__name__}.{name}"
        for model in answers
        for name, field in model.model_fields.items()
        if name not in given and not field.default  # what always says the same is filled in
    }
    assert sorted(dead) == []


def test_every_column_is_written_and_read() -> None:
    rows = [row for row in models(tables, SQLModel) if row is not SQLModel]
    given, taken = written({"service/store/tables.py"}), read()
    columns = {f"{row.__name__}.{name}": (name, field) for row in rows for name, field in row.model_fields.items()}
    unwritten = (name for name, (column, field) in columns.items() if column not in given and not field.default)
    assert sorted(unwritten) == []
    assert sorted(name for name, (column, _) in columns.items() if column not in taken) == []
