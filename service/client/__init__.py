"""The Python SDK: `from service.client import Client`. The command line is built on nothing else."""

from service.client.client import Client
from service.client.errors import ApiError, ClientError, Unreachable

__all__ = ["ApiError", "Client", "ClientError", "Unreachable"]
