"""Hosts over SSH: how they are reached and found, what a check found; and on which host an artifact lies."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_HOST = (
    sa.Column("host_key", sa.String(), nullable=True),
    sa.Column("private_key", sa.LargeBinary(), nullable=True),
    sa.Column("cluster_address", sa.String(), nullable=True),
    sa.Column("interface", sa.String(), nullable=True),
    sa.Column("labels", sa.JSON(), nullable=False, server_default="{}"),
    sa.Column("shared_root", sa.String(), nullable=True),
    sa.Column("findings", sa.JSON(), nullable=False, server_default="[]"),
    sa.Column("checked_at", sa.Float(), nullable=True),
)


def upgrade() -> None:
    for column in _HOST:
        op.add_column("host", column.copy())
    with op.batch_alter_table("artifact") as table:
        table.add_column(sa.Column("host_id", sa.String(), nullable=True))
        table.create_foreign_key("fk_artifact_host", "host", ["host_id"], ["id"])


def downgrade() -> None:
    with op.batch_alter_table("artifact") as table:
        table.drop_constraint("fk_artifact_host", type_="foreignkey")
        table.drop_column("host_id")
    for column in reversed(_HOST):
        op.drop_column("host", column.name)
