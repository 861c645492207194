"""Logins at registries of images: an admin's to give, encrypted at rest, used for every pull and push."""

from __future__ import annotations

import re
from typing import Any

from sqlmodel import col, select

from service.access.principals import Principal, check_admin
from service.access.secrets import SecretBox
from service.contract.errors import Problem
from service.store.database import Database
from service.store.events import record
from service.store.tables import Registry

_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?")


class Registries:
    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database, self._box = database, box

    def all(self) -> list[Registry]:
        with self._database.read() as session:
            return list(session.exec(select(Registry).order_by(col(Registry.address))))

    def login(self, address: str, username: str, password: str, actor: Principal) -> None:
        """Keeps a login; whether the registry takes it was asked before. Raises Problem."""
        check_admin(actor, "log in to registries")
        sealed = self._box.seal({"password": password})
        assert sealed is not None
        with self._database.write() as session:
            session.merge(Registry(address=check_address(address), username=username, sealed=sealed))
            said = f"{actor.name} logged in to {address} as {username}"
            record(session, "registry.login", f"registry/{address}", said, actor=actor.id)

    def logout(self, address: str, actor: Principal) -> bool:
        """False if there is no such login."""
        check_admin(actor, "log out of registries")
        with self._database.write() as session:
            row = session.get(Registry, address)
            if row is None:
                return False
            session.delete(row)
            said = f"{actor.name} logged out of {address}"
            record(session, "registry.logout", f"registry/{address}", said, actor=actor.id)
        return True

    def tell(self, api: Any) -> None:
        """Has a client of the Docker SDK use these logins, beside those of this account's own `docker login`."""
        api.reload_config()
        for row in self.all():
            password = self._box.open(row.sealed)["password"]
            auth = {"username": row.username, "password": password, "serveraddress": row.address}
            api._auth_configs.add_auth(row.address, auth)


def check_address(address: str) -> str:
    """Raises Problem `invalid_request` for what is no registry's address."""
    if not _ADDRESS.fullmatch(address):
        hint = "Write it as it begins an image's name, such as registry.example.org:5000."
        raise Problem("invalid_request", f"{address[:100]!r} is no address of a registry.", hint)
    return address
