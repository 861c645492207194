"""The one exception that users see: a stable code, what happened to which thing, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a problem code stands for: its HTTP status and a title that never varies."""

    status: int
    title: str


#: Every code that the API can answer with. Codes are stable: clients may branch on them.
KINDS: dict[str, Kind] = {
    # the request itself
    "invalid_request": Kind(422, "The request is not valid"),
    "malformed_body": Kind(400, "The body could not be read"),
    "body_too_large": Kind(413, "The body is too large"),
    "unsupported_media_type": Kind(415, "Send JSON or YAML"),
    "not_found": Kind(404, "There is nothing here"),
    "method_not_allowed": Kind(405, "This method does not work here"),
    "invalid_cursor": Kind(400, "The cursor is not one that this API gave out"),
    "unauthorized": Kind(401, "A valid token is needed"),
    "forbidden": Kind(403, "Not allowed"),
    "admin_only": Kind(403, "Only an admin may do that"),
    "not_yours": Kind(403, "It belongs to somebody else"),
    "forbidden_host": Kind(403, "Unknown Host header"),
    "forbidden_origin": Kind(403, "Request from another web origin"),
    # people
    "user_not_found": Kind(404, "No such user"),
    "quota_exceeded": Kind(409, "Over the quota"),
    "user_busy": Kind(409, "The user still has something here"),
    # specs, checked at submit
    "invalid_spec": Kind(422, "The spec is not valid"),
    "invalid_override": Kind(422, "An override is not valid"),
    "invalid_key": Kind(422, "Not an SSH public key"),
    "name_taken": Kind(409, "The name is taken"),
    "path_missing": Kind(422, "A path does not exist"),
    "mount_not_allowed": Kind(422, "The path lies outside the allowed mount roots"),
    "not_enough_gpus": Kind(422, "No host has that many GPUs"),
    "not_enough_cpus": Kind(422, "No host has that many CPUs"),
    "not_enough_memory": Kind(422, "No host has that much memory"),
    "not_enough_hosts": Kind(422, "There are not that many hosts"),
    "not_enough_ports": Kind(422, "No host has that many ports"),
    "port_taken": Kind(409, "The port is taken"),
    "image_missing": Kind(422, "The image is not there"),
    "image_unsuitable": Kind(422, "The image can't run this job"),
    # jobs
    "job_not_found": Kind(404, "No such job"),
    "job_active": Kind(409, "The job is still active"),
    "idempotency_conflict": Kind(409, "Idempotency-Key used before with another request"),
    "job_not_serving": Kind(409, "The job serves no model"),
    "no_ssh": Kind(409, "The job can't be reached over SSH"),
    # workspaces
    "workspace_not_found": Kind(404, "No such workspace"),
    "workspace_going": Kind(409, "The workspace is being removed"),
    "no_room": Kind(409, "There is no room for it now"),
    "no_limit": Kind(409, "The workspace has no limit"),
    # the rest of the resources
    "image_not_found": Kind(404, "No such image"),
    "image_in_use": Kind(409, "The image is in use"),
    "image_build_failed": Kind(422, "The image could not be built"),
    "invalid_recipe": Kind(422, "The recipe is not valid"),
    "recipe_not_found": Kind(404, "No such recipe"),
    "build_not_found": Kind(404, "No such image build"),
    "build_finished": Kind(409, "The image build has ended"),
    "artifact_not_found": Kind(404, "No such artifact"),
    "artifact_in_use": Kind(409, "The artifact is in use"),
    "artifact_exists": Kind(409, "An artifact of this name exists"),
    "artifact_ambiguous": Kind(409, "The artifact has several versions"),
    "artifact_not_kept": Kind(409, "An artifact of the job can't be kept"),
    "files_left": Kind(409, "Files can't be removed"),
    "registry_refused": Kind(422, "The registry refused the login"),
    "push_failed": Kind(502, "The image could not be pushed"),
    "pull_failed": Kind(502, "The image could not be pulled"),
    "import_failed": Kind(422, "The import failed"),
    "files_elsewhere": Kind(409, "Files on another host can't be reached"),
    # hosts
    "host_not_found": Kind(404, "No such host"),
    "host_exists": Kind(409, "The host is there already"),
    "host_in_use": Kind(409, "The host is in use"),
    "host_unreachable": Kind(422, "The host does not answer"),
    "host_login_refused": Kind(422, "The host refuses the login"),
    "host_key_changed": Kind(422, "The host shows another SSH host key"),
    "host_unsuitable": Kind(422, "The host can't run containers for Navarch"),
    # what Navarch stands on
    "engine_unreachable": Kind(503, "The Docker Engine does not answer"),
    "engine_error": Kind(502, "The Docker Engine refused"),
    "unhealthy": Kind(503, "Not all is well"),
    "database_unavailable": Kind(503, "The database does not answer"),
    "disk_full": Kind(507, "No space left on the disk"),
    "internal": Kind(500, "Navarch made a mistake"),
}


class Problem(Exception):
    """Raised anywhere in the control plane; becomes a problem document in REST and one sentence in the CLI.

    `detail` says what happened and to which thing; `hint` what to do next; `extra` holds members for machines
    (plain JSON values), such as the offending field.
    """

    def __init__(self, code: str, detail: str, hint: str | None = None, **extra: object) -> None:
        super().__init__(detail)
        self.kind = KINDS[code]
        self.status = self.kind.status
        self.code = code
        self.detail = detail
        self.hint = hint
        self.extra = extra

    @property
    def title(self) -> str:
        return self.kind.title

    def about_the_body(self) -> Problem:
        """The same where the missing thing is one that the request's body names: 422 instead of 404."""
        self.status = 422 if self.status == 404 else self.status
        return self

    def document(self, instance: str | None = None) -> dict[str, object]:
        """The RFC 9457 members, ready for JSON."""
        body: dict[str, object] = {
            "type": f"urn:navarch:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if instance is not None:
            body["instance"] = instance
        if self.hint is not None:
            body["hint"] = self.hint
        return {**self.extra, **body}
