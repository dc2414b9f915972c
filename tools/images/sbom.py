"""The bill of materials of a container image, CycloneDX 1.6: what is installed in it, read from the image itself.

Debian's packages are those of dpkg's status, Python's those with a ``.dist-info`` folder, llama.cpp is what the
manifest beside its files says. One image always gives the same document: no clock, no random number. Standard library
only.
"""

from __future__ import annotations

import json
import posixpath
import re
import uuid
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from typing import Any
from urllib.parse import quote

from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import canonical_json, sha256_bytes
from tools.images.digest import Tree, shown

OS_RELEASE = ("etc/os-release", "usr/lib/os-release")  # the first is a link to the second in most distributions
DPKG_STATUS = "var/lib/dpkg/status"
LLAMA_FOLDERS = ("opt/llama.cpp", "x86_64", "aarch64")  # in the images that run, and in the one to copy from
PROPERTY = "android-vlm-parity:"

_LLAMA_MANIFESTS = {f"{folder}/manifest.json": folder for folder in LLAMA_FOLDERS}
# One file a package, where an image was put together without dpkg; its checksums, beside it, have no fields.
_STATUS_PART = re.compile(r"var/lib/dpkg/status\.d/[^/]+")
_COPYRIGHT = re.compile(r"usr/share/doc/[^/]+/copyright")
_METADATA = re.compile(r"(.*/)?[^/]+\.dist-info/METADATA")


def KEEP(path: str) -> bool:
    """Whether :func:`image_sbom` reads the file, so that ``read_tree`` must keep its bytes."""
    return (
        path in OS_RELEASE
        or path == DPKG_STATUS
        or path in _LLAMA_MANIFESTS
        or any(pattern.fullmatch(path) for pattern in (_STATUS_PART, _COPYRIGHT, _METADATA))
    )


def image_sbom(tree: Tree, name: str, digest: str, labels: dict[str, str]) -> dict[str, Any]:
    """The bill of materials of an image, from a tree read with :func:`KEEP`; ``digest`` is its content digest.

    Raises UserError for package metadata that cannot be read, CheckFailed where a llama.cpp file is not what its
    manifest says.
    """
    found = [*_debian(tree), *_python(tree), *_llama(tree)]
    components = [component for _, component in sorted(_merged(found).items())]
    properties = [_property("content-digest", digest)]
    properties += [_property(f"label:{key}", value) for key, value in sorted(labels.items())]
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "android-vlm-parity"}]},
            "component": {
                "type": "container",
                "bom-ref": f"image:{name}",
                "name": name,
                "hashes": [_hash(digest.partition(":")[2])],
                "properties": properties,
            },
        },
        "components": components,
    }
    return {**bom, "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, sha256_bytes(canonical_json(bom)))}"}


def _merged(components: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By reference, each once: a package that is installed in two places has the properties of both."""
    found: dict[str, dict[str, Any]] = {}
    for component in components:
        known = found.setdefault(component["bom-ref"], component)
        known["properties"] += [value for value in component["properties"] if value not in known["properties"]]
    return found


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": PROPERTY + name, "value": value}


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _quoted(text: str) -> str:
    """Percent-encoded as a package URL wants it (the purl specification: all but letters, digits and ``.-_~:``)."""
    return quote(text, safe=":")


def _library(purl: str, name: str, version: str, properties: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "properties": properties,
    }


def _text(tree: Tree, path: str) -> str:
    """A kept file; UserError where the tree was read without it."""
    if path not in tree.kept:
        raise UserError(f"{path} of the image was not kept: read the image's tree with sbom.KEEP")
    return tree.kept[path].decode("utf-8", "replace")


def _files(tree: Tree, pattern: re.Pattern[str]) -> Iterator[str]:
    """Paths of the files that match, sorted."""
    return (path for path, entry in sorted(tree.entries.items()) if entry.kind == "file" and pattern.fullmatch(path))


def _is_file(tree: Tree, path: str) -> bool:
    return path in tree.entries and tree.entries[path].kind == "file"


def _debian(tree: Tree) -> Iterator[dict[str, Any]]:
    """Every package whose files dpkg has put in place."""
    paths = [DPKG_STATUS] if _is_file(tree, DPKG_STATUS) else []
    distribution = _distribution(tree)
    for path in [*paths, *_files(tree, _STATUS_PART)]:
        for stanza in re.split(r"\n\s*\n", _text(tree, path)):
            fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*?)[ \t]*$", stanza, re.MULTILINE))
            if not fields or fields.get("Status", "installed").split()[-1:] in (["not-installed"], ["config-files"]):
                continue
            if any(key not in fields for key in ("Package", "Version", "Architecture")):
                raise UserError(
                    f"{path} of the image has an entry without name, version or architecture: {stanza[:80]!r}"
                )
            yield _debian_package(tree, fields, distribution)


def _debian_package(tree: Tree, fields: dict[str, str], distribution: dict[str, str]) -> dict[str, Any]:
    name, version = fields["Package"], fields["Version"]
    source, _, source_version = fields.get("Source", name).partition(" ")
    qualifiers = f"arch={_quoted(fields['Architecture'])}"
    if "VERSION_ID" in distribution:
        qualifiers += f"&distro={_quoted(distribution['ID'] + '-' + distribution['VERSION_ID'])}"
    purl = f"pkg:deb/{_quoted(distribution['ID'])}/{_quoted(name)}@{_quoted(version)}?{qualifiers}"
    component = _library(
        purl, name, version, [_property("source-package", f"{source}@{source_version.strip('()') or version}")]
    )
    licenses = _debian_licenses(tree, f"usr/share/doc/{name}/copyright")
    return {**component, "licenses": licenses} if licenses else component


def _distribution(tree: Tree) -> dict[str, str]:
    """``ID`` and, where there is one, ``VERSION_ID`` of os-release; Debian where there is no such file."""
    fields = {"ID": "debian"}
    for path in OS_RELEASE:
        if _is_file(tree, path):
            for key, value in re.findall(r"^(ID|VERSION_ID)=(.*)$", _text(tree, path), re.MULTILINE):
                fields[key] = value.strip().strip("\"'")
    return fields


def _debian_licenses(tree: Tree, path: str) -> list[dict[str, Any]]:
    """The short names in a machine-readable copyright file (Debian's copyright-format 1.0); none in any other."""
    text = _text(tree, path) if _is_file(tree, path) else ""
    if not re.match(r"\s*Format:", text):
        return []
    names = {" ".join(name.split()) for name in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)}
    return [{"license": {"name": name}} for name in sorted(names)]


def _python(tree: Tree) -> Iterator[dict[str, Any]]:
    """Every installed Python distribution, wherever it is."""
    for path in _files(tree, _METADATA):
        fields = HeaderParser().parsestr(_text(tree, path))
        name, version = fields.get("Name"), fields.get("Version")
        if not name or not version:
            raise UserError(f"{shown(path)} of the image names no package and version: reinstall what it belongs to")
        purl = f"pkg:pypi/{_quoted(re.sub(r'[-_.]+', '-', name).lower())}@{_quoted(version)}"  # PEP 503
        component = _library(purl, name, version, [_property("path", shown(posixpath.dirname(path)))])
        licenses = _python_licenses(fields)
        yield {**component, "licenses": licenses} if licenses else component


def _python_licenses(fields: Message) -> list[dict[str, Any]]:
    """An SPDX expression where the package has one, else the name it gives, else those of its classifiers."""
    if fields.get("License-Expression"):
        return [{"expression": fields["License-Expression"]}]
    free = str(fields.get("License", "")).strip()
    if free and free != "UNKNOWN" and "\n" not in free and len(free) <= 100:  # some have the whole text there
        return [{"license": {"name": free}}]
    classifiers = [str(value).split(" :: ") for value in fields.get_all("Classifier", [])]
    names = {parts[-1] for parts in classifiers if parts[0] == "License" and parts[-1] != "OSI Approved"}
    return [{"license": {"name": name}} for name in sorted(names)]


def _llama(tree: Tree) -> Iterator[dict[str, Any]]:
    """llama.cpp with its compiled files, each checked against the image."""
    for path, folder in _LLAMA_MANIFESTS.items():
        if not _is_file(tree, path):
            continue
        try:
            manifest = json.loads(_text(tree, path))
            source, files, flags = manifest["source"], dict(manifest["files"]), dict(manifest.get("flags", {}))
            commit, archive, sha256 = (str(source[key]) for key in ("llama_cpp_commit", "archive", "sha256"))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} of the image is not a manifest of llama.cpp ({error!r}): build it again") from None
        for file, expected in files.items():
            entry = tree.entries.get(f"{folder}/{file}")
            if entry is None or entry.value != expected:
                raise CheckFailed(f"{folder}/{file} of the image is not the file that {path} names: build it again")
        purl = f"pkg:github/ggml-org/llama.cpp@{_quoted(commit)}"
        described = [(key, str(manifest[key])) for key in ("architecture", "compiler") if key in manifest]
        described += [(f"flag:{key}", str(value)) for key, value in sorted(flags.items())]
        properties = [_property("path", folder), *(_property(key, value) for key, value in described)]
        yield {
            **_library(purl, "llama.cpp", commit, properties),
            "bom-ref": f"{purl}#{folder}",
            "externalReferences": [
                {"type": "source-distribution", "url": quote(archive, safe=":/"), "hashes": [_hash(sha256)]}
            ],
            "components": [
                {
                    "type": "file",
                    "bom-ref": f"file:{folder}/{file}",
                    "name": f"{folder}/{file}",
                    "hashes": [_hash(value)],
                }
                for file, value in sorted(files.items())
            ],
        }
