"""What an app's manifest says that a release depends on: which app it is, and whether it is a debug build.

An APK has it as Android's binary XML, which pyaxmlparser reads; a bundle for a store (AAB) as protobuf (aapt2's
Resources.proto).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parity.release.archive import Archive
from pipeline.core.errors import UserError

APK_MANIFEST = "AndroidManifest.xml"
AAB_MANIFEST = "manifest/AndroidManifest.xml"
"""In each module's folder."""
_ANDROID = "http://schemas.android.com/apk/res/android"
_MOST = 16 << 20
_DEEPEST = 64


@dataclass(frozen=True)
class Manifest:
    """One archive's, or one module's."""

    where: str
    package: str
    version_code: str
    split: str
    """The name of a split; empty for a base."""
    debuggable: bool
    test_only: bool


@dataclass(frozen=True)
class _Element:
    name: str
    attributes: dict[str, str]
    """Those of Android without their namespace, in front of the others."""
    children: "tuple[_Element, ...]"


def read_manifests(archive: Archive) -> list[Manifest]:
    """All manifests of an APK or an AAB. Raises UserError where one cannot be read."""
    found = []
    for entry in archive.entries:
        bundled = entry.name.endswith(f"/{AAB_MANIFEST}")
        if entry.name == APK_MANIFEST or bundled:
            where = f"{archive.name}: {entry.name}"
            data = archive.read(entry, _MOST)
            try:
                root = _node(data, 0) if bundled else _binary(data)
                found.append(_manifest(where, root))
            except ManifestError as error:
                raise UserError(f"{where} is no manifest that can be read: {error}") from None
    return found


class ManifestError(Exception):
    """What is wrong with a manifest."""


def _manifest(where: str, root: _Element) -> Manifest:
    if root.name != "manifest" or not root.attributes.get("package"):
        raise ManifestError("it does not begin with <manifest package=…>")
    applications = [child for child in root.children if child.name == "application"]
    if len(applications) > 1:
        raise ManifestError("it has more than one <application>")
    application = applications[0].attributes if applications else {}
    return Manifest(
        where=where,
        package=root.attributes["package"],
        version_code=root.attributes.get("versionCode", ""),
        split=root.attributes.get("split", ""),
        debuggable=_is_true(application.get("debuggable", "")),
        test_only=_is_true(application.get("testOnly", "")),
    )


def _is_true(value: str) -> bool:
    """A reference to a resource (``@7F…``) is not resolved, and could be true."""
    return value.lower() not in ("", "false", "0")


def _binary(data: bytes) -> _Element:
    # The package reads its whole table of resources when it is imported.
    from pyaxmlparser.axmlprinter import AXMLPrinter

    logging.getLogger("pyaxmlparser").setLevel(logging.CRITICAL)
    try:
        root = AXMLPrinter(data).get_xml_obj()
    except Exception as error:  # damaged files raise nearly anything
        raise ManifestError(f"{type(error).__name__}") from None
    if root is None:
        raise ManifestError("it is empty")
    return _element(root, 0)


def _element(node: Any, depth: int) -> _Element:
    if depth > _DEEPEST:
        raise ManifestError("it is nested too deep")
    attributes: dict[str, str] = {}
    for name, value in node.attrib.items():
        space, _, local = str(name).rpartition("}")
        if local not in attributes or space == "{" + _ANDROID:
            attributes[local] = str(value)
    children = tuple(_element(child, depth + 1) for child in node if isinstance(child.tag, str))
    return _Element(str(node.tag), attributes, children)


# ---- protobuf: XmlNode, XmlElement and XmlAttribute of aapt2's Resources.proto ---------------------------------------

_ELEMENT, _NAME, _ATTRIBUTE, _CHILD = 1, 3, 4, 5
_ATTRIBUTE_SPACE, _ATTRIBUTE_NAME, _ATTRIBUTE_VALUE, _COMPILED = 1, 2, 3, 6
_PRIMITIVE, _BOOLEAN = 7, 8


def _node(data: bytes, depth: int) -> _Element:
    if depth > _DEEPEST:
        raise ManifestError("it is nested too deep")
    element = next(
        (value for number, value in fields_of(data) if number == _ELEMENT and isinstance(value, bytes)), None
    )
    if element is None:
        raise ManifestError("it has no element")
    name = ""
    attributes: dict[str, str] = {}
    children = []
    for number, value in fields_of(element):
        if not isinstance(value, bytes):
            continue
        if number == _NAME:
            name = _text(value)
        elif number == _ATTRIBUTE:
            space, local, given = _attribute(value)
            if local not in attributes or space == _ANDROID:
                attributes[local] = given
        elif number == _CHILD and any(one == _ELEMENT for one, _ in fields_of(value)):
            children.append(_node(value, depth + 1))
    return _Element(name, attributes, tuple(children))


def _attribute(data: bytes) -> tuple[str, str, str]:
    """(namespace, name, value); what is compiled is what Android takes."""
    texts = {_ATTRIBUTE_SPACE: "", _ATTRIBUTE_NAME: "", _ATTRIBUTE_VALUE: ""}
    value = ""
    for number, held in fields_of(data):
        if number in texts and isinstance(held, bytes):
            texts[number] = _text(held)
        elif number == _COMPILED and isinstance(held, bytes):
            primitives = [one for kind, one in fields_of(held) if kind == _PRIMITIVE and isinstance(one, bytes)]
            for primitive in primitives:
                value = next(("true" if one else "false" for kind, one in fields_of(primitive) if kind == _BOOLEAN), "")
    return texts[_ATTRIBUTE_SPACE], texts[_ATTRIBUTE_NAME], value or texts[_ATTRIBUTE_VALUE]


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ManifestError("a text in it is not UTF-8") from None


def fields_of(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protobuf message's fields. Raises ManifestError where it is none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ManifestError(f"it has a field of the kind {kind}")
        if at + length > len(data):
            raise ManifestError("it is cut")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ManifestError("it is cut")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
