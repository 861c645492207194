"""What of a job's inputs lies on which hosts."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("needs", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("job", "needs")
