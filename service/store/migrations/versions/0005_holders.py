"""GPUs and ports are held by holders, not by attempts; nobody leases work any more; a replica may be without a host."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_NO_ID_TWICE = {"sqlite_autoincrement": True}
_QUEUE: list[Any] = ["state", "desired", "demand", sa.text("priority DESC"), "created_at", "id", "not_before"]


def upgrade() -> None:
    op.create_table(
        "holder",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.execute(
        "INSERT INTO holder (id, kind, name) SELECT 'attempt/' || attempt.id, 'job', job.name FROM attempt "
        "JOIN job ON job.id = attempt.job_id WHERE attempt.finished_at IS NULL"
    )
    _leases("holder_id", sa.String(), "holder.id", "CASCADE", "'attempt/' || attempt_id")
    op.drop_index("ix_job_queue", "job")  # its DESC would be lost
    for table in ("job", "image_build"):
        with op.batch_alter_table(table) as changed:
            for column in ("lease_owner", "lease_until", "lease_token"):
                changed.drop_column(column)
    op.create_index("ix_job_queue", "job", _QUEUE)
    with op.batch_alter_table("attempt", table_kwargs=_NO_ID_TWICE) as attempt:
        attempt.drop_column("master_address")
        attempt.drop_column("stopping_at")
        attempt.add_column(sa.Column("backend", sa.String(), nullable=False, server_default="docker"))
    with op.batch_alter_table("replica", table_kwargs=_NO_ID_TWICE) as replica:
        replica.alter_column("host_id", existing_type=sa.String(), nullable=True)
    with op.batch_alter_table("host") as host:
        host.drop_column("health")
        host.drop_column("engine_id")


def downgrade() -> None:
    _leases("attempt_id", sa.Integer(), "attempt.id", None, "CAST(substr(holder_id, 9) AS INTEGER)")
    op.drop_table("holder")
    op.drop_index("ix_job_queue", "job")
    for table in ("job", "image_build"):
        with op.batch_alter_table(table) as changed:
            changed.add_column(sa.Column("lease_owner", sa.String(), nullable=True))
            changed.add_column(sa.Column("lease_until", sa.Float(), nullable=False, server_default="0"))
            changed.add_column(sa.Column("lease_token", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("ix_job_queue", "job", _QUEUE)
    with op.batch_alter_table("attempt", table_kwargs=_NO_ID_TWICE) as attempt:
        attempt.add_column(sa.Column("master_address", sa.String(), nullable=False, server_default="127.0.0.1"))
        attempt.add_column(sa.Column("stopping_at", sa.Float(), nullable=True))
        attempt.drop_column("backend")
    with op.batch_alter_table("host") as host:
        host.add_column(sa.Column("health", sa.String(), nullable=False, server_default="unknown"))
        host.add_column(sa.Column("engine_id", sa.String(), nullable=True))


def _leases(column: str, kind: sa.types.TypeEngine[Any], refers_to: str, ondelete: str | None, value: str) -> None:
    """Makes both tables anew, with another column that says whose the lease is."""
    op.rename_table("gpu_lease", "old_gpu_lease")
    op.rename_table("port_lease", "old_port_lease")
    for index in ("ix_gpu_lease_host_id", "ix_gpu_lease_attempt_id", "ix_gpu_lease_holder_id"):
        op.execute(f"DROP INDEX IF EXISTS {index}")
    for index in ("ix_port_lease_attempt_id", "ix_port_lease_holder_id"):
        op.execute(f"DROP INDEX IF EXISTS {index}")
    op.create_table(
        "gpu_lease",
        sa.Column("gpu", sa.String(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column(column, kind, nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["host.id"]),
        sa.ForeignKeyConstraint([column], [refers_to], ondelete=ondelete),
        sa.PrimaryKeyConstraint("gpu"),
    )
    op.create_table(
        "port_lease",
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column(column, kind, nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["host.id"]),
        sa.ForeignKeyConstraint([column], [refers_to], ondelete=ondelete),
        sa.PrimaryKeyConstraint("host_id", "port"),
    )
    op.execute(f"INSERT INTO gpu_lease (gpu, host_id, {column}) SELECT gpu, host_id, {value} FROM old_gpu_lease")
    op.execute(f"INSERT INTO port_lease (host_id, port, {column}) SELECT host_id, port, {value} FROM old_port_lease")
    op.drop_table("old_gpu_lease")
    op.drop_table("old_port_lease")
    op.create_index("ix_gpu_lease_host_id", "gpu_lease", ["host_id"])
    op.create_index(f"ix_gpu_lease_{column}", "gpu_lease", [column])
    op.create_index(f"ix_port_lease_{column}", "port_lease", [column])
