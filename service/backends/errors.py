"""What a backend can refuse, told apart by what has to be done about it."""


class EngineError(Exception):
    """The engine refused something, with its own words. It may do it the next time."""


class Unreachable(EngineError):
    """The engine doesn't answer: nothing is known about what it runs."""


class Cancelled(Exception):
    """Somebody asked that it should not go on."""


class Refused(EngineError):
    """Asking again would get the same answer."""


class BadContainer(Refused):
    """The engine refuses the container itself: a mount, a limit, a command that isn't there."""


class ContainerGone(EngineError):
    """The container isn't there any more."""


class ImageMissing(Refused):
    """The image isn't on the host and couldn't be got."""


class ImageUnsuitable(Refused):
    """The image is there and can't run this job."""


class PortTaken(Refused):
    """A host port is used by something else."""

    def __init__(self, message: str, port: int | None) -> None:
        super().__init__(message)
        self.port = port


class GpuUnavailable(Refused):
    """The engine can't hand GPUs to containers, or not these."""


class NoSpace(Refused):
    """The engine's disk is full."""


class MountRefused(Refused):
    """What a mount names may not be mounted now, or is not there (`missing`)."""

    def __init__(self, message: str, hint: str | None, *, missing: bool) -> None:
        super().__init__(f"{message} {hint or ''}".strip())
        self.missing = missing


class NameTaken(EngineError):
    """A container of this name exists and is another one's."""

    def __init__(self, message: str, container_id: str) -> None:
        super().__init__(message)
        self.container_id = container_id
