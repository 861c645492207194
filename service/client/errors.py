"""What the client raises: the control plane refused, or it could not be reached."""

from __future__ import annotations

from service.contract.schemas import ProblemDocument


class ClientError(Exception):
    """Base of what the client raises; `hint` says what to do next."""

    hint: str | None = None


class ApiError(ClientError):
    """The control plane answered with a problem document."""

    def __init__(self, problem: ProblemDocument) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.hint = problem.hint

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def status(self) -> int:
        return self.problem.status


class Unreachable(ClientError):
    """Nothing answered at the control plane's address."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(f"No control plane answers at {url} ({cause}).")
        self.url = url
        self.hint = "Start it with `navarch up`, or point NAVARCH_URL at the one that runs."
