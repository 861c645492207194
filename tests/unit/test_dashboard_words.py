"""The dashboard's form speaks Chinese: what the API's schemas say of each field has a translation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jobs.schema import schema_of
from jobs.spec import JobType

WORDS = Path(__file__).parents[2] / "service" / "dashboard" / "src" / "i18n" / "zh-help.ts"


def texts_of(schema: dict[str, Any], root: dict[str, Any]) -> set[str]:
    """Descriptions and units of all fields that the form has, at any depth."""
    if "$ref" in schema:
        return texts_of(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    found = set().union(*(texts_of(choice, root) for choice in schema.get("anyOf", ())))
    for field in schema.get("properties", {}).values():
        named = {**root["$defs"][field["$ref"].rpartition("/")[2]], **field} if "$ref" in field else field
        found |= {named.get("description", ""), named.get("x-unit", "")} | texts_of(field, root)
    return found - {""}


def test_each_field_of_the_form_is_explained_in_chinese() -> None:
    words = dict(
        re.findall(r'^  ("(?:[^"\\]|\\.)*"):\n    ("(?:[^"\\]|\\.)*"),$', WORDS.read_text("utf-8"), re.MULTILINE)
    )
    translated = {json.loads(english): json.loads(chinese) for english, chinese in words.items()}
    said = set().union(*(texts_of(schema_of(type), schema_of(type)) for type in JobType))
    assert said - translated.keys() == set(), "add them to zh-help.ts"
    assert translated.keys() - said == set(), "no field says this any more: take it out of zh-help.ts"
    assert all(re.search("[\u4e00-\u9fff]", chinese) for chinese in translated.values())
