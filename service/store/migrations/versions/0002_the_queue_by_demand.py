"""The queue is read by demand, and lists of one state by their own index."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("demand", sa.String(), nullable=False, server_default=""))
    # Two jobs may share a demand only if they need the same; those from before stay by themselves.
    op.execute("UPDATE job SET demand = id")
    op.drop_index("ix_job_queue", "job")
    op.create_index(
        "ix_job_queue",
        "job",
        ["state", "desired", "demand", sa.text("priority DESC"), "created_at", "id", "not_before"],
    )
    op.create_index("ix_job_retry", "job", ["state", "not_before"])
    op.create_index("ix_job_state_list", "job", ["state", "created_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_job_state_list", "job")
    op.drop_index("ix_job_retry", "job")
    op.drop_index("ix_job_queue", "job")
    op.create_index("ix_job_queue", "job", ["state", "priority", "created_at"])
    op.drop_column("job", "demand")
