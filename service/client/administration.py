"""The client's methods about hosts and people: most of them are an admin's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.client.calls import Calls, segment
from service.contract.pages import HostKey
from service.contract.people import Key, Role, Secret, Secrets, Token, Tokens, User
from service.contract.schemas import Host


class Administration(Calls):
    """Hosts, users, their keys, tokens and secrets."""

    def hosts(self) -> list[Host]:
        return list(self._pages(Host, "hosts", {}, None))

    def host(self, ref: str) -> Host:
        """One host, by name or id."""
        return self._get(Host, f"hosts/{segment(ref)}")

    def add_host(self, name: str, url: str, **settings: Any) -> Host:
        """Make a machine a host: `url` is ssh://user@address[:port]; `settings` as in the REST API's HostRequest."""
        given = {key: value for key, value in settings.items() if value is not None}
        return self._send(Host, "POST", "hosts", json_body={"name": name, "url": url, **given})

    def change_host(self, ref: str, **change: Any) -> Host:
        """Change a host, such as state="draining"; as in the REST API's HostChange."""
        return self._send(Host, "PATCH", f"hosts/{segment(ref)}", json_body=change, repeatable=True)

    def check_host(self, ref: str, *, accept: bool = False) -> Host:
        """Look closely at it now: see its `findings`. `accept`: its GPUs and its driver are the right ones."""
        params = {"accept": "true"} if accept else None
        return self._send(Host, "POST", f"hosts/{segment(ref)}/check", params=params, repeatable=True)

    def remove_host(self, ref: str) -> None:
        """It is no host any more; refused while anything runs there."""
        self._transport.request("DELETE", f"hosts/{segment(ref)}")

    def host_key(self) -> str:
        """The control plane's public SSH key, for authorized_keys on hosts."""
        return self._get(HostKey, "hosts/key").public_key

    # people

    def users(self) -> list[User]:
        """Everybody who uses this control plane, with what they hold."""
        return list(self._pages(User, "users", {}, None))

    def user(self, name: str) -> User:
        return self._get(User, f"users/{segment(name)}")

    def add_user(self, name: str, *, role: Role = "member", quota: Mapping[str, int] | None = None) -> User:
        """A new user; only this answer shows their first token."""
        return self._send(User, "POST", "users", json_body={"name": name, "role": role, "quota": dict(quota or {})})

    def change_user(
        self, name: str, *, role: Role | None = None, quota: Mapping[str, int | None] | None = None
    ) -> User:
        """What is left out stays as it is; None lifts a limit of the quota (gpus, workspaces, jobs, disk)."""
        given = {"role": role, "quota": dict(quota) if quota is not None else None}
        body = {key: value for key, value in given.items() if value is not None}
        return self._send(User, "PATCH", f"users/{segment(name)}", json_body=body, repeatable=True)

    def remove_user(self, name: str) -> None:
        """Their tokens and keys count no more."""
        self._transport.request("DELETE", f"users/{segment(name)}")

    def keys(self, user: str | None = None) -> list[Key]:
        """The public keys that containers authorise: everybody's, somebody's, or ("") one's own."""
        return list(self._pages(Key, "keys", {"user": user}, None))

    def add_key(self, public_key: str, *, user: str = "", everywhere: bool = False) -> Key:
        """Have one's containers authorise this public key; adding it twice changes nothing."""
        body = {"public_key": public_key, "user": user, "everywhere": everywhere}
        return self._send(Key, "POST", "keys", json_body=body, repeatable=True)

    def remove_key(self, fingerprint: str, *, user: str = "") -> None:
        """No container authorises it any more."""
        self._transport.request("DELETE", f"keys/{segment(fingerprint)}", params={"user": user})

    def tokens(self, user: str | None = None) -> list[Token]:
        """Those that were given out, by name; none is ever shown again. An admin sees everybody's."""
        return self._get(Tokens, "tokens", {"user": user}).items

    def add_token(self, name: str, *, user: str = "", lasts: float | None = None) -> Token:
        """Make a token that lasts so many seconds; only this answer shows it."""
        return self._send(Token, "POST", "tokens", json_body={"name": name, "user": user, "lasts": lasts})

    def remove_token(self, name: str, *, user: str = "") -> None:
        """Withdraw a token, at once."""
        self._transport.request("DELETE", f"tokens/{segment(name)}", params={"user": user})

    def secrets(self) -> list[Secret]:
        """One's own, by name."""
        return self._get(Secrets, "secrets").items

    def set_secret(self, name: str, value: str) -> Secret:
        """What one starts from now on has it as a variable."""
        return self._send(Secret, "PUT", f"secrets/{segment(name)}", json_body={"value": value}, repeatable=True)

    def remove_secret(self, name: str) -> None:
        self._transport.request("DELETE", f"secrets/{segment(name)}")
