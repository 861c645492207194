"""What a job will leave when it ends well, known before it has begun: artifacts called JOB-model and JOB-adapter."""

from collections.abc import Mapping

from jobs.spec import JobSpec, JobType

KINDS = ("model", "adapter")


def leaves(spec: JobSpec) -> frozenset[str]:
    """The kinds of artifacts that the training exports at its end; nothing is known of other jobs."""
    if not spec.type.trains or spec.type is JobType.SERVE:
        return frozenset()
    lora = spec.training.get("lora")
    if lora is None:
        return frozenset({"model"})
    merged = spec.type is JobType.RM or not isinstance(lora, Mapping) or lora.get("merge", True)
    return frozenset({"model", "adapter"} if merged else {"adapter"})


def maker_of(artifact: str) -> tuple[str, str] | None:
    """("sft", "model") for sft-model: which job would leave an artifact of this name, and as what."""
    job, _, kind = artifact.rpartition("-")
    return (job, kind) if job and kind in KINDS else None
