"""How hosts are chosen for a job, and which host an error is said to be the fault of."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("placing", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("replica", sa.Column("error_host", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("replica", "error_host")
    op.drop_column("job", "placing")
