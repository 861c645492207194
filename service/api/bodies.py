"""Reads request bodies that may be JSON or YAML."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from jobs.problems import SpecError
from jobs.spec import load_document
from service.contract.errors import Problem

MAX_VALUES = 100_000
_JSON = "application/json"


def read_spec(content_type: str | None, body: bytes) -> dict[str, Any]:
    """The mapping in a body; JSON unless the content type says YAML. Raises Problem."""
    if not body.strip():
        raise Problem("malformed_body", "The body is empty.", "Send a job's spec as JSON or YAML.")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Problem("malformed_body", "The body is not UTF-8 text.", "Send JSON or YAML in UTF-8.") from error
    if (content_type or _JSON).partition(";")[0].strip().lower() != _JSON:
        try:
            document: Any = load_document(text)
        except SpecError as error:
            raise Problem("malformed_body", f"{error}.", "Send a job's spec as YAML.") from error
        except RecursionError as error:
            raise Problem("malformed_body", "The YAML is nested too deeply.", "Send a job's spec as YAML.") from error
        return _storable(document)
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        where = f": {error}" if isinstance(error, ValueError) else ": nested too deeply"
        raise Problem("malformed_body", f"The body is not valid JSON{where}.", "Send JSON or YAML.") from error
    if not isinstance(document, dict):
        raise Problem("malformed_body", "The body must be one JSON object.", "Send a job's spec as an object.")
    return _storable(document)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _storable(document: dict[str, Any]) -> dict[str, Any]:
    """The document as JSON can hold it (YAML has dates and keys that are no texts). Raises Problem."""
    _bounded(document)
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        text.encode()
        plain: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        detail = f"The body holds something that JSON can't: {error}."
        raise Problem("malformed_body", detail, "Put quotes around dates and other special values.") from error
    return plain


def _bounded(document: dict[str, Any]) -> None:
    """Refuse what is small as YAML and huge in full: aliases of aliases, or an alias within itself."""
    left, waiting = MAX_VALUES, [document]
    while waiting:
        value: Any = waiting.pop()
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left -= len(parts)
        if left < 0:
            detail = f"The body holds more than {MAX_VALUES} values."
            raise Problem("malformed_body", detail, "Write it without nested aliases.")
        waiting.extend(parts)


async def spec_of(request: Request) -> dict[str, Any]:
    """The spec in a request's body."""
    return read_spec(request.headers.get("content-type"), await request.body())
