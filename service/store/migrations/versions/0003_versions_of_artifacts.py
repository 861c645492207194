"""Artifacts have versions, and jobs remember which version of which artifact they use."""

import re

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_CONVENTION = {"uq": "uq_%(table_name)s_%(column_0_name)s"}


def upgrade() -> None:
    with op.batch_alter_table("artifact", naming_convention=_CONVENTION) as artifact:
        artifact.add_column(sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
        artifact.drop_constraint(_unique_name(), type_="unique")
        artifact.create_unique_constraint("uq_artifact_name_version", ["name", "version"])
    op.create_table(
        "job_input",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("artifact_id", sa.String(), nullable=True),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("maker_id", sa.String(), nullable=True),
        sa.Column("maker_name", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_input_job_id", "job_input", ["job_id"])
    op.create_index("ix_job_input_artifact_id", "job_input", ["artifact_id"])
    op.create_index(
        "ix_job_input_missing",
        "job_input",
        ["job_id"],
        sqlite_where=sa.text("version IS NULL"),
        postgresql_where=sa.text("version IS NULL"),
    )
    _number(op.get_bind())


def _unique_name() -> str:
    """What the constraint of the first schema is called: it has no name of its own in SQLite."""
    return "uq_artifact_name" if op.get_bind().dialect.name == "sqlite" else "artifact_name_key"


def _number(connection: sa.Connection) -> None:
    """What further runs of a job left was called NAME-2, NAME-3 …: it becomes versions 2, 3 … of NAME."""
    rows = connection.execute(sa.text("SELECT id, name, source, run_path FROM artifact WHERE job_id IS NOT NULL"))
    for row in rows.all():
        base = f"{(row.source or '').removeprefix('job:')}-{(row.run_path or '').rpartition('/')[2]}"
        numbered = re.fullmatch(re.escape(base) + r"-(\d+)", row.name)
        if numbered is None:
            continue
        new = {"id": row.id, "name": base, "version": int(numbered.group(1))}
        taken = sa.text("SELECT 1 FROM artifact WHERE name = :name AND version = :version")
        if connection.execute(taken, {"name": base, "version": new["version"]}).first() is None:
            connection.execute(sa.text("UPDATE artifact SET name = :name, version = :version WHERE id = :id"), new)


def downgrade() -> None:
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE artifact SET name = name || '-' || version WHERE version > 1"))
    op.drop_table("job_input")
    with op.batch_alter_table("artifact") as artifact:
        artifact.drop_constraint("uq_artifact_name_version", type_="unique")
        artifact.create_unique_constraint(_unique_name(), ["name"])
        artifact.drop_column("version")
