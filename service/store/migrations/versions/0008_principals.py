"""Jobs, names, idempotency keys, builds, events, tokens and SSH keys belong to principals, no longer to a name in text.

Tokens and SSH keys come from the files that held them: `tokens.json` and `authorized_keys` beside the database.
"""

import json
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

from service.contract.errors import Problem
from service.contract.ssh_keys import PublicKey

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NO_ID_TWICE = {"sqlite_autoincrement": True}
_QUEUE: list[Any] = ["state", "desired", "demand", sa.text("priority DESC"), "created_at", "id", "not_before"]
_OWN = (("local", "local"), ("controller", "system"), ("environment", "token"))
"""Those of every deployment: id, which is the name, too, and kind."""
_OWNED = (("job", "owner"), ("image_build", "owner"), ("event", "actor"))


def upgrade() -> None:
    ask = op.get_bind()
    op.create_table(
        "principal",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    for name, kind in _OWN:
        _principal(name, kind)
    for table, column in _OWNED:
        for (name,) in ask.execute(sa.text(f"SELECT DISTINCT {column} FROM {table} WHERE {column} <> ''")).all():
            _principal(name, "token")
    _tokens()
    _keys()
    op.drop_index("ix_job_active_name", "job")
    op.drop_index("ix_job_queue", "job")  # its DESC would be lost
    for table, column in _OWNED:
        op.execute(f"UPDATE {table} SET {column} = 'local' WHERE {column} = ''")
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO {column}_id")
        with op.batch_alter_table(table, table_kwargs=_NO_ID_TWICE if table == "event" else {}) as changed:
            changed.create_foreign_key(f"fk_{table}_{column}", "principal", [f"{column}_id"], ["id"])
    op.create_index("ix_job_queue", "job", _QUEUE)
    op.create_index(
        "ix_job_active_name", "job", ["owner_id", "name"], unique=True, sqlite_where=sa.text("finished_at IS NULL")
    )
    op.create_index("ix_job_owner_list", "job", ["owner_id", "created_at", "id"])
    op.rename_table("idempotency", "old_idempotency")
    op.drop_index("ix_idempotency_job_id", "old_idempotency")
    op.create_table(
        "idempotency",
        sa.Column("owner_id", sa.String(), nullable=False),
        *_idempotency(),
        sa.ForeignKeyConstraint(["owner_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("owner_id", "key"),
    )
    op.execute(
        "INSERT INTO idempotency (owner_id, key, digest, job_id, created_at) SELECT job.owner_id, old.key, old.digest, "
        "old.job_id, old.created_at FROM old_idempotency AS old JOIN job ON job.id = old.job_id"
    )
    op.drop_table("old_idempotency")
    op.create_index("ix_idempotency_job_id", "idempotency", ["job_id"])


def downgrade() -> None:
    """The version before knows principals by their names, and every name of an active job once only."""
    op.drop_index("ix_job_active_name", "job")
    op.drop_index("ix_job_owner_list", "job")
    op.drop_index("ix_job_queue", "job")
    for table, column in _OWNED:
        with op.batch_alter_table(table, table_kwargs=_NO_ID_TWICE if table == "event" else {}) as changed:
            changed.drop_constraint(f"fk_{table}_{column}", type_="foreignkey")
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {column}_id TO {column}")
        op.execute(f"UPDATE {table} SET {column} = (SELECT name FROM principal WHERE principal.id = {column})")
    op.create_index("ix_job_queue", "job", _QUEUE)
    op.create_index("ix_job_active_name", "job", ["name"], unique=True, sqlite_where=sa.text("finished_at IS NULL"))
    op.rename_table("idempotency", "old_idempotency")
    op.drop_index("ix_idempotency_job_id", "old_idempotency")
    op.create_table("idempotency", *_idempotency(), sa.PrimaryKeyConstraint("key"))
    op.execute("INSERT OR IGNORE INTO idempotency SELECT key, digest, job_id, created_at FROM old_idempotency")
    op.drop_table("old_idempotency")
    op.create_index("ix_idempotency_job_id", "idempotency", ["job_id"])
    ask, folder = op.get_bind(), _folder()
    tokens = ask.execute(sa.text("SELECT name, sha256, created_at FROM token ORDER BY created_at")).mappings().all()
    keys = ask.execute(sa.text("SELECT line FROM ssh_key ORDER BY created_at")).scalars().all()
    if folder is not None:
        _write(folder / "tokens.json", json.dumps([dict(row) for row in tokens]))
        _write(folder / "authorized_keys", "".join(f"{line}\n" for line in dict.fromkeys(keys)))
    for table in ("token", "ssh_key", "principal"):
        op.drop_table(table)


def _principal(name: str, kind: str, principal_id: str | None = None) -> None:
    """One that was known by its name only has that as its id, too."""
    op.get_bind().execute(
        sa.text("INSERT OR IGNORE INTO principal VALUES (:id, :name, 'admin', :kind, :now)"),
        {"id": principal_id or name, "name": name, "kind": kind, "now": time.time()},
    )


def _tokens() -> None:
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
    op.create_index("ix_token_principal_id", "token", ["principal_id"])
    for entry in json.loads(_text("tokens.json") or "[]"):
        taken = entry["name"] in {name for name, _ in _OWN}  # somebody called so was hard to tell from Navarch's own
        whose = f"token-{entry['name']}" if taken else entry["name"]
        _principal(whose, "token")
        op.get_bind().execute(
            sa.text("INSERT INTO token VALUES (:name, :sha256, :whose, :created_at)"), {**entry, "whose": whose}
        )


def _keys() -> None:
    op.create_table(
        "ssh_key",
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("line", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("owner_id", "fingerprint"),
    )
    for number, line in enumerate(_text("authorized_keys").splitlines()):
        try:
            key = PublicKey.parse(line)
        except Problem:
            continue  # nor was it given to any container
        op.get_bind().execute(
            sa.text("INSERT OR IGNORE INTO ssh_key VALUES ('local', :fingerprint, :line, :now)"),
            {"fingerprint": key.fingerprint, "line": key.line, "now": time.time() + number / 1000},
        )


def _idempotency() -> list[sa.Column[Any]]:
    return [
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
    ]


def _folder() -> Path | None:
    name = op.get_bind().engine.url.database
    return Path(name).parent if name and name != ":memory:" else None


def _text(name: str) -> str:
    folder = _folder()
    return (folder / name).read_text() if folder is not None and (folder / name).exists() else ""


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)
