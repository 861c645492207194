"""The HTTP side of the model server: OpenAI's routes over the decoder process, reward scores, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from training.config.serving import ServeConfig
from training.config.tree import nearest
from training.data.template import TextCodec
from training.errors import DataError
from training.serving.answers import Shape, Text, Whole, event
from training.serving.decoder_client import DecoderClient, Request
from training.serving.messages import Ask, Facts
from training.serving.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    Sampling,
    ScoreRequest,
    identity,
    turns,
    usage,
)
from training.serving.spelling import Speller, Spelling

Body = TypeVar("Body", bound=BaseModel)
Handler = Callable[[HttpRequest], Awaitable[Response]]
OPEN_PATHS = ("/health", "/metrics")
"""Answered without a key: probes have none."""


def answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(content, status, headers, "application/json")


class Api:
    """What the routes share: the model's codec and the way to the decoder."""

    def __init__(self, config: ServeConfig, codec: TextCodec, client: DecoderClient) -> None:
        self.config, self.codec, self.client = config, codec, client
        self.spelling = Spelling(codec)

    # --- from a request's body to completions

    async def parse(self, request: HttpRequest, kind: type[Body]) -> Body:
        """Raises ApiError 400 that names the first field that is wrong, or that this server doesn't know."""
        try:
            return kind.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            param = ".".join(str(part) for part in first["loc"]) or None
            message = f"{param}: {first['msg']}" if param else str(first["msg"])
            if first["type"] == "extra_forbidden":
                message = f"unknown field {param}"
                if len(first["loc"]) == 1:
                    message = f"{message}.{nearest(str(param), list(kind.model_fields))}"
            raise ApiError(400, message, param=param) from None

    def check_model(self, name: str | None) -> Facts:
        facts = self.client.check()
        if name is not None and name != facts.name:
            why = f"the model {name!r} does not exist: this server has {facts.name!r}"
            raise ApiError(404, why, param="model", code="model_not_found")
        return facts

    def prompt_tokens(self, prompt: str | list[int], facts: Facts) -> list[int]:
        if isinstance(prompt, str):
            tokens: list[int] = self.codec.tokenizer(prompt)["input_ids"]
            return tokens or [self.codec.eos_id]
        if not prompt or any(not 0 <= token < facts.vocabulary for token in prompt):
            raise ApiError(400, f"prompt holds token ids outside 0 to {facts.vocabulary - 1}, or none", param="prompt")
        return list(prompt)

    def budget(self, prompt: list[int], asked: int | None, facts: Facts, param: str) -> int:
        """New tokens that a request gets; ApiError when it can't have what it asks for."""
        room = facts.max_length - len(prompt)
        if room < 1 or (asked is not None and asked > room):
            wanted = f"{len(prompt)} in the prompt" + (f" and {asked} for the completion" if asked is not None else "")
            why = f"this server's context is {facts.max_length} tokens; the request has {wanted}: shorten it"
            raise ApiError(400, why, param=param, code="context_length_exceeded")
        return asked if asked is not None else min(room, self.config.max_new_tokens)

    async def submit(
        self, body: Sampling, prompts: list[list[int]], asked: int | None, facts: Facts, *, logprobs: bool, top: int
    ) -> Request:
        """Queue `n` completions of each prompt, all or none."""
        if facts.reward:
            raise ApiError(400, f"{facts.name!r} is a reward model: it scores at /score, it does not complete")
        stop_ids = () if body.ignore_eos else self.codec.stop_ids
        live, now = body.stream or bool(body.stop), time.monotonic()
        asks = []
        for prompt in prompts:
            param = "messages" if isinstance(body, ChatRequest) else "prompt"
            generation = body.generation(self.budget(prompt, asked, facts, param))
            asks += [
                Ask(0, prompt, generation, stop_ids, body.seed, choice, live, logprobs, top, now)
                for choice in range(body.n)
            ]
        request = self.client.submit(asks)
        try:
            await request.accepted()
        except asyncio.CancelledError:
            request.cancel()
            raise
        return request

    # --- from completions to an answer

    async def reply(self, http: HttpRequest, body: Sampling, request: Request, shape: Shape, facts: Facts) -> Response:
        if body.stream:
            events = self._events(body, request, shape, facts)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        collecting = asyncio.ensure_future(self._collect(body, request, shape))
        gone = asyncio.ensure_future(until_gone(http))
        try:
            await asyncio.wait({collecting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=499)  # nobody reads it
            choices, made = collecting.result()
        finally:
            collecting.cancel()
            gone.cancel()
            request.cancel()
        counted = usage(self._sent(body, request), made)
        return answer({**identity(shape.chat, False, facts.name), "choices": choices, "usage": counted})

    async def _collect(self, body: Sampling, request: Request, shape: Shape) -> tuple[list[dict[str, Any]], int]:
        """All choices, and the number of tokens that they have."""
        texts = [self._text(body, shape) for _ in request.asks]
        wholes = [Whole() for _ in texts]
        left = len(texts)
        while left:
            index, update = await request.next()
            if wholes[index].finish is not None:
                continue
            wholes[index].add(texts[index].add(update))
            if wholes[index].finish is not None:
                left -= 1
                request.cancel(index)
        choices = [shape.choice(index, whole) for index, whole in enumerate(wholes)]
        return choices, sum(text.generated for text in texts)

    async def _events(self, body: Sampling, request: Request, shape: Shape, facts: Facts) -> AsyncIterator[str]:
        """Server-sent events of all completions as their pieces come, then usage if asked for, then [DONE]."""
        head = identity(shape.chat, True, facts.name)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        if with_usage:
            head["usage"] = None
        texts = [self._text(body, shape) for _ in request.asks]
        finished: set[int] = set()
        try:
            if shape.chat:
                for index in range(len(texts)):
                    yield event({**head, "choices": [shape.opening(index)]})
            while len(finished) < len(texts):
                index, update = await request.next()
                if index in finished:
                    continue
                piece = texts[index].add(update)
                if piece.finish is not None:
                    finished.add(index)
                    request.cancel(index)
                if piece.text or piece.tokens or piece.finish is not None:
                    yield event({**head, "choices": [shape.delta(index, piece)]})
            if with_usage:
                counted = usage(self._sent(body, request), sum(text.generated for text in texts))
                yield event({**head, "choices": [], "usage": counted})
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield event(error.body)
        finally:
            request.cancel()

    def _text(self, body: Sampling, shape: Shape) -> Text:
        return Text(self.codec.decode, tuple(body.stop), Speller(self.spelling) if shape.logprobs else None)

    def _sent(self, body: Sampling, request: Request) -> int:
        """Prompt tokens; a prompt's count once however many completions it has."""
        return sum(len(ask.prompt) for ask in request.asks[:: body.n])

    # --- routes

    async def chat(self, http: HttpRequest) -> Response:
        body = await self.parse(http, ChatRequest)
        body.check()
        facts = self.check_model(body.model)
        prompt = self.codec.encode_prompt(turns(body.messages))
        asked = body.max_completion_tokens or body.max_tokens
        top = body.top_logprobs if body.logprobs else 0
        request = await self.submit(body, [prompt], asked, facts, logprobs=body.logprobs, top=top)
        return await self.reply(http, body, request, Shape(chat=True, logprobs=body.logprobs), facts)

    async def complete(self, http: HttpRequest) -> Response:
        body = await self.parse(http, CompletionRequest)
        body.check()
        facts = self.check_model(body.model)
        prompts = [self.prompt_tokens(prompt, facts) for prompt in body.prompts()]
        logprobs = body.logprobs is not None
        top = body.logprobs or 0
        request = await self.submit(body, prompts, body.max_tokens, facts, logprobs=logprobs, top=top)
        return await self.reply(http, body, request, Shape(chat=False, logprobs=logprobs), facts)

    async def score(self, http: HttpRequest) -> Response:
        body = await self.parse(http, ScoreRequest)
        facts = self.check_model(body.model)
        if not facts.reward:
            raise ApiError(400, f"{facts.name!r} is no reward model: it has no scores")
        documents = [encoded.tokens.tolist() for encoded in self.codec.encode_chats(body.all())]
        longest = max(len(tokens) for tokens in documents)
        if longest > facts.max_length:
            why = f"a conversation has {longest} tokens; this model takes {facts.max_length}: shorten it"
            raise ApiError(400, why, param="messages", code="context_length_exceeded")
        scores = await self.client.score(documents)
        data = [{"index": i, "score": value} for i, value in enumerate(scores)]
        counted = usage(sum(map(len, documents)), 0)
        return answer({"object": "list", "model": facts.name, "data": data, "usage": counted})

    async def health(self, http: HttpRequest) -> Response:
        if self.client.failure is not None:
            return answer({"status": "failed", "error": self.client.failure}, 503)
        if self.client.facts is None:
            return answer({"status": "starting"}, 503)
        status = await self.client.query("status")
        facts = {"status": "ok" if status.ready else "starting", "model": self.client.facts.name}
        return answer({**facts, "running": status.running, "waiting": status.waiting}, 200 if status.ready else 503)

    async def metrics(self, http: HttpRequest) -> Response:
        return Response(await self.client.query("metrics"), media_type="text/plain; version=0.0.4")

    async def models(self, http: HttpRequest) -> Response:
        return answer({"object": "list", "data": [_model(self.client.check())]})

    async def model(self, http: HttpRequest) -> Response:
        return answer(_model(self.check_model(http.path_params["name"])))


def _model(facts: Facts) -> dict[str, Any]:
    return {"id": facts.name, "object": "model", "created": 0, "owned_by": "navarch"}


async def until_gone(request: HttpRequest) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(api: Api) -> Starlette:
    """The application. Raises ValueError when the configured key's variable is not set."""
    key = read_key(api.config)

    def guarded(handle: Handler) -> Handler:
        async def run(request: HttpRequest) -> Response:
            sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            known = key is None or hmac.compare_digest(sent.encode(), key.encode())
            if not known and request.url.path not in OPEN_PATHS:
                why = "a wrong API key, or none, was sent"
                raise ApiError(401, why, kind="authentication_error", code="invalid_api_key")
            return await handle(request)

        return run

    async def api_error(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer(error.body, error.status, error.headers)

    async def http_error(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(ApiError(error.status_code, str(error.detail)).body, error.status_code)

    async def data_error(_: HttpRequest, error: Exception) -> Response:
        return answer(ApiError(400, str(error), param="messages").body, 400)

    async def unforeseen(_: HttpRequest, error: Exception) -> Response:
        return answer(ApiError(500, f"{type(error).__name__}: {error}", kind="server_error").body, 500)

    routes = [
        Route("/v1/chat/completions", guarded(api.chat), methods=["POST"]),
        Route("/v1/completions", guarded(api.complete), methods=["POST"]),
        Route("/v1/models", guarded(api.models)),
        Route("/v1/models/{name:path}", guarded(api.model)),
        Route("/score", guarded(api.score), methods=["POST"]),
        Route("/health", guarded(api.health)),
        Route("/metrics", guarded(api.metrics)),
    ]
    handlers: dict[Any, Any] = {
        ApiError: api_error, HTTPException: http_error, DataError: data_error, Exception: unforeseen,
    }  # fmt: skip
    return Starlette(routes=routes, exception_handlers=handlers)


def read_key(config: ServeConfig) -> str | None:
    """The key that clients must send, or None. Raises ValueError when its variable is not set."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ValueError(f"api_key_env names {config.api_key_env}, but that environment variable is not set")
    return key
