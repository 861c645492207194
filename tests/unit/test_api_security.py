"""Who may ask the API: tokens, and on loopback without tokens the checks that keep web pages out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.access.tokens import Tokens
from service.api.security import Asking, check_bind, check_body_type, judge
from service.contract.errors import Problem

LOCAL = Asking("POST", "/api/v1/jobs", "127.0.0.1:8470", None, None, "application/json", True, None)


def code_of(asking: Asking, tokens: Tokens) -> str | None:
    try:
        judge(asking, tokens)
    except Problem as problem:
        return problem.code
    return None


@pytest.mark.parametrize("host", ["127.0.0.1:8470", "localhost:8470", "localhost", "[::1]:8470", "127.8.9.1"])
def test_loopback_names_are_served_without_a_token(tmp_path: Path, host: str) -> None:
    assert judge(replace(LOCAL, host=host), Tokens(tmp_path)) == "local"


@pytest.mark.parametrize(
    "host", ["evil.example:8470", "10.0.0.7", "", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_a_rebound_name_is_refused(tmp_path: Path, host: str) -> None:
    assert code_of(replace(LOCAL, host=host), Tokens(tmp_path)) == "forbidden_host"


def test_pages_of_other_sites_are_refused(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    assert code_of(replace(LOCAL, origin="https://evil.example"), tokens) == "forbidden_origin"
    assert code_of(replace(LOCAL, origin="null"), tokens) == "forbidden_origin"
    assert code_of(replace(LOCAL, fetch_site="cross-site"), tokens) == "forbidden_origin"
    assert code_of(replace(LOCAL, origin="http://localhost:8470", fetch_site="same-origin"), tokens) is None


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_what_a_form_can_send_is_no_body(kind: str | None) -> None:
    with pytest.raises(Problem) as refused:
        check_body_type(replace(LOCAL, content_type=kind))
    assert refused.value.code == "unsupported_media_type"


def test_json_and_yaml_are_bodies() -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "application/yaml", "text/yaml"):
        check_body_type(replace(LOCAL, content_type=kind))


def test_with_a_token_every_request_needs_it(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    token = tokens.create("alice")
    assert code_of(LOCAL, tokens) == "unauthorized"
    assert code_of(replace(LOCAL, authorization="Bearer wrong"), tokens) == "unauthorized"
    assert code_of(replace(LOCAL, authorization=f"Basic {token}"), tokens) == "unauthorized"
    assert judge(replace(LOCAL, authorization=f"Bearer {token}", host="navarch.example"), tokens) == "alice"
    assert code_of(replace(LOCAL, path="/api/v1/health"), tokens) is None


def test_a_token_is_stored_as_its_hash_only_and_counts_at_once(tmp_path: Path) -> None:
    serving = Tokens(tmp_path)
    assert serving.owner("anything") is None
    token = Tokens(tmp_path).create("bob")
    assert serving.owner(token) == "bob"
    stored = (tmp_path / "tokens.json").read_text()
    assert token not in stored and json.loads(stored)[0]["name"] == "bob"
    assert (tmp_path / "tokens.json").stat().st_mode & 0o077 == 0
    assert Tokens(tmp_path).remove("bob")
    assert serving.owner(token) is None


def test_names_of_tokens_are_unique(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    tokens.create("ci")
    with pytest.raises(Problem, match="There is a token named ci"):
        tokens.create("ci")


def test_other_addresses_than_loopback_need_a_token(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    for host in ("127.0.0.1", "::1", "localhost"):
        check_bind(host, tokens)
    for host in ("0.0.0.0", "::", "10.1.2.3"):
        with pytest.raises(Problem, match="without a token"):
            check_bind(host, tokens)
    check_bind("0.0.0.0", Tokens(tmp_path, given="secret"))
    tokens.create("alice")
    check_bind("0.0.0.0", tokens)
