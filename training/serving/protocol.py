"""The OpenAI API's requests, answers and errors, as far as one text model can serve them."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from training.config.generation import GenerationConfig
from training.data.messages import RowError, read_message
from training.serving.messages import TOP_LOGPROBS


class ApiError(Exception):
    """Becomes {"error": {message, type, param, code}} with an HTTP status, as OpenAI's clients expect."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


class Strict(BaseModel):
    """Refuses fields that it doesn't know: what would change nothing must not look as if it did."""

    model_config = ConfigDict(extra="forbid")


class Message(Strict):
    """A turn, as OpenAI writes it; `reasoning_content` is what other servers call an assistant's thoughts."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None

    def turn(self, place: str) -> dict[str, Any]:
        """The message as templates read it. Raises ApiError naming what a text model can't take."""
        facts = self.model_dump(exclude_none=True)
        if self.role == "assistant":
            facts.setdefault("content", "")
        try:
            return read_message(facts, place)
        except RowError as error:
            raise ApiError(400, str(error), param="messages") from None


def turns(messages: list[Message], name: str = "messages") -> list[dict[str, Any]]:
    return [message.turn(f"{name}[{number}]") for number, message in enumerate(messages)]


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(Strict):
    """What chat and plain completions share. `top_k`, `min_p`, `repetition_penalty`, `ignore_eos` are extras.

    The last ones say nothing to a server like this one, which keeps no accounts, caches or stores.
    """

    model: str | None = None
    temperature: float = Field(default=1.0, ge=0, le=10)
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    ignore_eos: bool = False
    n: int = Field(default=1, ge=1, le=64)
    stop: Annotated[list[str], BeforeValidator(_as_list)] = []
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = 0
    frequency_penalty: float | None = 0
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    def refuse_unsupported(self, *names: str) -> None:
        """Raises ApiError for an option that would change the answer but that this server does not have."""
        for name in ("presence_penalty", "frequency_penalty", "logit_bias", *names):
            value = getattr(self, name)
            if value and value not in ("none", {"type": "text"}):
                raise ApiError(400, f"{name} is not supported by this server: leave it out", param=name)

    def generation(self, max_new_tokens: int) -> GenerationConfig:
        if len(self.stop) > 16 or any(not text for text in self.stop):
            raise ApiError(400, "stop takes at most 16 strings, none of them empty", param="stop")
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(self.stop),
        )


class ChatRequest(Sampling):
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=TOP_LOGPROBS)
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None

    def check(self) -> None:
        """Raises ApiError for what can't be done as it is asked."""
        self.refuse_unsupported("tools", "functions", "response_format", "tool_choice", "function_call")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")


class CompletionRequest(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=TOP_LOGPROBS)
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    def check(self) -> None:
        """Raises ApiError for what can't be done as it is asked."""
        self.refuse_unsupported("suffix", "echo")
        if self.best_of not in (None, 1, self.n):
            raise ApiError(400, "best_of is not supported by this server: leave it out", param="best_of")

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ApiError(400, "prompt is an empty list: give at least one text", param="prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class ScoreRequest(Strict):
    """Conversations for a reward model: one as `messages`, or several as `conversations`."""

    model: str | None = None
    messages: list[Message] | None = None
    conversations: list[list[Message]] | None = None

    def all(self) -> list[list[dict[str, Any]]]:
        if (self.messages is None) == (self.conversations is None):
            raise ApiError(400, "give either messages (one conversation) or conversations (several)", param="messages")
        found = [self.messages] if self.messages is not None else self.conversations or []
        if not found or any(not messages for messages in found):
            raise ApiError(400, "a conversation has no messages", param="conversations")
        return [turns(messages) for messages in found]


def identity(chat: bool, chunk: bool, model: str) -> dict[str, Any]:
    """The head of an answer (or of every event of a stream)."""
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
    prefix = "chatcmpl" if chat else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
