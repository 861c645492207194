"""The Hugging Face hub, or the mirror that HF_ENDPOINT names: why it did not give a model (no torch)."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from training.errors import MissingInput

HUB_PREFIX = "hf:"


CONNECT_S, ANSWER_S = 4.0, 10.0
"""How long a hub may take to be reached and to say anything at all; huggingface_hub by itself tries for a minute."""


@cache
def reach_hub() -> bool:
    """Whether the hub answers, asked once in a process; where it doesn't, only what the cache holds is used."""
    import requests
    from huggingface_hub import constants
    from huggingface_hub.utils import reset_sessions

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        requests.head(constants.ENDPOINT, timeout=(CONNECT_S, ANSWER_S))
    except requests.RequestException:
        print(f"{constants.ENDPOINT} does not answer: only what is cached can be used.", file=sys.stderr, flush=True)
        constants.HF_HUB_OFFLINE = True
        reset_sessions()
        return False
    return True


def model_file(source: str, name: str) -> Path | None:
    """A file of a model's folder or hub repository (its id without `hf:`); None where there is none to be had."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )  # fmt: skip
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


def hub_refusal(path: str, error: BaseException) -> MissingInput | None:
    """What to tell when loading `hf:org/name` failed because of the hub; None when the cause lies elsewhere."""
    if not path.startswith(HUB_PREFIX):
        return None
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    from requests import RequestException

    model, causes = path[len(HUB_PREFIX) :], _causes(error)
    if any(isinstance(cause, RepositoryNotFoundError | GatedRepoError) for cause in causes):
        return MissingInput(
            f"There is no model {model} on {constants.ENDPOINT}, or it needs HF_TOKEN: check the id, and set the token "
            "in the job's `secrets`."
        )
    if any(isinstance(cause, LocalEntryNotFoundError | RequestException | ConnectionError) for cause in causes):
        return MissingInput(
            f"Could not fetch the model {model} from {constants.ENDPOINT}: it does not answer. Set HF_ENDPOINT to a "
            "mirror in the job's `env`, or give a local folder."
        )
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The error and everything that led to it."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found
