"""Certificates for tests, signed by an authority made on the spot."""

from __future__ import annotations

import subprocess
from pathlib import Path

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def write_authority(folder: Path, name: str) -> None:
    """A self-signed ``NAME.pem`` with its ``NAME.key``."""
    _openssl("req", "-x509", *KEY, "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem",
             "-days", "2", "-subj", f"/CN={name}")  # fmt: skip


def write_certificate(folder: Path, name: str, authority: str, alternative: str = "IP:127.0.0.1") -> None:
    """A ``NAME.pem`` with its ``NAME.key``, signed by an authority, for an address or host name."""
    _openssl(
        "req", *KEY, "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.csr", "-subj", f"/CN={name}"
    )
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName={alternative}\n")
    _openssl("x509", "-req", "-in", f"{folder}/{name}.csr", "-CA", f"{folder}/{authority}.pem",
             "-CAkey", f"{folder}/{authority}.key", "-CAcreateserial", "-days", "2",
             "-out", f"{folder}/{name}.pem", "-extfile", str(extensions))  # fmt: skip


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
