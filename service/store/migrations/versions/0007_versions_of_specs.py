"""Stored specs carry the version of their kind; what a job left, and the keys that made it, are found by index."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("spec_version", sa.Integer(), nullable=False, server_default="1"))
    op.create_index("ix_job_input_maker_id", "job_input", ["maker_id"])
    op.create_index("ix_idempotency_job_id", "idempotency", ["job_id"])


def downgrade() -> None:
    op.drop_index("ix_idempotency_job_id", "idempotency")
    op.drop_index("ix_job_input_maker_id", "job_input")
    op.drop_column("job", "spec_version")
