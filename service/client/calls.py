"""Requests of the REST API whose answers are models: one, or a list that comes in pages."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from service.client.transport import Transport
from service.contract.schemas import Page
from service.locations import server_url

Model = TypeVar("Model", bound=BaseModel)


class Calls:
    """What all of the client's methods are made of."""

    def __init__(self, url: str | None = None, token: str | None = None, timeout_s: float = 30.0) -> None:
        self.url = (url or server_url()).rstrip("/")
        self._transport = Transport(self.url, token or os.environ.get("NAVARCH_TOKEN"), timeout_s)

    def _get(self, model: type[Model], path: str, params: Mapping[str, Any] | None = None) -> Model:
        return self._send(model, "GET", path, params=params, repeatable=True)

    def _send(self, model: type[Model], method: str, path: str, **how: Any) -> Model:
        return model.model_validate_json(self._transport.request(method, path, **how).content)

    def _pages(self, model: type[Model], path: str, params: Mapping[str, Any], limit: int | None) -> Iterator[Model]:
        cursor, left = None, limit
        while left is None or left > 0:
            size = 200 if left is None else min(left, 200)
            page = self._get(Page[model], path, {**params, "cursor": cursor, "limit": size})  # type: ignore[valid-type]
            for item in page.items:
                yield item
                left = None if left is None else left - 1
            cursor = page.next_cursor
            if cursor is None:
                return


def segment(ref: str) -> str:
    """A reference as one path segment: names can't hold slashes, and nobody may climb out of the path."""
    return quote(ref, safe="") if ref not in {"", ".", ".."} else "%20"
