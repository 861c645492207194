"""Ids of rows: short, and sortable by the time of their making."""

import secrets
import time

WORKSPACE = "ws-"
"""How the id of a workspace begins: those who are told of jobs and workspaces by id tell them apart by that."""
_IDS = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id() -> str:
    """Fourteen characters, sortable by time to a quarter of a second, then random enough for thousands in that time."""
    moment = int(time.time() * 4)
    stamp = "".join(_IDS[(moment >> shift) & 31] for shift in range(30, -5, -5))
    return stamp + "".join(secrets.choice(_IDS) for _ in range(7))
