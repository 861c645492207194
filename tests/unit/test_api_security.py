"""Who may ask the API: whoever has a token, and no web page on their behalf."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from service.access.people import People
from service.access.principals import LOCAL, Kind, Principal, Role
from service.access.sessions import Sessions
from service.access.tokens import Tokens, digest, ensure_local_token
from service.api.security import Asking, check_body_type, is_loopback, judge
from service.contract.errors import Problem
from service.store.database import Database
from tests.unit.simulation import new_database

HERE = Asking("POST", "/api/v1/jobs", "127.0.0.1:8470", None, None, "application/json", True, None)


@pytest.fixture
def local(tmp_path: Path) -> Asking:
    """A request of the account that runs the control plane."""
    ensure_local_token(tmp_path)
    return replace(HERE, authorization=f"Bearer {(tmp_path / 'token').read_text().strip()}")


def tokens_in(folder: Path, given: str | None = None) -> Tokens:
    there = (folder / "navarch.db").exists()
    database = Database(f"sqlite:///{folder / 'navarch.db'}") if there else new_database(folder)
    return Tokens(database, folder, given)


def somebody(name: str) -> Principal:
    return Principal(name, name, Role.MEMBER, Kind.USER)


def token_of(tokens: Tokens, name: str) -> str:
    """A token of a member, who is added if need be."""
    try:
        owner = People(tokens.database, tokens).add(name, Role.MEMBER)
    except Problem:
        owner = somebody(name)
    return tokens.create(name, owner=owner)


def who(asking: Asking, tokens: Tokens) -> Principal:
    return judge(asking, tokens, Sessions(tokens.folder, tokens))[0]


def code_of(asking: Asking, tokens: Tokens) -> str | None:
    try:
        who(asking, tokens)
    except Problem as problem:
        return problem.code
    return None


@pytest.mark.parametrize("host", ["127.0.0.1:8470", "localhost:8470", "localhost", "[::1]:8470", "127.8.9.1"])
def test_the_local_account_is_known_by_its_token_file(tmp_path: Path, local: Asking, host: str) -> None:
    assert who(replace(local, host=host), tokens_in(tmp_path)) == LOCAL
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_nobody_is_let_in_without_a_token(tmp_path: Path, local: Asking) -> None:
    tokens = tokens_in(tmp_path)
    assert code_of(HERE, tokens) == "unauthorized"
    assert code_of(replace(HERE, authorization="Bearer "), tokens) == "unauthorized"
    assert code_of(replace(local, authorization=(local.authorization or "") + "x"), tokens) == "unauthorized"
    (tmp_path / "token").unlink()
    assert code_of(local, tokens) == "unauthorized"


def test_the_token_file_counts_on_this_machine_only(tmp_path: Path, local: Asking) -> None:
    tokens = tokens_in(tmp_path)
    token = token_of(tokens, "alice")
    far = replace(local, from_here=False, host="navarch.example")
    assert code_of(far, tokens) == "unauthorized"
    assert who(replace(far, authorization=f"Bearer {token}"), tokens) == somebody("alice")
    assert who(local, tokens) == LOCAL


def test_withdrawing_the_last_token_opens_nothing(tmp_path: Path, local: Asking) -> None:
    """Also not to the machine's neighbours of a control plane that listens on all addresses."""
    tokens = tokens_in(tmp_path)
    token = token_of(tokens, "alice")
    alice = replace(HERE, from_here=False, host="navarch.example", authorization=f"Bearer {token}")
    assert who(alice, tokens).name == "alice"
    assert tokens.remove("alice", owner=somebody("alice"))
    for path in ("/api/v1/jobs", "/api/v1/health", "/docs"):
        assert code_of(replace(alice, path=path), tokens) == "forbidden"
        assert code_of(replace(alice, path=path, authorization=None), tokens) == "forbidden"
    assert code_of(HERE, tokens) == "unauthorized"
    assert who(local, tokens) == LOCAL


@pytest.mark.parametrize(
    "host", ["evil.example:8470", "10.0.0.7", "", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_a_rebound_name_is_refused(tmp_path: Path, local: Asking, host: str) -> None:
    assert code_of(replace(local, host=host), tokens_in(tmp_path)) == "forbidden_host"
    assert code_of(replace(local, host=host, path="/api/v1/health"), tokens_in(tmp_path)) == "forbidden_host"


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "null", "", "http://localhost:3000", "http://localhost", "http://127.0.0.1:8470"),
        *("http://[evil", "http://localhost:8470.evil.example", "file://localhost:8470", "localhost:8470", "http://"),
    ],
)
def test_pages_of_other_origins_are_refused(tmp_path: Path, local: Asking, origin: str) -> None:
    """Other ports of localhost are other origins; whatever is no origin is none of ours."""
    asking = replace(local, host="localhost:8470", origin=origin)
    assert code_of(asking, tokens_in(tmp_path)) == "forbidden_origin"


def test_a_page_of_ours_and_a_link_to_us_pass(tmp_path: Path, local: Asking) -> None:
    tokens = tokens_in(tmp_path)
    for host, origin in (("localhost:8470", "http://localhost:8470"), ("[::1]:8470", "http://[::1]:8470")):
        own = replace(local, host=host, origin=origin, fetch_site="same-origin")
        assert who(own, tokens) == LOCAL
    token_of(tokens, "alice")
    tunnelled = replace(local, host="Navarch.example", origin="https://navarch.example")
    assert who(tunnelled, tokens) == LOCAL
    for site in ("cross-site", "same-site"):
        assert code_of(replace(local, fetch_site=site), tokens) == "forbidden_origin"
        link = replace(local, method="GET", path="/docs", fetch_site=site, fetch_mode="navigate", has_body=False)
        assert code_of(link, tokens) is None
        assert code_of(replace(link, method="POST"), tokens) == "forbidden_origin"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_what_a_form_can_send_is_no_body(kind: str | None) -> None:
    with pytest.raises(Problem) as refused:
        check_body_type(replace(HERE, content_type=kind))
    assert refused.value.code == "unsupported_media_type"


def test_json_and_yaml_are_bodies() -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "application/yaml", "text/yaml"):
        check_body_type(replace(HERE, content_type=kind))


def test_every_request_needs_a_token_but_those_that_say_nothing(tmp_path: Path) -> None:
    tokens = tokens_in(tmp_path)
    token = token_of(tokens, "alice")
    assert code_of(HERE, tokens) == "unauthorized"
    assert code_of(replace(HERE, authorization="Bearer wrong"), tokens) == "unauthorized"
    assert code_of(replace(HERE, authorization=f"Basic {token}"), tokens) == "unauthorized"
    alice = who(replace(HERE, authorization=f"Bearer {token}", host="navarch.example"), tokens)
    assert (alice.name, alice.kind) == ("alice", Kind.USER)
    for path in ("/api/v1/health", "/api/v1/version", "/docs", "/openapi.json"):
        assert code_of(replace(HERE, path=path), tokens) is None
    for path in ("/metrics", "/api/v1/health/", "/api/v1/versions", "/docs/x"):
        assert code_of(replace(HERE, path=path), tokens) == "unauthorized"


def test_a_token_is_stored_as_its_hash_only_and_counts_at_once(tmp_path: Path) -> None:
    tokens = tokens_in(tmp_path)
    assert tokens.principal("anything", from_here=True) is None
    token = token_of(tokens, "bob")
    assert tokens.principal(token, from_here=False) == somebody("bob")
    for file in tmp_path.glob("navarch.db*"):
        assert token.encode() not in file.read_bytes(), file
    assert tokens_in(tmp_path).principal(token, from_here=False) == somebody("bob"), "also after a restart"
    assert tokens.remove("bob", owner=somebody("bob")) and not tokens.remove("bob", owner=somebody("bob"))
    assert tokens.principal(token, from_here=False) is None


@pytest.mark.parametrize("name", ["local", "controller", "environment", "alice"])
def test_nobody_is_given_a_name_that_somebody_has_or_had(tmp_path: Path, name: str) -> None:
    tokens = tokens_in(tmp_path)
    token_of(tokens, "alice")
    people = People(tokens.database, tokens)
    people.remove("alice")
    with pytest.raises(Problem) as refused:
        people.add(name, Role.MEMBER)
    assert refused.value.code == "name_taken" and tokens.all() == []


def test_a_token_counts_until_it_expires_and_its_use_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_in(tmp_path)
    token = tokens.create("ci", lasts_s=3600.0)
    assert tokens.principal(token, from_here=False) is not None
    tokens.write_uses()
    (known,) = tokens_in(tmp_path).all()
    assert known.last_used_at is not None and known.expires_at is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    with pytest.raises(Problem, match="The token ci of local expired on "):
        who(replace(HERE, authorization=f"Bearer {token}"), tokens)


def test_a_token_of_the_local_account_is_not_its_file(tmp_path: Path) -> None:
    """Whoever has it is that person, but may not have the control plane read this account's own files."""
    tokens = tokens_in(tmp_path)
    found = tokens.principal(tokens.create("laptop"), from_here=True)
    assert found is not None and (found.id, found.role, found.kind) == ("local", Role.ADMIN, Kind.USER)


def test_names_of_tokens_are_unique(tmp_path: Path) -> None:
    tokens = tokens_in(tmp_path)
    tokens.create("ci")
    with pytest.raises(Problem, match="local has a token named ci"):
        tokens.create("ci")


def test_loopback_in_all_its_spellings() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "10.0.0.1", "::ffff:10.0.0.1", "localhost.example", "::")))


def test_a_browser_is_known_by_its_cookie_until_the_token_is_withdrawn(tmp_path: Path) -> None:
    tokens = tokens_in(tmp_path)
    sessions = Sessions(tmp_path, tokens)
    cookie = sessions.cookie(digest(token_of(tokens, "carol")))
    page = replace(HERE, cookie=cookie, asked_by_page=True)
    assert who(page, tokens) == somebody("carol")
    assert judge(page, tokens, Sessions(tmp_path, tokens))[0] == somebody("carol"), "also after a restart"
    assert code_of(replace(page, asked_by_page=False), tokens) == "forbidden_origin", "a form can't use it"
    assert who(replace(page, method="GET", asked_by_page=False), tokens) == somebody("carol")
    assert code_of(replace(page, cookie=cookie[:-4] + "abcd"), tokens) == "unauthorized"
    assert code_of(replace(page, cookie="x" * 5000), tokens) == "unauthorized"
    tokens.remove("carol", owner=somebody("carol"))
    assert code_of(page, tokens) == "unauthorized"


def test_the_local_account_cookie_counts_on_this_machine_only(tmp_path: Path, local: Asking) -> None:
    tokens = tokens_in(tmp_path)
    token_of(tokens, "somebody")
    cookie = Sessions(tmp_path, tokens).cookie(digest((tmp_path / "token").read_text().strip()))
    page = replace(HERE, cookie=cookie, asked_by_page=True)
    assert who(page, tokens) == LOCAL
    assert code_of(replace(page, from_here=False), tokens) == "unauthorized"


def test_the_code_of_a_link_signs_in_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(tmp_path, tokens_in(tmp_path))
    code = sessions.code("proof")
    assert sessions.redeem("another") is None
    assert sessions.redeem(code) == "proof"
    assert sessions.redeem(code) is None
    old = sessions.code("proof")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert sessions.redeem(old) is None


def test_the_dashboard_own_files_are_open_and_nothing_else(tmp_path: Path) -> None:
    tokens = tokens_in(tmp_path)
    for path in ("/", "/jobs/abc", "/assets/index.js", "/icon.svg"):
        assert code_of(replace(HERE, method="GET", path=path, has_body=False), tokens) is None
    for path in ("/api/v1/jobs", "/api/v1/live", "/metrics"):
        assert code_of(replace(HERE, method="GET", path=path, has_body=False), tokens) == "unauthorized"
