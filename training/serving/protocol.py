"""The OpenAI API's requests, answers and errors, as far as one text model can serve them."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from training.config.generation import GenerationConfig
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


def _content_text(value: Any) -> Any:
    """Message content as one string: OpenAI also allows a list of text parts."""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        return "".join(str(part.get("text", "")) for part in value)
    return value


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content_text)]

    def turn(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Sampling(BaseModel):
    """What chat and plain completions share. `top_k`, `repetition_penalty`, `ignore_eos` are extras."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    temperature: float = Field(default=1.0, ge=0, le=10)
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)
    ignore_eos: bool = False
    n: int = Field(default=1, ge=1, le=64)
    stop: Annotated[list[str], BeforeValidator(_as_list)] = []
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: float | None = 0
    frequency_penalty: float | None = 0
    logit_bias: dict[str, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    def refuse_unsupported(self, *names: str) -> None:
        """Raises ApiError for an option that would change the answer but that this server does not have."""
        extra = self.model_extra or {}
        for name in ("presence_penalty", "frequency_penalty", "logit_bias", *names):
            value = getattr(self, name, None) or extra.get(name)
            if value and value != "none":
                raise ApiError(400, f"{name} is not supported by this server: leave it out", param=name)

    def generation(self, max_new_tokens: int) -> GenerationConfig:
        if len(self.stop) > 16 or any(not text for text in self.stop):
            raise ApiError(400, "stop takes at most 16 strings, none of them empty", param="stop")
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(self.stop),
        )


class ChatRequest(Sampling):
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=TOP_LOGPROBS)


class CompletionRequest(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=TOP_LOGPROBS)
    echo: bool = False

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ApiError(400, "prompt is an empty list: give at least one text", param="prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class ScoreRequest(BaseModel):
    """Conversations for a reward model: one as `messages`, or several as `conversations`."""

    model: str | None = None
    messages: list[Message] | None = None
    conversations: list[list[Message]] | None = None

    def all(self) -> list[list[dict[str, str]]]:
        if (self.messages is None) == (self.conversations is None):
            raise ApiError(400, "give either messages (one conversation) or conversations (several)", param="messages")
        found = [self.messages] if self.messages is not None else self.conversations or []
        if not found or any(not turns for turns in found):
            raise ApiError(400, "a conversation has no messages", param="conversations")
        return [[message.turn() for message in turns] for turns in found]


def identity(chat: bool, chunk: bool, model: str) -> dict[str, Any]:
    """The head of an answer (or of every event of a stream)."""
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
    prefix = "chatcmpl" if chat else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
