"""Reads workspaces' rows and shows them as the REST schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from sqlmodel import Session, select

from jobs.workspace import DEFAULT_IMAGE
from jobs.workspace_launch import home_volume, workspace_container
from jobs.workspace_states import AT_REST
from service.access.host_keys import owner_mark
from service.access.principals import names
from service.api.tolerant import number, shown
from service.api.views import SSH_CONTAINER_PORT
from service.contract import workspaces as contract
from service.contract.schemas import SshAccess
from service.store import tables


def workspaces(session: Session, rows: Sequence[tables.Workspace]) -> list[contract.Workspace]:
    hosts = {host.id: host for host in session.exec(select(tables.Host))}
    people = names(session)
    deployment = session.get(tables.Meta, "deployment")
    identifier = deployment.value if deployment is not None else ""
    return [
        shown(
            partial(_workspace, row, hosts.get(row.host_id), identifier, people),
            partial(_bare, row),
            f"workspace/{row.id}",
        )
        for row in rows
    ]


def workspace(session: Session, row: tables.Workspace) -> contract.Workspace:
    return workspaces(session, [row])[0]


def _workspace(
    row: tables.Workspace, host: tables.Host | None, deployment: str, people: Mapping[str, str]
) -> contract.Workspace:
    home = row.document.get("home") or home_volume(deployment, row.name, owner_mark(row.owner_id))
    address = host.address if host is not None else ""
    return contract.Workspace(
        id=row.id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        message=row.message,
        owner=people.get(row.owner_id, row.owner_id),
        spec=row.document,
        image=str(row.document.get("image") or DEFAULT_IMAGE),
        host=host.name if host is not None else row.host_id,
        gpus=[] if row.state in AT_REST else row.gpus,
        ports=row.ports,
        container=workspace_container(deployment, row.name, row.made, row.namespace),
        home=str(home),
        ssh=SshAccess(host=address, port=row.ports[SSH_CONTAINER_PORT], user="root", host_key=row.host_key),
        created_at=row.created_at,
        started_at=row.started_at,
        ready_at=row.ready_at,
        runs_until=row.runs_until,
        unreachable_since=row.unreachable_since,
    )


def _bare(row: tables.Workspace, said: str) -> contract.Workspace:
    """What can be said of a workspace whatever is in its row."""
    return contract.Workspace(
        id=row.id,
        name=str(row.name),
        state=str(row.state),
        message=said,
        spec={},
        image="",
        host="",
        container="",
        home="",
        ssh=SshAccess(host="", port=0),
        created_at=number(row.created_at) or 0.0,
    )
