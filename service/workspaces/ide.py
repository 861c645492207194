"""What one types into an IDE to work in a workspace: blocks for PyCharm, VS Code, Cursor, Gateway. Pure."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from service.contract.workspaces import IdeBlock, Workspace

INTERPRETER = "/usr/local/bin/python"


def ide_blocks(found: Workspace, key: str | None = None) -> list[IdeBlock]:
    """One for each IDE; `key`: the person's private key file, where it is known."""
    access = found.ssh
    alias, folder = f"navarch-{found.name}", str(found.spec.get("workdir") or "/workspace")
    identity = key or "your private key, such as ~/.ssh/id_ed25519"
    gateway = {
        **{"type": "ssh", "deploy": "true", "host": access.host, "port": str(access.port), "user": access.user},
        **{"projectPath": folder, "productCode": "PY"},
    }
    return [
        IdeBlock(
            name="PyCharm",
            text="\n".join(
                [
                    "Settings > Python Interpreter > Add Interpreter > On SSH > New",
                    f"  Host {access.host}   Port {access.port}   Username {access.user}",
                    f"  Key pair: {identity}",
                    f"  Interpreter: {INTERPRETER}",
                    f"  Sync folders: <your project> → {folder}/<your project>",
                    "The debugger needs nothing more: sshd lets it forward a port of its own choice.",
                ]
            ),
        ),
        IdeBlock(
            name="VS Code",
            text="Needs the extension Remote - SSH, and once: navarch ssh-config",
            link=f"vscode://vscode-remote/ssh-remote+{quote(alias)}{quote(folder)}",
        ),
        IdeBlock(
            name="Cursor",
            text="Needs once: navarch ssh-config",
            link=f"cursor://vscode-remote/ssh-remote+{quote(alias)}{quote(folder)}",
        ),
        IdeBlock(
            name="JetBrains Gateway",
            text="Opens PyCharm in the workspace itself; it is fetched there at the first connection.",
            link=f"jetbrains-gateway://connect#{urlencode(gateway)}",
        ),
    ]
