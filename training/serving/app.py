"""The HTTP side of the model server: OpenAI's routes over the scheduler, reward scores, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from training.errors import DataError
from training.rollout.engine import row_seed
from training.serving.config import ServeConfig
from training.serving.loading import Served
from training.serving.metrics import Metrics
from training.serving.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    Sampling,
    ScoreRequest,
    identity,
    usage,
)
from training.serving.scheduler import Completion, Draining, Piece, QueueFull, Scheduler, Token

Scorer = Callable[[list[list[dict[str, str]]]], tuple[list[float], int]]


class Api:
    """The routes' common state: the model, its scheduler (or scorer) and the answers' shapes."""

    def __init__(
        self, config: ServeConfig, served: Served, scheduler: Scheduler | None, scorer: Scorer | None, metrics: Metrics
    ) -> None:
        self.config, self.served, self.scheduler, self.scorer, self.metrics = config, served, scheduler, scorer, metrics
        self.codec = served.codec
        self.ready = False
        self._counter = itertools.count()

    # --- from request to completions

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.served.name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist: this server has {self.served.name!r}",
                param="model",
                code="model_not_found",
            )

    def prompt_tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            tokens: list[int] = self.codec.tokenizer(prompt)["input_ids"]
            return tokens or [self.codec.eos_id]
        vocabulary = int(self.served.model.config.vocab_size)
        if not prompt or any(not 0 <= token < vocabulary for token in prompt):
            raise ApiError(400, f"prompt holds token ids outside 0 to {vocabulary - 1}, or none", param="prompt")
        return list(prompt)

    def budget(self, prompt: list[int], asked: int | None) -> int:
        """New tokens that a request gets; ApiError when it can't have what it asks for."""
        room = self.served.max_length - len(prompt)
        if room < 1 or (asked is not None and asked > room):
            wanted = f"{len(prompt)} in the prompt" + (f" and {asked} for the completion" if asked is not None else "")
            raise ApiError(
                400,
                f"this server's context is {self.served.max_length} tokens; the request has {wanted}: shorten it",
                param="messages",
                code="context_length_exceeded",
            )
        return asked if asked is not None else min(room, self.config.max_new_tokens)

    def submit(self, request: Sampling, prompts: list[list[int]], asked: int | None, top: int) -> list[Running]:
        """Queue `n` completions of each prompt, all or none."""
        if self.scheduler is None:
            raise ApiError(400, f"{self.served.name!r} is a reward model: it scores at /score, it does not complete")
        loop = asyncio.get_running_loop()
        found = []
        for prompt in prompts:
            generation = request.generation(self.budget(prompt, asked))
            for number in range(request.n):
                if request.seed is None:
                    seed = row_seed(self.config.seed, next(self._counter))
                else:
                    seed = row_seed(request.seed, number)
                stops = () if request.ignore_eos else self.codec.stop_ids
                found.append(Running(loop, prompt, generation, stops, seed, request.stream, top))
        try:
            self.scheduler.submit(*(running.completion for running in found))
        except QueueFull:
            wait = str(self.scheduler.retry_after())
            raise ApiError(
                429, "the server is full: try again later", kind="rate_limit_error", code="queue_full",
                headers={"Retry-After": wait},
            ) from None  # fmt: skip
        except Draining:
            raise ApiError(
                503, "the server is shutting down", kind="server_error", code="draining", headers={"Retry-After": "5"}
            ) from None
        return found

    # --- token texts and log-probs

    def token_text(self, token: int) -> str:
        return self.codec.decode([token], skip_special=False)

    def chat_logprobs(self, tokens: tuple[Token, ...]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self.token_text(token)
            return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

        return {
            "content": [
                {**entry(t.id, t.logprob), "top_logprobs": [entry(i, score) for i, score in t.top]} for t in tokens
            ],
            "refusal": None,
        }

    def text_logprobs(self, tokens: tuple[Token, ...], offset: int = 0) -> dict[str, Any]:
        texts = [self.token_text(token.id) for token in tokens]
        offsets = list(itertools.accumulate((len(text) for text in texts), initial=offset))[:-1]
        return {
            "tokens": texts,
            "token_logprobs": [max(token.logprob, -9999.0) for token in tokens],
            "top_logprobs": [{self.token_text(i): score for i, score in token.top} for token in tokens],
            "text_offset": offsets,
        }


class Running:
    """One submitted completion and the queue that its pieces arrive in."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, prompt: list[int], generation: Any, stop_ids: tuple[int, ...],
        seed: int, stream: bool, top: int,
    ) -> None:  # fmt: skip
        self.pieces: asyncio.Queue[Piece] = asyncio.Queue()

        def sink(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
                loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

        self.completion = Completion(prompt, generation, stop_ids, seed, sink, stream=stream, top=top)

    async def last(self) -> Piece:
        """The final piece (of a request that doesn't stream: all of it)."""
        while True:
            piece = await self.pieces.get()
            if piece.finish is not None:
                if piece.finish == "error":
                    raise ApiError(500, f"generation failed: {piece.error}", kind="server_error")
                if piece.finish == "abort":
                    raise ApiError(503, "the server stopped before the completion was done", kind="server_error")
                return piece


async def until_gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(api: Api) -> FastAPI:
    """The application; `api.scheduler` must be running before the first request."""
    app = FastAPI(title="Navarch model server", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        message = f"{param}: {first['msg']}" if param else str(first["msg"])
        return await api_error(_, ApiError(400, message, param=param))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return await api_error(_, ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(DataError)
    async def data_error(_: Request, error: DataError) -> JSONResponse:
        return await api_error(_, ApiError(400, str(error), param="messages"))

    key = _read_key(api.config)
    if key is not None:

        @app.middleware("http")
        async def authorize(request: Request, proceed: Any) -> Response:
            sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if request.url.path not in ("/health", "/metrics") and not hmac.compare_digest(sent.encode(), key.encode()):
                error = ApiError(
                    401, "a wrong API key, or none, was sent", kind="authentication_error", code="invalid_api_key"
                )
                return JSONResponse(error.body, status_code=401)
            answer: Response = await proceed(request)
            return answer

    @app.get("/health")
    async def health() -> JSONResponse:
        failure = api.scheduler.failure if api.scheduler else None
        if failure is not None:
            return JSONResponse({"status": "failed", "error": str(failure)}, status_code=500)
        running, waiting = api.scheduler.load if api.scheduler else (0, 0)
        facts = {"status": "ok" if api.ready else "starting", "model": api.served.name}
        return JSONResponse({**facts, "running": running, "waiting": waiting}, status_code=200 if api.ready else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(api.metrics.text(time.monotonic()), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(api)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        api.check_model(name)
        return _model(api)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        body.refuse_unsupported("tools", "functions", "response_format", "tool_choice")
        api.check_model(body.model)
        prompt = api.codec.encode_prompt([message.turn() for message in body.messages])
        top = body.top_logprobs if body.logprobs else 0
        found = api.submit(body, [prompt], body.max_completion_tokens or body.max_tokens, top)
        if body.stream:
            return _events(_stream(api, body, found, chat=True, logprobs=body.logprobs))
        choices = []
        for index, (_running, piece) in enumerate(await _all(api, found, request)):
            choice = {
                "index": index,
                "message": {"role": "assistant", "content": piece.text, "refusal": None},
                "finish_reason": piece.finish,
                "logprobs": api.chat_logprobs(piece.tokens) if body.logprobs else None,
            }
            choices.append(choice)
        return JSONResponse(_answer(api, found, choices, chat=True, prompts=1))

    @app.post("/v1/completions", response_model=None)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        body.refuse_unsupported("suffix", "echo")
        if (body.model_extra or {}).get("best_of", 1) not in (1, body.n):
            raise ApiError(400, "best_of is not supported by this server: leave it out", param="best_of")
        api.check_model(body.model)
        prompts = [api.prompt_tokens(prompt) for prompt in body.prompts()]
        found = api.submit(body, prompts, body.max_tokens, body.logprobs or 0)
        wanted = body.logprobs is not None
        if body.stream:
            return _events(_stream(api, body, found, chat=False, logprobs=wanted))
        choices = []
        for index, (_running, piece) in enumerate(await _all(api, found, request)):
            logprobs = api.text_logprobs(piece.tokens) if wanted else None
            choices.append({"index": index, "text": piece.text, "finish_reason": piece.finish, "logprobs": logprobs})
        return JSONResponse(_answer(api, found, choices, chat=False, prompts=len(prompts)))

    @app.post("/score", response_model=None)
    async def score(body: ScoreRequest) -> Response:
        if api.scorer is None:
            raise ApiError(400, f"{api.served.name!r} is no reward model: it has no scores")
        api.check_model(body.model)
        scores, tokens = await asyncio.to_thread(api.scorer, body.all())
        data = [{"index": i, "score": value} for i, value in enumerate(scores)]
        return JSONResponse({"object": "list", "model": api.served.name, "data": data, "usage": usage(tokens, 0)})

    return app


def _read_key(config: ServeConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ValueError(f"api_key_env names {config.api_key_env}, but that environment variable is not set")
    return key


def _model(api: Api) -> dict[str, Any]:
    return {"id": api.served.name, "object": "model", "created": 0, "owned_by": "navarch"}


def _answer(
    api: Api, found: list[Running], choices: list[dict[str, Any]], *, chat: bool, prompts: int
) -> dict[str, Any]:
    """A whole answer; a prompt's tokens count once however many completions it has."""
    sent = sum(len(running.completion.prompt) for running in found[:: len(found) // prompts])
    made = sum(running.completion.generated for running in found)
    return {**identity(chat, False, api.served.name), "choices": choices, "usage": usage(sent, made)}


async def _all(api: Api, found: list[Running], request: Request) -> list[tuple[Running, Piece]]:
    """The final pieces of all completions; all are cancelled when the client goes or one fails."""
    gone = asyncio.create_task(until_gone(request))
    work = asyncio.gather(*(running.last() for running in found))
    try:
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client closed the connection")
        return list(zip(found, work.result(), strict=True))
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        _cancel(api, found)


def _cancel(api: Api, found: list[Running]) -> None:
    assert api.scheduler is not None
    for running in found:
        if not running.completion.done:
            api.scheduler.cancel(running.completion)


def _events(stream: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _stream(api: Api, body: Sampling, found: list[Running], *, chat: bool, logprobs: bool) -> AsyncIterator[str]:
    """Server-sent events of all completions as their pieces come, then usage if asked for, then [DONE]."""
    head = identity(chat, True, api.served.name)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    offsets = [0] * len(found)

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        blank = {"usage": None} if with_usage and "usage" not in more else {}
        return f"data: {json.dumps({**head, 'choices': choices, **blank, **more}, ensure_ascii=False)}\n\n"

    def choice(index: int, piece: Piece) -> dict[str, Any]:
        made: dict[str, Any] = {"index": index, "finish_reason": piece.finish, "logprobs": None}
        if chat:
            made["delta"] = {"content": piece.text} if piece.text else {}
            if logprobs:
                made["logprobs"] = api.chat_logprobs(piece.tokens)
        else:
            made["text"] = piece.text
            if logprobs:
                made["logprobs"] = api.text_logprobs(piece.tokens, offsets[index])
                offsets[index] += sum(len(text) for text in made["logprobs"]["tokens"])
        return made

    try:
        if chat:
            for index in range(len(found)):
                start = {"role": "assistant", "content": "", "refusal": None}
                yield event([{"index": index, "delta": start, "finish_reason": None, "logprobs": None}])
        arrivals: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

        async def forward(index: int, running: Running) -> None:
            while True:
                piece = await running.pieces.get()
                arrivals.put_nowait((index, piece))
                if piece.finish is not None:
                    return

        tasks = [asyncio.create_task(forward(i, running)) for i, running in enumerate(found)]
        try:
            left = len(found)
            while left:
                index, piece = await arrivals.get()
                if piece.finish in ("error", "abort"):
                    message = piece.error or "the server stopped before the completion was done"
                    yield f"data: {json.dumps(ApiError(500, message, kind='server_error').body)}\n\n"
                    return
                left -= piece.finish is not None
                if piece.text or piece.finish is not None or piece.tokens:
                    yield event([choice(index, piece)])
        finally:
            for task in tasks:
                task.cancel()
        if with_usage:
            sent = sum(len(running.completion.prompt) for running in found[:: body.n])
            yield event([], usage=usage(sent, sum(running.completion.generated for running in found)))
        yield "data: [DONE]\n\n"
    finally:
        _cancel(api, found)
