"""What a backend's refusal means for the attempt: a reason, a sentence, whether another try makes sense. Pure."""

from jobs.spec import JobSpec
from jobs.states import Reason
from jobs.workspace import WorkspaceSpec
from service.backends.errors import (
    GpuUnavailable,
    ImageMissing,
    ImageUnsuitable,
    MountRefused,
    NoSpace,
    PortTaken,
    Refused,
)
from service.control.outcome import Outcome


def refused(error: Refused, spec: JobSpec | WorkspaceSpec) -> Outcome:
    """How the attempt, or the start of a workspace, ends that asked for it."""
    match error:
        case PortTaken():
            named = error.port in spec.fixed_ports
            which = f"port {error.port}" if error.port else "a port"
            advice = "; choose another, or auto:PORT to get one from the pool" if named else ""
            message = f"{which} of the host is used by another program{advice}"
            return Outcome(Reason.PORT_UNAVAILABLE, message, final=named)
        case GpuUnavailable():
            asked = "is the NVIDIA Container Toolkit installed there?"
            message = f"the engine can't give GPUs to containers ({error}); {asked}"
            return Outcome(Reason.GPU_UNAVAILABLE, message)
        case ImageMissing():
            return Outcome(Reason.IMAGE_UNAVAILABLE, str(error))
        case ImageUnsuitable():
            return Outcome(Reason.IMAGE_UNSUITABLE, str(error), final=True)
        case NoSpace():
            return Outcome(Reason.NO_SPACE, f"the engine's disk is full: {error}", final=True)
        case MountRefused():
            return Outcome(Reason.MISSING_INPUT if error.missing else Reason.BAD_CONFIG, str(error), final=True)
        case _:
            return Outcome(Reason.ENGINE_REFUSED, f"the engine refused the container: {error}", final=True)
