"""How a build reaches packages: certificate authorities, package indexes and mirrors of the machine that builds."""

from __future__ import annotations

import configparser
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from images.errors import ImageError

CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
PIP_CONFIG_FILES = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


@dataclass(frozen=True)
class Network:
    """Network settings of one build; empty values mean: as the base has them."""

    ca_bundle: Path | None = None
    """PEM file of the authorities that the network's TLS is signed by; used during the build only."""
    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    apt_mirror: str = ""
    keep: bool = False
    """Leave these settings in the image too, for the people who work in it."""

    def ca_pem(self) -> bytes:
        """The CA bundle's content, empty without one. Raises ImageError (`bad_ca_bundle`)."""
        if self.ca_bundle is None:
            return b""
        try:
            content = self.ca_bundle.read_bytes()
        except OSError as error:
            raise ImageError(
                "bad_ca_bundle",
                f"The CA bundle {self.ca_bundle} can't be read: {error.strerror}.",
                f"Give another file with --ca-bundle, or correct {', '.join(CA_VARIABLES)}.",
            ) from error
        if b"-----BEGIN CERTIFICATE-----" not in content and b"-----BEGIN TRUSTED CERTIFICATE-----" not in content:
            raise ImageError("bad_ca_bundle", f"The CA bundle {self.ca_bundle} holds no certificates in PEM form.")
        return content

    def pip_arguments(self) -> dict[str, str]:
        """Build arguments of the stage that runs pip; they never reach the image's own history."""
        return {
            "PIP_INDEX_URL": self.index_url,
            "PIP_EXTRA_INDEX_URL": " ".join(self.extra_index_urls),
            "PIP_TRUSTED_HOST": " ".join(self.trusted_hosts),
        }

    def kept_files(self) -> dict[str, bytes]:
        """Files that stay in the image (by their path in it): none unless `keep`."""
        if not self.keep:
            return {}
        pip = [("index-url", self.index_url), ("extra-index-url", " ".join(self.extra_index_urls))]
        pip.append(("trusted-host", " ".join(self.trusted_hosts)))
        files: dict[str, bytes] = {}
        if lines := [f"{key} = {value}" for key, value in pip if value]:
            files["etc/pip.conf"] = ("[global]\n" + "\n".join(lines) + "\n").encode()
        for number, certificate in enumerate(_split_pem(self.ca_pem())):
            files[f"usr/local/share/ca-certificates/navarch/{number:03}.crt"] = certificate
        return files


def of_this_machine(
    environment: Mapping[str, str] | None = None, config_files: tuple[str, ...] = PIP_CONFIG_FILES
) -> Network:
    """Settings that this machine's own pip uses, as far as a container can use them too.

    Folders and loopback addresses are left out: a container can't reach those.
    """
    environment = os.environ if environment is None else environment
    settings = _pip_settings(environment, config_files)
    bundle = next((environment[name] for name in CA_VARIABLES if environment.get(name)), settings.get("cert", ""))
    return Network(
        ca_bundle=Path(bundle) if bundle and Path(bundle).is_file() else None,
        index_url=next((url for url in shlex.split(settings.get("index-url", "")) if _reachable(url)), ""),
        extra_index_urls=tuple(url for url in shlex.split(settings.get("extra-index-url", "")) if _reachable(url)),
        trusted_hosts=tuple(shlex.split(settings.get("trusted-host", ""))),
    )


def _pip_settings(environment: Mapping[str, str], config_files: tuple[str, ...]) -> dict[str, str]:
    """pip's [global] settings: files in pip's order, then PIP_CONFIG_FILE, then PIP_* variables."""
    settings: dict[str, str] = {}
    chosen = environment.get("PIP_CONFIG_FILE", "")
    files = () if chosen == os.devnull else (*config_files, *([chosen] if chosen else []))
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(file).expanduser(), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself complains about such a file when it is used
        if parser.has_section("global"):
            settings.update({key.replace("_", "-"): value for key, value in parser.items("global")})
    for key in ("index-url", "extra-index-url", "trusted-host", "cert"):
        if value := environment.get("PIP_" + key.upper().replace("-", "_")):
            settings[key] = value
    return settings


def _reachable(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme in {"http", "https"} and host not in {"localhost", "::1"} and not host.startswith("127.")


def _split_pem(bundle: bytes) -> list[bytes]:
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    return [begin + part.split(end)[0] + end + b"\n" for part in bundle.split(begin)[1:]]
