"""Tokens belong to people, who may have several of them, and may leave; a version of an artifact has its maker."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("principal", sa.Column("removed_at", sa.Float(), nullable=True))
    op.add_column("ssh_key", sa.Column("everywhere", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("ssh_key") as changed:
        changed.alter_column("everywhere", server_default=None)
    op.execute("UPDATE principal SET kind = 'user' WHERE kind = 'token' AND id <> 'environment'")
    op.rename_table("token", "old_token")
    op.drop_index("ix_token_principal_id", "old_token")
    op.create_table(
        "token",
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("last_used_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("principal_id", "name"),
        sa.UniqueConstraint("sha256"),
    )
    op.execute(
        "INSERT INTO token (principal_id, name, sha256, created_at) "
        "SELECT principal_id, name, sha256, created_at FROM old_token"
    )
    op.drop_table("old_token")
    op.add_column("artifact", sa.Column("owner_id", sa.String(), nullable=False, server_default="local"))
    op.execute(
        "UPDATE artifact SET owner_id = (SELECT owner_id FROM job WHERE job.id = artifact.job_id) "
        "WHERE job_id IN (SELECT id FROM job)"
    )
    with op.batch_alter_table("artifact") as changed:
        changed.alter_column("owner_id", server_default=None)
        changed.create_foreign_key("fk_artifact_owner", "principal", ["owner_id"], ["id"])


def downgrade() -> None:
    """The version before has one token of a name."""
    with op.batch_alter_table("artifact") as changed:
        changed.drop_constraint("fk_artifact_owner", type_="foreignkey")
        changed.drop_column("owner_id")
    op.rename_table("token", "old_token")
    op.create_table(
        "token",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("sha256"),
    )
    op.execute(
        "INSERT OR IGNORE INTO token (name, sha256, principal_id, created_at) "
        "SELECT name, sha256, principal_id, created_at FROM old_token"
    )
    op.drop_table("old_token")
    op.create_index("ix_token_principal_id", "token", ["principal_id"])
    op.execute("UPDATE principal SET kind = 'token' WHERE kind = 'user'")
    op.drop_column("principal", "removed_at")
    op.drop_column("ssh_key", "everywhere")
