"""People have quotas and secrets; jobs that wait are told apart by whose they are, too."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("principal", sa.Column("quota", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("principal") as changed:
        changed.alter_column("quota", server_default=None)
    op.create_table(
        "secret",
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("set_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("owner_id", "name"),
    )
    op.execute("UPDATE job SET demand = demand || '/' || owner_id WHERE owner_id <> 'local' AND finished_at IS NULL")


def downgrade() -> None:
    op.drop_table("secret")
    op.drop_column("principal", "quota")
