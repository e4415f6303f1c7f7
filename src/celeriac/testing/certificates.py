"""Certificates for tests of encrypted connections, made with the ``openssl`` program."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Certificates", "make_certificates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Paths of PEM files."""

    #: Of who signed the certificate; what a client verifies with.
    authority: Path
    #: Of the server (127.0.0.1 and localhost); a client may show it too.
    certificate: Path
    #: Private key of the certificate.
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and a certificate for this host, valid for a day, in `folder`. Takes about 0.1 s."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(
        authority=folder / "ca.crt", certificate=folder / "server.crt", key=folder / "server.key"
    )
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    _openssl(
        *new, "-x509", "-subj", "/CN=celeriac tests", "-keyout", folder / "ca.key", "-out", made.authority,
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    extensions = folder / "server.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n")
    request = folder / "server.csr"
    _openssl(*new, "-subj", "/CN=localhost", "-keyout", made.key, "-out", request)
    _openssl(
        "x509", "-req", "-in", request, "-CA", made.authority, "-CAkey", folder / "ca.key", "-days", "1",
        "-set_serial", "1", "-extfile", extensions, "-out", made.certificate,
    )  # fmt: skip
    return made


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr}")
