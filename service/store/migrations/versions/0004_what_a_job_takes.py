"""CPUs, memory and the longest time of a job stand beside its GPUs: placement subtracts what is taken."""

import json
import math
from typing import Any

import sqlalchemy as sa
from alembic import op

from jobs.units import parse_duration, parse_size

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_START_S, _GRACE_S = 300.0, 120.0


def upgrade() -> None:
    for name, kind in (("cpus", sa.Float()), ("memory", sa.BigInteger()), ("lasts", sa.Float())):
        op.add_column("job", sa.Column(name, kind, nullable=True))
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT id, type, document FROM job WHERE finished_at IS NULL")).all()
    for row in rows:
        document = json.loads(row.document) if isinstance(row.document, str) else row.document
        values = {"id": row.id, **_taken(row.type, document)}
        # Two jobs may share a demand only if they need the same; those from before stay by themselves.
        statement = "UPDATE job SET cpus = :cpus, memory = :memory, lasts = :lasts, demand = :id WHERE id = :id"
        connection.execute(sa.text(statement), values)


def _taken(kind: str, document: dict[str, Any]) -> dict[str, float | int | None]:
    resources = document.get("resources") or {}
    cpus, memory, longest = resources.get("cpus"), resources.get("memory"), document.get("max_duration")
    lasts = math.inf if kind == "serve" else None
    if longest is not None:
        lasts = _START_S + parse_duration(longest) + parse_duration(document.get("grace", _GRACE_S))
    return {
        "cpus": float(cpus) if cpus is not None else None,
        "memory": parse_size(memory) if memory is not None else None,
        "lasts": lasts,
    }


def downgrade() -> None:
    for name in ("lasts", "memory", "cpus"):
        op.drop_column("job", name)
