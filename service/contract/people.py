"""People, their tokens and their SSH keys as the REST API sends and takes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contract.schemas import Schema

Role = Literal["admin", "member"]
UserName = Annotated[str, Field(max_length=100)]


class Quota(BaseModel):
    """The most that somebody may hold at once; what is left out, or null, has no limit."""

    model_config = ConfigDict(extra="forbid")

    gpus: int | None = Field(default=None, ge=0, le=100_000)
    workspaces: int | None = Field(default=None, ge=0, le=100_000)
    jobs: int | None = Field(default=None, ge=0, le=100_000, description="that run; others wait in the queue")
    disk: int | None = Field(default=None, ge=0, le=1 << 60, description="bytes of jobs' folders and kept artifacts")


class UserRequest(BaseModel):
    """Somebody who is to use this control plane."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=40)
    role: Role = "member"
    quota: Quota = Field(default_factory=Quota)


class UserChange(BaseModel):
    """What is to be another; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    role: Role | None = None
    quota: Quota | None = Field(default=None, description="a limit that it leaves out stays; null lifts one")


class User(Schema):
    """Somebody who uses this control plane, and what they hold now."""

    name: str
    role: str
    created_at: float
    quota: Quota = Field(default_factory=Quota)
    gpus: int = Field(default=0, description="GPUs that they hold now")
    workspaces: int = 0
    jobs: int = Field(default=0, description="their jobs that run now")
    holds: list[str] = Field(default_factory=list, description="what has those GPUs")
    token: str | None = Field(default=None, description="their first token: only the answer that made the user has it")


class TokenRequest(BaseModel):
    """What a token is for."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=40)
    user: UserName = Field(default="", description="whose it is to be; an admin's word, by default one's own")
    lasts: float | None = Field(default=None, gt=0, le=10 * 366 * 86400, description="seconds; null: for ever")


class Token(Schema):
    """A token, without its secret; `token` holds that once, in the answer that made it."""

    name: str
    user: str = ""
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = Field(default=None, description="to the minute or so")
    token: str | None = None


class Tokens(Schema):
    items: list[Token]


class Key(Schema):
    """A public key that containers authorise."""

    fingerprint: str
    type: str
    comment: str
    public_key: str
    user: str = ""
    everywhere: bool = Field(default=False, description="in everybody's containers, not only in their own")


class KeyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    public_key: str = Field(min_length=1, max_length=16384, description="one line, as in id_ed25519.pub")
    user: UserName = Field(default="", description="whose it is; an admin's word, by default one's own")
    everywhere: bool = Field(default=False, description="authorise it in everybody's containers; an admin's word")


class SecretRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    value: str = Field(min_length=1, max_length=65536)


class Secret(Schema):
    """A secret of one's own: its name; nothing ever shows its value."""

    name: str
    set_at: float


class Secrets(Schema):
    items: list[Secret]
