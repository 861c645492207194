"""What runs in each container of a gang before its job: Python alone, no package but this one."""

import io
import zipfile
from functools import cache
from pathlib import Path

_MAIN = "from gang.member import main\n\nmain()\n"


@cache
def program() -> bytes:
    """This package as one file that Python runs."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), _MAIN)
        for file in sorted(Path(__file__).parent.glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"gang/{file.name}"), file.read_bytes())
    return made.getvalue()
