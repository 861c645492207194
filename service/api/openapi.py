"""`python -m service.api.openapi`: prints the OpenAPI document, of which the dashboard's client is made."""

import json
import sys
import tempfile
from pathlib import Path

from service.api.app import create_app
from service.runtime import Runtime
from service.settings import Settings


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(Settings(data_dir=Path(folder)))
        json.dump(create_app(runtime).openapi(), sys.stdout, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
