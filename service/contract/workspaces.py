"""Workspaces as the REST API sends and takes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contract.schemas import Schema, SshAccess

AT_REST = frozenset({"stopped", "failed"})

Fate = Literal["keep", "delete"]
"""What becomes of a workspace's home when it is removed."""


class Workspace(Schema):
    """A long-lived container for a person. Name, host, ports, host key and home stay until it is removed."""

    id: str
    name: str
    state: str = Field(description="starting, running, stopping, stopped, failed or removing")
    reason: str | None = Field(default=None, description="why it is in this state, for machines")
    message: str | None = Field(default=None, description="why it is in this state, for people")
    owner: str = ""
    spec: dict[str, Any]
    image: str
    host: str
    gpus: list[str] = Field(default_factory=list, description="UUIDs of the GPUs that it holds now")
    ports: dict[str, int] = Field(default_factory=dict, description="container port → host port")
    container: str = Field(description="the name of its container on the host")
    home: str = Field(description="the host's folder, or the volume, that is /root in it")
    ssh: SshAccess = Field(description="where its sshd answers while it runs; the same for life")
    created_at: float
    started_at: float | None = Field(default=None, description="when it was last asked to start")
    ready_at: float | None = Field(default=None, description="since when it can be used; null while it can't")
    runs_until: float | None = Field(default=None, description="when it is stopped, by its `max`")
    unreachable_since: float | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing is under way with it."""
        return self.state in AT_REST or self.state == "running"


class StartRequest(BaseModel):
    """How a workspace is to start."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[str, Field(min_length=1, max_length=400)] | None = Field(
        default=None, description="another image; needs `switch`"
    )
    switch: bool = Field(
        default=False,
        description="make its container anew: address and home stay, what was installed elsewhere in it goes",
    )


class IdeBlock(Schema):
    """What to type into an IDE, or to open, to work in a workspace."""

    name: str
    text: str
    link: str | None = Field(default=None, description="opens it by itself")


class IdeBlocks(Schema):
    items: list[IdeBlock]


class ExtendRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    by: float = Field(gt=0, le=366 * 86400, description="seconds")
