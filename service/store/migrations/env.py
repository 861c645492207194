"""Runs migrations on the connection that the control plane already has."""

from alembic import context
from sqlmodel import SQLModel

from service.store import tables

assert tables.Job.__tablename__  # the import fills SQLModel.metadata
connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
wrong = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
if wrong:
    raise RuntimeError(f"the migration would leave rows that refer to nothing: {wrong[:5]}")
connection.commit()
