"""HTTP to the control plane: problems become exceptions, server-sent events become an iterator."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, connect_sse

from service.client.errors import ApiError, Unreachable
from service.contract.schemas import ProblemDocument
from service.locations import local_token

#: The server sends a comment at least every 15 s, so this much silence means that the connection is dead.
SILENCE_S = 60.0


class Transport:
    """A connection pool to one control plane."""

    def __init__(self, url: str, token: str | None, timeout_s: float = 30.0) -> None:
        """Without a token, that of this account for its own control plane at `url` is looked up, at each request."""
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url + "/api/v1/",
            auth=_Bearer(lambda: token or local_token(self.url)),
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            trust_env=False,
            verify=self.url.startswith("https:"),  # loading certificates takes longer than most requests
        )

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json_body: object | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
    ) -> httpx.Response:
        """Send one request. A `repeatable` one is tried three times when the connection breaks under it.

        Raises:
            ApiError: the control plane answered with an error.
            Unreachable: it did not answer.
        """
        tries = 3 if repeatable else 1
        for left in reversed(range(tries)):
            try:
                response = self._http.request(method, path, params=_given(params), json=json_body, headers=headers)
                break
            except httpx.ConnectError as error:
                raise Unreachable(self.url, _cause(error)) from error
            except httpx.TransportError as error:
                if not left:
                    raise Unreachable(self.url, _cause(error)) from error
                time.sleep(0.2)
        _raise_for_problem(response)
        return response

    def download(self, path: str, params: Mapping[str, Any], file: Path) -> int:
        """Writes an answer into a file, which is whole or absent; its bytes. Raises as `request` does."""
        beside = file.with_name(f".{file.name}.part")
        try:
            with self._http.stream("GET", path, params=_given(params), timeout=httpx.Timeout(600, connect=5)) as answer:
                if answer.is_error:
                    answer.read()
                    _raise_for_problem(answer)
                with beside.open("wb") as target:
                    for block in answer.iter_raw():
                        target.write(block)
            beside.replace(file)
        except httpx.TransportError as error:
            raise Unreachable(self.url, _cause(error)) from error
        finally:
            beside.unlink(missing_ok=True)
        return file.stat().st_size

    def stream(self, path: str, params: Mapping[str, Any] | None, last_id: str | None) -> Iterator[ServerSentEvent]:
        """Events of one connection, until the server ends it or it breaks (httpx.TransportError)."""
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        timeout = httpx.Timeout(SILENCE_S, connect=5.0)
        params = _given(params)
        with connect_sse(self._http, "GET", path, params=params, headers=headers, timeout=timeout) as source:
            if source.response.is_error:
                source.response.read()
                _raise_for_problem(source.response)
            yield from source.iter_sse()


class _Bearer(httpx.Auth):
    def __init__(self, token: Callable[[], str | None]) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token = self._token()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (params or {}).items() if value is not None}


def _cause(error: httpx.TransportError) -> str:
    text = str(error).lower()
    if "refused" in text:
        return "connection refused"
    return "timed out" if isinstance(error, httpx.TimeoutException) else (str(error) or type(error).__name__)


def _raise_for_problem(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        problem = ProblemDocument.model_validate_json(response.content)
    except ValueError:
        title = response.reason_phrase or "error"
        problem = ProblemDocument(
            title=title,
            status=response.status_code,
            code="not_navarch",
            detail=f"{response.url} answered {response.status_code} {title}, not as Navarch does.",
            hint="Check that NAVARCH_URL points at a Navarch control plane.",
        )
    raise ApiError(problem)
