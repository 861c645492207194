"""What the log of an ended container says about its end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_RANK, _CODE = re.compile(r"rank +: (\d+) "), re.compile(r"exitcode +: (-?\d+) ")


@dataclass(frozen=True)
class LogEnd:
    last_line: str = ""
    error_kind: str | None = None
    error_message: str | None = None
    error_host: str = ""
    """The name of the host whose fault it is, where the check of a gang said so."""
    failed_rank: tuple[int, int] | None = None
    """The rank that torchrun saw fail first, and with which exit code; negative: by which signal."""


def torchrun_failure(lines: Sequence[str]) -> tuple[int, int] | None:
    """What torchrun's account of a failure says, where a log ends with one."""
    _, _, account = "\n".join(lines).rpartition("Root Cause (first observed failure)")
    rank, code = _RANK.search(account), _CODE.search(account)
    return (int(rank.group(1)), int(code.group(1))) if rank and code else None
