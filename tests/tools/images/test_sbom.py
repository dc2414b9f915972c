"""The bill of materials: what is in the image is in the document, with the names that scanners look up.

Checked against CycloneDX's own schema, the package URL library, dpkg and Python's importlib.
"""

import copy
import hashlib
import importlib.metadata
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from pipeline.core.errors import CheckFailed, UserError
from tools.images.digest import Tree, content_digest, read_tree
from tools.images.sbom import KEEP, image_sbom

STATUS = """\
Package: libstdc++6
Status: install ok installed
Priority: optional
Architecture: amd64
Multi-Arch: same
Source: gcc-12
Version: 12.2.0-14+deb12u1
Description: GNU Standard C++ Library v3
 Package: not-a-field
 .
 Version: 0

Package: bsdutils
Status: hold ok installed
Architecture: amd64
Source: util-linux (2.38.1-5+deb12u3)
Version: 1:2.38.1-5+deb12u3
Conffiles:
 /etc/x 0123 obsolete

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: tzdata
Status: install ok installed
Architecture: all
Version: 2026a-0+deb12u1
"""
OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: someone
License: GPL-3+
 The text.

Files: tests/*
License:  Expat

License: GPL-3+
 On Debian systems it is elsewhere.
"""
PROGRAM = b"\x7fELF program"
MANIFEST = {
    "schema_version": 1,
    "architecture": "x86_64",
    "source": {"archive": "llama_cpp_python-1.0.tar.gz", "sha256": "a" * 64, "llama_cpp_commit": "0123abc"},
    "compiler": "g++ (Debian 12.2.0-14+deb12u1) 12.2.0",
    "flags": {"GGML_NATIVE": "OFF", "BUILD_SHARED_LIBS": "ON"},
    "requires": ["avx2"],
    "files": {"bin/llama-quantize": hashlib.sha256(PROGRAM).hexdigest()},
}
SITE = "opt/venv/lib/python3.11/site-packages"


def metadata(name: str, version: str, more: str = "") -> str:
    return f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}\nName: in the text\n"


FILES: dict[str, str | bytes] = {
    "etc/hostname": "host",
    "usr/lib/os-release": OS_RELEASE,
    "var/lib/dpkg/status": STATUS,
    "usr/share/doc/tzdata/copyright": COPYRIGHT,
    "usr/share/doc/bsdutils/copyright": "This is free software.\nLicense: see below\n",
    f"{SITE}/torch-2.13.0+cpu.dist-info/METADATA": metadata(
        "torch", "2.13.0+cpu", "License-Expression: BSD-3-Clause AND MIT\nLicense: ignored\n"
    ),
    f"{SITE}/ruamel.yaml-1.0.dist-info/METADATA": metadata("ruamel.YAML_x", "1.0", "License: MIT license\n"),
    f"{SITE}/long-1.dist-info/METADATA": metadata(
        "long",
        "1",
        "License: Copyright (c) someone\n        All rights.\nClassifier: License :: OSI Approved\n"
        "Classifier: License :: OSI Approved :: BSD License\nClassifier: Topic :: Printing\n",
    ),
    f"{SITE}/none-1.dist-info/METADATA": metadata("none", "1", "License: UNKNOWN\n"),
    "usr/lib/python3/dist-packages/none-1.dist-info/METADATA": metadata("none", "1"),
    "opt/llama.cpp/manifest.json": json.dumps(MANIFEST),
    "opt/llama.cpp/bin/llama-quantize": PROGRAM,
}


def tree(files: dict[str, str | bytes]) -> Tree:
    """A root file system of these files, read as an engine's export is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8", errors="surrogateescape") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return read_tree(io.BytesIO(buffer.getvalue()), KEEP)


def sbom(files: dict[str, str | bytes], labels: dict[str, str] | None = None) -> dict[str, Any]:
    read = tree(files)
    return image_sbom(read, "parity:1.0", content_digest(read), labels or {})


def component(bom: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [component for component in bom["components"] if component["name"] == name]
    return dict(found)


def properties(component: dict[str, Any]) -> list[tuple[str, str]]:
    return [(item["name"].removeprefix("android-vlm-parity:"), item["value"]) for item in component["properties"]]


def complaint(bom: dict[str, Any]) -> str:
    """What CycloneDX's schema says against the document; empty where nothing."""
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))
    return str(error or "")


def test_the_document_is_valid_cyclonedx() -> None:
    bom = sbom(FILES, {"org.opencontainers.image.version": "1.0", "empty": ""})
    assert complaint(bom) == ""
    broken = copy.deepcopy(bom)
    broken["components"][0]["type"] = "package"
    assert complaint(broken) != ""
    broken = copy.deepcopy(bom)
    broken["components"].append(broken["components"][0])
    assert complaint(broken) != ""


def test_every_package_url_is_canonical() -> None:
    urls = [component["purl"] for component in sbom(FILES)["components"]]
    assert len(urls) == 8
    assert [PackageURL.from_string(url).to_string() for url in urls] == urls


def test_debian_packages_with_their_source() -> None:
    bom = sbom(FILES)
    found = component(bom, "libstdc++6")
    assert found["purl"] == "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"
    assert found["version"] == "12.2.0-14+deb12u1"
    assert properties(found) == [("source-package", "gcc-12@12.2.0-14+deb12u1")]
    found = component(bom, "bsdutils")
    assert found["purl"] == "pkg:deb/debian/bsdutils@1:2.38.1-5%2Bdeb12u3?arch=amd64&distro=debian-12"
    assert properties(found) == [("source-package", "util-linux@2.38.1-5+deb12u3")]
    assert "removed" not in {component["name"] for component in bom["components"]}


def test_debian_licenses_come_from_machine_readable_copyright_files_only() -> None:
    bom = sbom(FILES)
    assert component(bom, "tzdata")["licenses"] == [{"license": {"name": "Expat"}}, {"license": {"name": "GPL-3+"}}]
    assert "licenses" not in component(bom, "bsdutils")
    assert "licenses" not in component(bom, "libstdc++6")


def test_packages_that_were_put_together_without_dpkg() -> None:
    part = "Package: base-files\nVersion: 12.4\nArchitecture: amd64\n"
    bom = sbom({"var/lib/dpkg/status.d/base": part, "var/lib/dpkg/status.d/base.md5sums": "0123  etc/x\n"})
    assert [component["purl"] for component in bom["components"]] == ["pkg:deb/debian/base-files@12.4?arch=amd64"]


def test_the_distribution_is_the_images() -> None:
    bom = sbom({**FILES, "usr/lib/os-release": "ID=ubuntu\nVERSION_ID='24.04'\n"})
    assert component(bom, "tzdata")["purl"].startswith("pkg:deb/ubuntu/tzdata@")
    assert component(bom, "tzdata")["purl"].endswith("&distro=ubuntu-24.04")


def test_python_packages_with_their_licenses() -> None:
    bom = sbom(FILES)
    torch = component(bom, "torch")
    assert torch["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert torch["licenses"] == [{"expression": "BSD-3-Clause AND MIT"}]
    assert properties(torch) == [("path", f"{SITE}/torch-2.13.0+cpu.dist-info")]
    assert component(bom, "ruamel.YAML_x")["purl"] == "pkg:pypi/ruamel-yaml-x@1.0"
    assert component(bom, "ruamel.YAML_x")["licenses"] == [{"license": {"name": "MIT license"}}]
    assert component(bom, "long")["licenses"] == [{"license": {"name": "BSD License"}}]


def test_a_package_in_two_places_is_one_component_with_both_paths() -> None:
    found = component(sbom(FILES), "none")
    assert "licenses" not in found
    assert properties(found) == [
        ("path", f"{SITE}/none-1.dist-info"),
        ("path", "usr/lib/python3/dist-packages/none-1.dist-info"),
    ]


def test_llama_cpp_with_its_source_and_files() -> None:
    found = component(sbom(FILES), "llama.cpp")
    assert (found["type"], found["version"]) == ("library", "0123abc")
    assert found["purl"] == "pkg:github/ggml-org/llama.cpp@0123abc"
    (source,) = found["externalReferences"]
    assert (source["type"], source["url"]) == ("source-distribution", "llama_cpp_python-1.0.tar.gz")
    assert source["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert ("flag:GGML_NATIVE", "OFF") in properties(found)
    (file,) = found["components"]
    assert file["name"] == "opt/llama.cpp/bin/llama-quantize"
    assert file["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(PROGRAM).hexdigest()}]


def test_two_builds_of_llama_cpp_are_two_components() -> None:
    one = {"manifest.json": json.dumps(MANIFEST), "bin/llama-quantize": PROGRAM}
    bom = sbom({f"{folder}/{name}": data for folder in ("x86_64", "aarch64") for name, data in one.items()})
    assert [properties(component)[0] for component in bom["components"]] == [("path", "aarch64"), ("path", "x86_64")]
    assert complaint(bom) == ""


@pytest.mark.parametrize("content", [None, PROGRAM + b"!"])
def test_a_llama_cpp_file_that_is_not_what_the_manifest_says_fails(content: bytes | None) -> None:
    files = {name: data for name, data in FILES.items() if data is not PROGRAM}
    if content:
        files["opt/llama.cpp/bin/llama-quantize"] = content
    with pytest.raises(CheckFailed, match=r"opt/llama.cpp/bin/llama-quantize of the image is not the file"):
        sbom(files)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"source": {}, "files": {}}', '{"source": [], "files": [1]}'])
def test_a_manifest_that_is_none_is_an_error(manifest: str) -> None:
    with pytest.raises(UserError, match=r"opt/llama.cpp/manifest.json of the image is not a manifest"):
        sbom({"opt/llama.cpp/manifest.json": manifest})


def test_the_image_with_its_digest_and_labels() -> None:
    bom = sbom(FILES, {"b": "2", "a": "1"})
    digest = content_digest(tree(FILES))
    image = bom["metadata"]["component"]
    assert (image["type"], image["name"]) == ("container", "parity:1.0")
    assert image["hashes"] == [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
    assert properties(image) == [("content-digest", digest), ("label:a", "1"), ("label:b", "2")]


def test_one_image_always_gives_the_same_document() -> None:
    backwards = dict(reversed(FILES.items()))
    assert json.dumps(sbom(FILES, {"a": "1", "b": "2"})) == json.dumps(sbom(backwards, {"b": "2", "a": "1"}))


def test_another_image_has_another_serial_number() -> None:
    first = sbom(FILES)
    assert sbom({**FILES, "more": ""})["serialNumber"] != first["serialNumber"]
    assert sbom(FILES, {"a": "1"})["serialNumber"] != first["serialNumber"]


def test_an_image_with_no_package_has_an_empty_list() -> None:
    bom = sbom({"hello": "x"})
    assert bom["components"] == []
    assert complaint(bom) == ""


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"{SITE}/x-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: x\n"),
        ("var/lib/dpkg/status", "Package: x\nStatus: install ok installed\nVersion: 1\n"),
    ],
)
def test_a_package_without_a_version_is_an_error_that_names_the_file(path: str, text: str) -> None:
    with pytest.raises(UserError, match=path):
        sbom({path: text})


def test_a_tree_read_without_keeping_is_an_error() -> None:
    read = tree(FILES)
    with pytest.raises(UserError, match="was not kept"):
        image_sbom(Tree(read.entries, {}), "parity:1.0", content_digest(read), {})


def test_a_path_that_is_not_utf_8() -> None:
    bom = sbom({"opt/\udcff/x-1.dist-info/METADATA": metadata("x", "1")})
    assert properties(component(bom, "x")) == [("path", "opt/\\udcff/x-1.dist-info")]


def test_debian_versions_are_those_of_dpkg() -> None:
    status = Path("/var/lib/dpkg/status")
    if not status.exists() or shutil.which("dpkg-query") is None:
        pytest.skip("this machine is not Debian")
    form = "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\t${source:Package}@${source:Version}\n"
    answer = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=True).stdout
    expected = [tuple(line.split("\t")[1:]) for line in answer.splitlines() if line.startswith("installed\t")]
    licenses = {str(path)[1:]: path.read_bytes() for path in Path("/usr/share/doc").glob("*/copyright")}
    bom = sbom({"var/lib/dpkg/status": status.read_bytes(), "usr/lib/os-release": OS_RELEASE, **licenses})
    assert complaint(bom) == ""
    urls = [PackageURL.from_string(component["purl"]) for component in bom["components"]]
    sources = [dict(properties(component))["source-package"] for component in bom["components"]]
    found = [
        (url.name, url.version, url.qualifiers["arch"], source)  # type: ignore[index]
        for url, source in zip(urls, sources, strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_python_versions_are_those_of_importlib() -> None:
    files: dict[str, str | bytes] = {}
    expected = set()
    for distribution in importlib.metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.version
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
        files[f"{SITE}/{name}-{version}.dist-info/METADATA"] = str(text)
        expected.add((name, version))
    bom = sbom(files)
    assert complaint(bom) == ""
    assert {(component["name"], component["version"]) for component in bom["components"]} == expected
    assert len(expected) > 10
