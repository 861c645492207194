"""Which operations are whose: what only an admin may do is refused before anything of a request is read.

Everybody may look at everything but at what is listed here; of what changes something members may do what is listed
here, and everything else is an admin's, also what is yet to come. That a member touches only what is theirs is seen to
where the thing is known (`check_owner`).
"""

from __future__ import annotations

from service.access.principals import Principal, check_admin

PREFIX = "/api/v1"
ADMIN_LOOKS = frozenset({"/consistency", "/place"})
MEMBERS_MAY = frozenset(
    {
        # who they are
        ("POST", "/session"),
        ("DELETE", "/session"),
        ("POST", "/session/link"),
        ("POST", "/tokens"),
        ("DELETE", "/tokens/{name}"),
        ("POST", "/keys"),
        ("DELETE", "/keys/{fingerprint}"),
        ("PUT", "/secrets/{name}"),
        ("DELETE", "/secrets/{name}"),
        # jobs
        ("POST", "/jobs"),
        ("POST", "/jobs/stop"),
        ("POST", "/jobs/delete"),
        ("POST", "/jobs/{ref}/stop"),
        ("DELETE", "/jobs/{ref}"),
        ("POST", "/jobs/{ref}/retry"),
        ("POST", "/jobs/{ref}/proxy/{path}"),
        # workspaces
        ("POST", "/workspaces"),
        ("POST", "/workspaces/{ref}/start"),
        ("POST", "/workspaces/{ref}/restart"),
        ("POST", "/workspaces/{ref}/stop"),
        ("POST", "/workspaces/{ref}/extend"),
        ("POST", "/workspaces/{ref}/check"),
        ("DELETE", "/workspaces/{ref}"),
        # images and artifacts
        ("POST", "/images/builds"),
        ("POST", "/images/builds/{build_id}/cancel"),
        ("POST", "/images/commits"),
        ("POST", "/images/push"),
        ("POST", "/images/pull"),
        ("POST", "/images/tag"),
        ("POST", "/artifacts"),
        ("DELETE", "/artifacts/{ref}"),
    }
)


def members_may(method: str, path: str) -> bool:
    """`path`: as it was declared, below the API's prefix."""
    path = path.removeprefix(PREFIX).replace(":path}", "}")
    return path not in ADMIN_LOOKS if method == "GET" else (method, path) in MEMBERS_MAY


def check_role(principal: Principal, method: str, path: str, summary: str) -> None:
    """Raises Problem `admin_only`."""
    if not members_may(method, path):
        check_admin(principal, summary[:1].lower() + summary[1:])
