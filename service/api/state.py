"""What request handlers work with, made once when the application starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from service.access.keys import KeyRing
from service.access.principals import Principal
from service.access.sessions import Sessions
from service.access.tokens import Tokens
from service.api.sse import Shutdown
from service.collector.curves import CurvesCache
from service.collector.line_index import LineIndexes
from service.collector.reader import LogReader
from service.intake.commands import Jobs
from service.intake.plans import Plans
from service.runtime import Runtime
from service.settings import Settings
from service.store.database import Database


@dataclass(frozen=True)
class ApiState:
    runtime: Runtime
    settings: Settings
    keys: KeyRing
    tokens: Tokens
    sessions: Sessions
    shutdown: Shutdown
    lines: LineIndexes = field(default_factory=LineIndexes)
    curves: CurvesCache = field(default_factory=CurvesCache)

    @property
    def database(self) -> Database:
        return self.runtime.database

    @property
    def jobs(self) -> Jobs:
        return self.runtime.jobs

    @property
    def plans(self) -> Plans:
        return self.runtime.plans

    @property
    def logs(self) -> LogReader:
        return self.runtime.logs


def state_of(request: Request) -> ApiState:
    state: ApiState = request.app.state.navarch
    return state


def actor_of(request: Request) -> str:
    """The name of who asks, as the gate found out."""
    return principal_of(request).name


def principal_of(request: Request) -> Principal:
    """Who asks, as the gate found out."""
    principal: Principal = request.state.principal
    return principal
