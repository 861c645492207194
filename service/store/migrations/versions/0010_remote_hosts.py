"""Hosts over SSH: how they are reached and found, what a check found; and on which host an artifact lies."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    columns = (
        sa.Column("host_key", sa.String(), nullable=True),
        sa.Column("private_key", sa.LargeBinary(), nullable=True),
        sa.Column("cluster_address", sa.String(), nullable=True),
        sa.Column("interface", sa.String(), nullable=True),
        sa.Column("labels", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("shared_root", sa.String(), nullable=True),
        sa.Column("findings", sa.JSON(), nullable=False, server_default="[]"),
        sa.Column("checked_at", sa.Float(), nullable=True),
    )
    for column in columns:
        op.add_column("host", column)
    with op.batch_alter_table("artifact") as table:
        table.add_column(sa.Column("host_id", sa.String(), nullable=True))
        table.create_foreign_key("fk_artifact_host", "host", ["host_id"], ["id"])


def downgrade() -> None:
    with op.batch_alter_table("artifact") as table:
        table.drop_constraint("fk_artifact_host", type_="foreignkey")
        table.drop_column("host_id")
    for name in (
        *("checked_at", "findings", "shared_root", "labels", "interface", "cluster_address", "private_key", "host_key"),
    ):
        op.drop_column("host", name)
