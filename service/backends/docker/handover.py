"""Gives what containers wrote into a run folder to the control plane's account, through a container that may do so.

Containers run as root, the control plane often as an ordinary account that may use the engine. The helper is made of
the job's own image, sees nothing but that one folder, and follows no link: `chown -h -R` changes links themselves.
"""

import os
from pathlib import Path
from typing import Any

from jobs.launch import LABEL_DEPLOYMENT
from service.backends.errors import BadContainer

_TIMEOUT_S = 300
"""Shorter than the age at which containers that nobody knows are swept."""
_TARGET = "/run-folder"
_MAY = ["CHOWN", "DAC_READ_SEARCH"]
LABEL_PURPOSE = "navarch.purpose"


def hand_over(api: Any, image_id: str, folder: Path, deployment: str) -> None:
    """Raises BadContainer when the image has no `chown` or that fails; the engine's own errors."""
    rootless = any("rootless" in option for option in api.info().get("SecurityOptions") or ())
    owner = "0:0" if rootless else f"{os.geteuid()}:{os.getegid()}"  # an account's own rootless engine calls it root
    host = api.create_host_config(
        mounts=[{"Type": "bind", "Source": str(folder), "Target": _TARGET, "ReadOnly": False}],
        network_mode="none",
        cap_drop=["ALL"],
        cap_add=_MAY,
        read_only=True,
        security_opt=["no-new-privileges"],
    )
    container = api.create_container(
        image_id,
        ["-h", "-R", owner, _TARGET],
        entrypoint=["chown"],
        user="0:0",
        working_dir="/",
        host_config=host,
        labels={LABEL_DEPLOYMENT: deployment, LABEL_PURPOSE: "handover"},
    )["Id"]
    try:
        api.start(container)
        code = api.wait(container, timeout=_TIMEOUT_S)["StatusCode"]
        if code != 0:
            said = api.logs(container, tail=3).decode("utf-8", "replace").strip()
            raise BadContainer(f"chown ended with exit code {code}: {said[:500]}")
    finally:
        api.remove_container(container, v=True, force=True)
