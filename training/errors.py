"""What can go wrong in training, each with an event kind and an exit code that tells user fault from system fault."""

from __future__ import annotations

import errno


class TrainingError(Exception):
    """Base of every failure that has a name; `str(error)` is a sentence for the user."""

    kind = "internal"
    exit_code = 70


class ConfigError(TrainingError):
    """The configuration or the command line is wrong."""

    kind = "bad_config"
    exit_code = 64


class DataError(TrainingError):
    """A data file was read but its content can't be used; the message names file and line."""

    kind = "bad_data"
    exit_code = 65


class MissingInput(TrainingError):
    """A model, data set or checkpoint that the configuration names isn't there."""

    kind = "missing_input"
    exit_code = 66


class RankFailed(TrainingError):
    """Another rank died or stopped answering."""

    kind = "rank_failed"
    exit_code = 70


class WriteFailed(TrainingError):
    """A checkpoint or model could not be written; what was saved before is untouched."""

    kind = "no_space"
    exit_code = 74


class Stopped(TrainingError):
    """SIGTERM came; a checkpoint was saved and the run can be resumed."""

    kind = "stopped"
    exit_code = 75


class NanLoss(TrainingError):
    """The loss or the gradient norm stopped being a number."""

    kind = "nan_loss"
    exit_code = 76


class OutOfMemory(TrainingError):
    """The accelerator's memory ran out."""

    kind = "cuda_out_of_memory"
    exit_code = 70


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_NO_SPACE_WORDS = ("no space left", "disk quota exceeded", "file write failed")
_COLLECTIVE_WORDS = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "timed out waiting",
    "nccl",
    "gloo",
)


def as_training_error(error: BaseException) -> TrainingError:
    """Gives any exception its name: itself when it has one, else the nearest class by type, errno or message."""
    if isinstance(error, TrainingError):
        return error
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    lowered = text.lower()
    name = type(error).__name__
    if name == "OutOfMemoryError" or "cuda out of memory" in lowered:
        first_line = str(error).split("\n")[0]
        return OutOfMemory(
            f"The GPU's memory ran out: {first_line} Lower train.tokens_per_batch or train.batch_size (and raise "
            "train.accumulate by as much), set train.activation_checkpointing, or use a sharded strategy."
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return WriteFailed(f"Could not write {error.filename or 'a file'}: {error.strerror}. Free space and resume.")
    if any(words in lowered for words in _NO_SPACE_WORDS):
        return WriteFailed(f"Could not write a file: {text}. Free space and resume.")
    if isinstance(error, FileNotFoundError):
        return MissingInput(f"{error.filename or error} does not exist.")
    if name in ("DistBackendError", "DistNetworkError") or (
        isinstance(error, RuntimeError) and any(words in lowered for words in _COLLECTIVE_WORDS)
    ):
        return RankFailed(f"Lost contact with another rank: {text.splitlines()[0]}")
    return TrainingError(text)
