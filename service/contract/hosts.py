"""What is sent to add hosts and to change them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$")]
Port = Annotated[int, Field(ge=1024, le=65535)]
Folder = Annotated[str, Field(pattern=r"^/[^\x00]+$", max_length=1000)]


class HostSettings(BaseModel):
    """What can be said of a host when it is added, and changed later."""

    model_config = ConfigDict(extra="forbid")

    cluster_address: IPvAnyAddress | None = Field(default=None, description="where the other hosts find it")
    interface: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._@-]{1,15}$", description="the network interface with that address"
    )
    labels: dict[Label, Label] = Field(default_factory=dict, max_length=50)
    ports: tuple[Port, Port] | None = Field(default=None, description="first and last port that jobs get from its pool")
    shared_root: Folder | None = Field(default=None, description="a folder that all hosts with the same one share")


class HostRequest(HostSettings):
    """A host to be added."""

    name: Name
    url: str = Field(max_length=500, description="ssh://user@address[:port]")
    key: str | None = Field(
        default=None,
        max_length=20_000,
        description="the private SSH key that logs in there; else the control plane's own",
    )
    fingerprint: str | None = Field(
        default=None, max_length=100, description="SHA256:…: the SSH host key that is expected; else the one it shows"
    )


class HostChange(HostSettings):
    """What of a host is to be another one; what isn't sent stays."""

    state: Literal["active", "draining"] | None = None
    fingerprint: str | None = Field(
        default=None, max_length=100, description="SHA256:…: the SSH host key that it has now, which is pinned anew"
    )
