"""Key pairs for the tests of signatures."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def write_private(path: Path, key: object, encryption: KeySerializationEncryption | None = None) -> Path:
    encoded = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())  # type: ignore[attr-defined]
    path.write_bytes(encoded)
    return path


def write_pair(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """A new key pair's files: private, public."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    public = folder / f"{name}.pub"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return write_private(folder / f"{name}.pem", key), public
