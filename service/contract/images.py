"""Images as the REST API sends and takes them: recipes, builds, commits of workspaces, pushes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contract.schemas import FINISHED_STATES, Schema


class BuildRequest(BaseModel):
    """What image to build from which recipe."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = Field(min_length=1, max_length=200)
    tag: str | None = Field(default=None, max_length=256, description="default: navarch/RECIPE")
    base: str | None = Field(default=None, max_length=256, description="instead of the recipe's base image")
    wheelhouse: str | None = Field(default=None, max_length=4096, description="folder with wheels, on this machine")
    index_url: str | None = Field(default=None, max_length=2048, description="a Python package index to use")
    extra_index_urls: list[Annotated[str, Field(max_length=2048)]] = Field(
        default_factory=list, max_length=20, description="further package indexes"
    )
    trusted_hosts: list[Annotated[str, Field(max_length=300)]] = Field(
        default_factory=list, max_length=20, description="hosts that pip may ask over http"
    )
    torch_index_url: str | None = Field(
        default=None, max_length=2048, description="where torch comes from; default: PyTorch's own for the recipe"
    )
    apt_mirror: str | None = Field(default=None, max_length=2048, description="a Debian/Ubuntu mirror to use")
    ca_bundle: str | None = Field(default=None, max_length=4096, description="PEM file that re-signed TLS needs")
    target: Literal["training", "system"] = Field(
        default="training", description="system: SSH and the entrypoint only, for jobs that bring their own command"
    )
    no_cache: bool = False


class Build(Schema):
    """One image build."""

    id: str
    recipe: str
    tag: str
    state: str
    message: str | None = None
    ahead: int = Field(default=0, description="builds that have to end before this one goes on")
    image: str | None = Field(default=None, description="digest of what was built")
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED_STATES


class Recipe(Schema):
    """How to make one image."""

    name: str
    base: str
    description: str = ""
    tag: str = Field(description="what a build is called unless it is given a tag")


class Image(Schema):
    """An image that Navarch can run, by digest."""

    id: str
    tags: list[str]
    recipe: str | None = None
    size: int
    created_at: float
    labels: dict[str, str] = Field(default_factory=dict)


class CommitRequest(BaseModel):
    """Of which workspace an image is to be made, and what it is to be called."""

    model_config = ConfigDict(extra="forbid")

    workspace: str = Field(min_length=1, max_length=100, description="name or id")
    tag: str = Field(min_length=1, max_length=400, description="such as registry:5000/team/colossalai:0.3.0")


class Committed(Schema):
    """An image that was made of a workspace."""

    id: str
    tag: str
    size: int = Field(description="bytes that it adds to the image that the workspace was made of")
    left_out: list[str] = Field(default_factory=list, description="files that stay out: they held secrets or keys")
    not_included: list[str] = Field(default_factory=list, description="mounts, such as the home: no part of any image")


class PushRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1, max_length=400)
    to: str = Field(default="", max_length=400, description="another name; empty: the image's own")


class Pushed(Schema):
    digest: str = Field(description="repository@sha256:…")


class PullRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1, max_length=400)


class TagRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1, max_length=400)
    tag: str = Field(min_length=1, max_length=400)


class ImportRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, max_length=4096, description="a .tar file on the control plane's machine")


class Imported(Schema):
    images: list[str]


class RegistryRequest(BaseModel):
    """A login, which is tried before it is kept."""

    model_config = ConfigDict(extra="forbid")

    username: str = Field(min_length=1, max_length=200)
    password: str = Field(min_length=1, max_length=20_000)


class Registry(Schema):
    """A registry at which this control plane is logged in; nothing ever shows the password."""

    address: str
    username: str
    set_at: float
