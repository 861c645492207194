"""Asks an application in this process as the account that runs it would."""

from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.access.tokens import ensure_local_token
from service.settings import Settings


def local_client(app: FastAPI, settings: Settings) -> TestClient:
    headers = {"Authorization": f"Bearer {ensure_local_token(settings.data_dir)}"}
    return TestClient(app, base_url="http://127.0.0.1", headers=headers, client=("127.0.0.1", 50000))
