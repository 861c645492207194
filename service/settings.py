"""What an operator can set, by NAVARCH_* variables or by `navarch up`'s options."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.locations import DEFAULT_PORT, data_dir


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="NAVARCH_", extra="ignore")

    data_dir: Path = Field(default_factory=data_dir)
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = None
    mount_roots: Annotated[list[Path], NoDecode] = Field(default_factory=list)
    """Host folders that jobs may mount, besides the data folder: colon-separated, or a JSON list."""
    engine_url: str = "unix:///var/run/docker.sock"
    """The Docker Engine of this machine, which becomes the host `local`."""
    host_address: str = "127.0.0.1"
    """The address under which this machine's published ports are reached."""
    bind_address: str = "0.0.0.0"
    """The address on which the engine publishes ports."""
    port_range: tuple[int, int] = (20000, 21999)
    """First and last host port that jobs get from the pool."""
    max_containers: int | None = None
    """Containers that run at once on this machine; none: four per core, at least eight."""
    unreachable_grace_s: float = 6 * 3600.0
    """How long a host may be out of reach before its jobs are given up."""
    start_timeout_s: float = 120.0
    """How long a started container may take until its sshd answers."""
    barrier_timeout_s: float = 600.0
    """How long a gang may take until all its containers are ready."""
    log_quota_bytes: int = 256 * 1024 * 1024
    """Size of one replica's log at which its oldest half is dropped."""
    workers: int = 8
    """Pieces of work of one kind on one host that are done side by side."""
    log_to_stderr: bool = True
    """Whether the control plane's own log goes to standard error, too, besides its file."""
    sweep_s: float = 15.0
    """How often everything is looked at again, in case a wake-up was missed."""

    @field_validator("mount_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value.strip().startswith("["):
                import json

                return json.loads(value)
            return [part for part in value.split(":") if part]
        return value

    @field_validator("data_dir", "mount_roots", mode="after")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        if isinstance(value, Path):
            return value.expanduser().absolute()
        return [path.expanduser().absolute() for path in value]

    @field_validator("token", mode="after")
    @classmethod
    def _no_empty_token(cls, value: str | None) -> str | None:
        return value or None

    @property
    def url(self) -> str:
        """Where the database is."""
        return f"sqlite:///{self.data_dir / 'navarch.db'}"

    def workspace_dir(self, workspace_id: str) -> Path:
        """What the control plane keeps for a workspace on this machine."""
        return self.data_dir / "workspaces" / workspace_id

    def job_dir(self, job_id: str) -> Path:
        """Everything that a job leaves on this machine: `run/`, `logs/`, `metrics.jsonl`, `samples.jsonl`."""
        return self.data_dir / "jobs" / job_id
