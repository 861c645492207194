"""Tells a full disk, and a database that refuses, from Navarch's own mistakes."""

import errno
import sqlite3

from sqlalchemy.exc import DBAPIError

from service.contract.errors import Problem

_FREE = "Free some space on the disk that holds the data folder; Navarch goes on by itself then."


def of_storage(error: BaseException) -> Problem | None:
    """What the disk or the database refused, as a problem; None for anything else."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return Problem("disk_full", f"There is no space left on the disk{where}.", _FREE)
    if isinstance(error, DBAPIError | sqlite3.Error):
        said = str(error.orig if isinstance(error, DBAPIError) else error)
        if "disk is full" in said:
            return Problem("disk_full", f"The database can't be written: {said}.", _FREE)
        if isinstance(error, sqlite3.Error):
            return None
        hint = "See that its file is there and can be written, then try again; `navarch doctor` looks at both."
        return Problem("database_unavailable", f"The database refused: {said}.", hint)
    return None
