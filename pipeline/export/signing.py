"""Sign a bundle and check its signature, with a key pair and without any network.

The manifest says what the other files are; the signature says who stands behind all of them, the manifest included. It
is a file of OpenSSF's Model Signing (an in-toto statement in a sigstore bundle), so ``model_signing verify key`` checks
it, too. Needs the extra ``signing``.
"""

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import write_bytes
from pipeline.core.provenance import folder_hashes
from pipeline.export.verify import SIGNATURE, verify_bundle

NOT_A_KEY = (
    "is not the {half} half of an elliptic-curve key (P-256, P-384 or P-521) as PEM: `openssl ecparam -genkey -noout"
    " -name prime256v1 -out key.pem` makes a private one, `openssl ec -in key.pem -pubout -out key.pub` its public half"
)


def sign_bundle(folder: Path, private_key: Path) -> None:
    """Check the bundle in ``folder`` and write ``model.sig`` into it, which replaces one that is there.

    Raises CheckFailed where the bundle is damaged. Raises UserError: not a bundle, a key that cannot be read or used,
    ``model-signing`` not installed.
    """
    verify_bundle(folder)
    config = _load("signing").Config().set_hashing_config(_everything())
    try:
        config.use_elliptic_key_signer(private_key=private_key)
    except TypeError:
        raise UserError(
            f"key {private_key} is protected by a passphrase, and signing asks for none: give a copy without one"
            f" (`openssl ec -in {private_key} -out key.pem`)"
        ) from None
    except Exception as error:
        raise _unusable(private_key, "private", error) from None
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / SIGNATURE
        config.sign(folder, made)
        write_bytes(folder / SIGNATURE, made.read_bytes())


def verify_signature(folder: Path, public_key: Path) -> str:
    """Check that ``model.sig`` is the key owner's signature of all that is in ``folder``; returns a line that says so.

    The files are not checked against the manifest: :mod:`pipeline.export.verify` does that. Raises CheckFailed: no
    signature, another key's, a changed one, one of other files or not of all. Raises UserError: a key that cannot be
    read or used, ``model-signing`` not installed.
    """
    path = folder / SIGNATURE
    config = _load("verifying").Config().set_hashing_config(_everything())
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise _unusable(public_key, "public", error) from None
    if not path.is_file():
        raise CheckFailed(f"{path} is missing: nobody has signed this bundle (`make sign` does)")
    try:
        config.verify(folder, path)
    except Exception as error:  # a damaged signature raises nearly anything
        raise CheckFailed(f"{path} does not vouch for this bundle: {_reason(folder, error, public_key)}") from None
    return f"{SIGNATURE}: all files are signed by the owner of {public_key}"


def _reason(folder: Path, error: Exception, public_key: Path) -> str:
    """What the library found, in words for a person."""
    if str(error).startswith("Key mismatch"):
        return f"it was made with another key than the one that {public_key} belongs to"
    if not str(error).startswith("Signature mismatch"):
        return "the signature was changed or damaged"
    # Said only after the arithmetic has proved the statement to be the key owner's.
    statement = json.loads(base64.b64decode(json.loads((folder / SIGNATURE).read_text())["dsseEnvelope"]["payload"]))
    signed = {item["name"]: item["digest"] for item in statement["predicate"].get("resources", ())}
    found = folder_hashes(folder)
    del found[SIGNATURE]
    differing = sorted(name for name in found.keys() | signed.keys() if found.get(name) != signed.get(name))
    return f"not as they were signed are {', '.join(differing)}"


def _load(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        raise UserError(f"signatures need the extra 'signing' ({error}): run `make setup`") from None


def _everything() -> Any:
    """How a bundle is hashed: every file but the signature, whatever the signature says it left out."""

    class Everything(_load("hashing").Config):  # type: ignore[misc]
        def add_ignored_paths(self, **_: object) -> None:
            pass

    # Links are followed: what is signed is content, wherever it lies.
    return Everything().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False).set_allow_symlinks(True)


def _unusable(key: Path, half: str, error: Exception) -> UserError:
    if isinstance(error, OSError):
        return UserError(f"key {key} cannot be read: {error.strerror}")
    return UserError(f"key {key} {NOT_A_KEY.format(half=half)}")
