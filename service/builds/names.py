"""Names of images: which are names, and who may give one to another image."""

from __future__ import annotations

import docker
from docker.errors import ImageNotFound

from images.build import with_tag
from jobs.values import parse_image
from service.access.principals import Principal, Role
from service.contract.errors import Problem

LABELS = "navarch.commit."


def check_tag(tag: str) -> None:
    """Raises Problem `invalid_request`."""
    try:
        parse_image(tag)
    except ValueError as error:
        raise Problem("invalid_request", f"The tag {error}.", "Such as registry:5000/team/colossalai:0.3.0.") from error


def check_name(client: docker.DockerClient, tag: str, actor: Principal) -> None:
    """A name that others use doesn't come to mean something else by a member's doing. Raises Problem `not_yours`."""
    if actor.role is Role.ADMIN:
        return
    try:
        maker = client.images.get(with_tag(tag)).labels.get(f"{LABELS}by")
    except ImageNotFound:
        return
    if maker != actor.name:
        hint = "Take a name of your own, such as team/colossalai:yours, or ask an admin."
        raise Problem("not_yours", f"{tag} is an image already{f', of {maker}' if maker else ''}.", hint)
