"""What request handlers work with, made once when the application starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request
from sqlmodel import Session

from service.access.keys import KeyRing
from service.access.own_secrets import OwnSecrets
from service.access.people import People
from service.access.principals import Principal
from service.access.sessions import Sessions
from service.access.tokens import Tokens
from service.api.sse import Shutdown
from service.collector.curves import CurvesCache
from service.collector.line_index import LineIndexes
from service.collector.reader import LogReader
from service.intake.commands import Jobs
from service.intake.plans import Plans
from service.intake.workspaces import Workspaces
from service.runtime import Runtime
from service.settings import Settings
from service.store.database import Database
from service.store.rows import find_job
from service.store.tables import Job


@dataclass(frozen=True)
class ApiState:
    runtime: Runtime
    settings: Settings
    sessions: Sessions
    shutdown: Shutdown
    lines: LineIndexes = field(default_factory=LineIndexes)
    curves: CurvesCache = field(default_factory=CurvesCache)

    @property
    def database(self) -> Database:
        return self.runtime.database

    @property
    def keys(self) -> KeyRing:
        return self.runtime.keys

    @property
    def people(self) -> People:
        return self.runtime.people

    @property
    def secrets(self) -> OwnSecrets:
        return self.runtime.secrets

    @property
    def tokens(self) -> Tokens:
        return self.runtime.tokens

    @property
    def jobs(self) -> Jobs:
        return self.runtime.jobs

    @property
    def workspaces(self) -> Workspaces:
        return self.runtime.workspaces

    @property
    def plans(self) -> Plans:
        return self.runtime.plans

    @property
    def logs(self) -> LogReader:
        return self.runtime.logs


def state_of(request: Request) -> ApiState:
    state: ApiState = request.app.state.navarch
    return state


def job_of(request: Request, session: Session, ref: str) -> Job:
    """The job that somebody means by an id or a name. Raises Problem `job_not_found`."""
    return find_job(session, ref, principal_of(request).id)


def principal_of(request: Request) -> Principal:
    """Who asks, as the gate found out."""
    principal: Principal = request.state.principal
    return principal
