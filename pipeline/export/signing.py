"""Sign files and check their signature, with a key pair and without any network: a bundle, or a run's evidence.

A bundle's manifest says what the other files are; the signature says who stands behind all of them, the manifest
included. It is a file of OpenSSF's Model Signing (an in-toto statement in a sigstore bundle), so ``model_signing verify
key`` checks it, too. What a signature is good for is told in ``docs/threat-model.md``. Needs the extra ``signing``.
"""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import sha256_file, write_bytes
from pipeline.core.provenance import folder_hashes
from pipeline.export.verify import SIGNATURE, verify_bundle

NOT_A_KEY = (
    "is not the {half} half of an elliptic-curve key (P-256, P-384 or P-521) as PEM: `openssl ecparam -genkey -noout"
    " -name prime256v1 -out key.pem` makes a private one, `openssl ec -in key.pem -pubout -out key.pub` its public half"
)


def sign_bundle(folder: Path, private_key: Path) -> None:
    """Check the bundle in ``folder`` and write ``model.sig`` into it, which replaces one that is there.

    Raises CheckFailed where the bundle is damaged. Raises UserError: not a bundle, and as :func:`sign_files` does.
    """
    verify_bundle(folder)
    sign_files(folder, SIGNATURE, private_key)


def verify_signature(folder: Path, public_key: Path) -> str:
    """Check that ``model.sig`` is the key owner's signature of all that is in ``folder``; returns a line that says so.

    The files are not checked against the manifest: :mod:`pipeline.export.verify` does that. Raises as
    :func:`verify_files` does.
    """
    verify_files(folder, SIGNATURE, public_key, "this bundle")
    return f"{SIGNATURE}: all files are signed by the owner of {public_key}"


def sign_files(folder: Path, signature: str, private_key: Path, names: Sequence[str] | None = None) -> None:
    """Write ``signature`` into ``folder``, over the files ``names`` there, or over all other files.

    Raises UserError: a key that cannot be read or used, a file that cannot be read, a folder that cannot be written,
    ``model-signing`` not installed.
    """
    config = _load("signing").Config().set_hashing_config(_hashing(signature, names))
    try:
        config.use_elliptic_key_signer(private_key=private_key)
    except TypeError:
        raise UserError(
            f"key {private_key} is protected by a passphrase, and signing asks for none: give a copy without one"
            f" (`openssl ec -in {private_key} -out key.pem`)"
        ) from None
    except Exception as error:
        raise _unusable(private_key, "private", error) from None
    path = folder / signature
    # The library writes a file. In memory, for there may be no folder for temporary ones.
    with open(os.memfd_create(signature), "rb") as made:
        try:
            config.sign(folder, f"/proc/self/fd/{made.fileno()}")
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
        try:
            write_bytes(path, made.read())
        except UserError as error:
            raise UserError(f"{str(error).partition(': ')[0]}: sign a copy of {folder} elsewhere") from None


def verify_files(folder: Path, signature: str, public_key: Path, what: str, names: Sequence[str] | None = None) -> None:
    """Check that ``signature`` in ``folder`` is the key owner's, and of just the files ``names``, or of all others.

    ``what``: the files, in a word. Raises CheckFailed: no signature, another key's, a changed one, one of other files
    or not of all. Raises UserError: a key that cannot be read or used, ``model-signing`` not installed.
    """
    path = folder / signature
    config = _load("verifying").Config().set_hashing_config(_hashing(signature, names))
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise _unusable(public_key, "public", error) from None
    if not path.is_file():
        raise CheckFailed(f"{path} is missing: nobody has signed {what} (`make sign` does)")
    try:
        config.verify(folder, path)
    except Exception as error:  # a damaged signature raises nearly anything
        reason = _reason(folder, signature, error, public_key, names)
        raise CheckFailed(f"{path} does not vouch for {what}: {reason}") from None


def _reason(folder: Path, signature: str, error: Exception, public_key: Path, names: Sequence[str] | None) -> str:
    """What the library found, in words for a person."""
    if str(error).startswith("Key mismatch"):
        return f"it was made with another key than the one that {public_key} belongs to"
    if not str(error).startswith("Signature mismatch"):
        return "the signature was changed or damaged"
    # Said only after the arithmetic has proved the statement to be the key owner's.
    statement = json.loads(base64.b64decode(json.loads((folder / signature).read_text())["dsseEnvelope"]["payload"]))
    signed = {item["name"]: item["digest"] for item in statement["predicate"].get("resources", ())}
    if names is None:
        found = folder_hashes(folder)
        del found[signature]
    else:
        found = {name: sha256_file(folder / name) for name in names}
    differing = sorted(name for name in found.keys() | signed.keys() if found.get(name) != signed.get(name))
    return f"not as they were signed are {', '.join(differing)}"


def _load(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        raise UserError(f"signatures need the extra 'signing' ({error}): run `make setup`") from None


def _hashing(signature: str, names: Sequence[str] | None) -> Any:
    """What is hashed: just ``names``, or every file but the signature, whatever the signature says it left out."""

    class Chosen(_load("hashing").Config):  # type: ignore[misc]
        def add_ignored_paths(self, **_: object) -> None:
            pass

        def hash(self, model_path: Path, **_: object) -> Any:
            return super().hash(
                model_path, files_to_hash=None if names is None else [Path(model_path, name) for name in names]
            )

    # Links are followed: what is signed is content, wherever it lies.
    ignored = [signature] if names is None else []
    return Chosen().set_ignored_paths(paths=ignored, ignore_git_paths=False).set_allow_symlinks(True)


def _unusable(key: Path, half: str, error: Exception) -> UserError:
    if isinstance(error, OSError):
        return UserError(f"key {key} cannot be read: {error.strerror}")
    return UserError(f"key {key} {NOT_A_KEY.format(half=half)}")
