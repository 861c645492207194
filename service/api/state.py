"""What request handlers work with, made once when the application starts."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from service.api.sse import Shutdown
from service.jobs import Jobs
from service.settings import Settings
from service.ssh import KeyRing
from service.store.database import Database
from service.tokens import Tokens


@dataclass(frozen=True)
class ApiState:
    settings: Settings
    database: Database
    jobs: Jobs
    keys: KeyRing
    tokens: Tokens
    shutdown: Shutdown
    deployment: str


def state_of(request: Request) -> ApiState:
    state: ApiState = request.app.state.navarch
    return state


def actor_of(request: Request) -> str:
    """Who asks, as the gate found out."""
    return str(request.state.actor)
