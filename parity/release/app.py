"""Whether an app holds just what was judged: the pair, its contract and nothing that could be taken for them.

All files of one app are given together: an APK, the splits of one, or a bundle for a store.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from parity.release.archive import Archive, open_archive
from parity.release.checks import AppCheck, Demands, Judged, Status
from parity.release.contents import Contents, Library, look_into
from parity.release.manifest import APK_MANIFEST, Manifest, ManifestError, fields_of, read_manifests
from parity.release.signature import read_signature
from pipeline.core.errors import UserError
from pipeline.core.files import read_regular

_HALVES = {"model": "language half", "mmproj": "vision half"}
_CONFIG = "BundleConfig.pb"
_COMPRESSION = 3
"""Its field with the globs."""
_NAMED = 3


@dataclass(frozen=True)
class _App:
    """What is known of the files together."""

    paths: Sequence[Path]
    archives: Sequence[Archive]
    contents: Contents
    manifests: Sequence[Manifest]


def check_app(paths: Sequence[Path], judged: Judged, demands: Demands) -> list[AppCheck]:
    """Look into the files of an app, and hold them against what was judged; a line for each check.

    Raises UserError: a file that cannot be read, or that two readers could read differently.
    """
    wanted = _libraries(demands.libraries) if demands.libraries else None
    certificate = _hex(demands.certificate) if demands.certificate else None
    archives = [open_archive(path) for path in paths]
    contents = Contents()
    manifests: list[Manifest] = []
    for archive in archives:
        look_into(archive, contents)
        manifests += read_manifests(archive)
    app = _App(paths, archives, contents, manifests)
    found = [_whole(app)]
    found += _models(app, judged)
    found += [_mapped(app), _contract(app, judged), _closed(app), _manifest(app, demands.package)]
    return [*found, *_signed(app, certificate), _native(app, wanted)]


def _check(name: str, wrong: str, right: str, fix: str) -> AppCheck:
    return AppCheck(name, "red", wrong, fix) if wrong else AppCheck(name, "green", right)


def _whole(app: _App) -> AppCheck:
    names = ", ".join(archive.name for archive in app.archives)
    return AppCheck("archive", "green", f"{names}: {app.contents.files:,} files, and every byte belongs to one")


def _models(app: _App, judged: Judged) -> Iterator[AppCheck]:
    models = app.contents.models
    for half, digest in judged.halves.items():
        name = _HALVES.get(half, half)
        places = [model.where for model in models if model.sha256 == digest]
        wrong = "" if places else f"the {name} that was judged ({digest[:12]}) is not in the app"
        if len(places) > 1:
            wrong = f"the {name} is there {len(places)} times, {_listed(places)}"
        yield _check(name, wrong, f"{places[0] if places else ''}, SHA-256 {digest[:12]}, as judged",
                     "build the app with the bundle's own files")  # fmt: skip
    others = [f"{model.where} ({model.sha256[:12]})" for model in models if model.sha256 not in judged.halves.values()]
    others += [f"a model inside {where}" for where in app.contents.hidden]
    yield _check(
        "other models",
        f"{_counted(len(others), 'GGUF')} that nobody judged: {_listed(others)}" if others else "",
        "none: the app has no other GGUF",
        "remove them from the app, or judge what the app really loads",
    )


def _mapped(app: _App) -> AppCheck:
    """llama.cpp maps a model into memory, which it cannot where it is compressed."""
    globs = {archive.name: _uncompressed(archive) for archive in app.archives if _is_bundle(archive)}
    wrong = []
    for model in app.contents.models:
        # In a bundle for a store all may be compressed; its configuration says what will not be in the APK, by the
        # names that files have in their module.
        inside = model.name.partition("/")[2]
        kept = model.packed == "deflated" and any(fnmatchcase(inside, glob) for glob in globs.get(model.archive, ()))
        if model.packed and not kept:
            wrong.append(f"{model.where} is {model.packed}")
    return _check(
        "stored",
        _listed(wrong),
        "no model is compressed",
        'set androidResources { noCompress += "gguf" } in build.gradle.kts; in a bundle for a store, uncompressedGlob'
        ' "**.gguf"',
    )


def _is_bundle(archive: Archive) -> bool:
    """Whether it is a bundle for a store. What Android would install is an APK, whatever else lies in it."""
    names = {entry.name for entry in archive.entries}
    return _CONFIG in names and APK_MANIFEST not in names


def _uncompressed(archive: Archive) -> Sequence[str]:
    """The globs of what a bundle's APKs will have uncompressed (Compression.uncompressed_glob of config.proto)."""
    entry = next((entry for entry in archive.entries if entry.name == _CONFIG), None)
    if entry is None:
        return ()
    found = []
    try:
        for number, held in fields_of(archive.read(entry, 1 << 20)):
            if number == _COMPRESSION and isinstance(held, bytes):
                globs = [one for kind, one in fields_of(held) if kind == 1 and isinstance(one, bytes)]
                found += [glob.decode(errors="replace") for glob in globs]
    except ManifestError as error:
        raise UserError(f"{archive.name}: {_CONFIG} cannot be read: {error}") from None
    return found


def _contract(app: _App, judged: Judged) -> AppCheck:
    found = app.contents.contracts
    wrong = [
        f"{where} is {'contract ' + digest[:12] if digest else 'no contract that can be kept'}"
        for where, digest in found
        if digest != judged.contract
    ]
    if not found:
        wrong = ["the app has no contract"]
    where = found[0][0] if found else ""
    return _check("contract", _listed(wrong), f"{where}, {judged.contract[:12]}, as judged",
                  "put the bundle's contract.json into the app's assets, and no other")  # fmt: skip


def _closed(app: _App) -> AppCheck:
    return _check("nothing hidden", _listed(app.contents.closed), "every file could be looked into",
                  "leave them out of the app, or pack them as zip or gzip")  # fmt: skip


def _manifest(app: _App, package: str | None) -> AppCheck:
    wrong = []
    if not app.manifests:
        wrong.append("no manifest: is this an APK or an AAB?")
    packages = sorted({manifest.package for manifest in app.manifests})
    if len(packages) > 1:
        wrong.append(f"the files are of several apps: {', '.join(packages)}")
    if package and packages not in ([], [package]):
        wrong.append(f"it is {', '.join(packages)}, not {package}")
    versions = sorted({manifest.version_code for manifest in app.manifests if manifest.version_code})
    if len(versions) > 1:
        wrong.append(f"the files are of several versions: {', '.join(versions)}")
    splits = Counter(manifest.split for manifest in app.manifests if manifest.where.endswith(": AndroidManifest.xml"))
    wrong += [f"two files are the split {name!r}" if name else "two files are the base" for name, count in
              splits.items() if count > 1]  # fmt: skip
    wrong += [f"{one.where} is debuggable" for one in app.manifests if one.debuggable]
    wrong += [f"{one.where} is for tests only" for one in app.manifests if one.test_only]
    about = f"{packages[0] if packages else ''}, version {versions[0] if versions else 'not stated'}, a release build"
    return _check("manifest", _listed(wrong), about, "build the release variant of one app")


def _signed(app: _App, certificate: str | None) -> Iterator[AppCheck]:
    signers: set[frozenset[str]] = set()
    for path, archive in zip(app.paths, app.archives, strict=True):
        found = read_signature(path, _is_bundle(archive))
        if not found.program:
            # Not looked at is as bad as wrong where it was asked for.
            status: Status = "red" if certificate else "not checked"
            yield AppCheck("signature", status, f"{path.name}: {found.said}", "install apksigner and a Java runtime")
            return
        if not found.valid:
            wrong = f"{path.name} is not signed by anybody: {found.program} says {found.said!r}"
            yield AppCheck("signature", "red", wrong, "sign the app as you release it")
            return
        signers.add(found.certificates)
    known = sorted(set[str]().union(*signers))
    wrong = ""
    if len(signers) > 1:
        wrong = "the files are signed by different certificates"
    elif certificate and known != [certificate]:
        wrong = f"it is signed with certificate {', '.join(one[:12] for one in known)}, not {certificate[:12]}"
    yield _check("signature", wrong, f"certificate {', '.join(one[:12] for one in known)}"
                 + (", as demanded" if certificate else ""), "sign it with the release key")  # fmt: skip


def _native(app: _App, wanted: Mapping[str, set[str]] | None) -> AppCheck:
    libraries = app.contents.libraries
    if wanted is None:
        names = sorted({library.name for library in libraries})
        return AppCheck("libraries", "not checked", f"{_counted(len(names), 'native library', 'native libraries')};"
                        " --libraries says which may be there")  # fmt: skip
    wrong = [f"{one.where} is another build ({_identity(one)})" for one in libraries
             if one.name in wanted and not {one.sha256, one.build_id} & wanted[one.name]]  # fmt: skip
    wrong += [f"{name} is not in the app" for name in wanted if not any(one.name == name for one in libraries)]
    return _check("libraries", _listed(wrong), f"{', '.join(wanted)}: the builds that were judged",
                  "build the app with the native libraries of the llama.cpp that was judged")  # fmt: skip


def _identity(library: Library) -> str:
    return f"build id {library.build_id[:12]}" if library.build_id else f"SHA-256 {library.sha256[:12]}"


def _libraries(path: Path) -> dict[str, set[str]]:
    """Library's name -> SHA-256 and build ids that it may have. Raises UserError."""
    try:
        lines = read_regular(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"list of libraries {path} cannot be read: {why}") from None
    found: dict[str, set[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*([0-9a-fA-F]{16,128})\s+\*?([^\s/]+\.so)\s*", line)
        if not match:
            raise UserError(f"{path} line {number} is no SHA-256 or build id and name, such as '3f2c… libllama.so'")
        found.setdefault(match[2], set()).add(match[1].lower())
    if not found:
        raise UserError(f"list of libraries {path} names none")
    return found


def _hex(text: str) -> str:
    """A SHA-256 as programs write it, with or without colons."""
    plain = text.replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise UserError(f"certificate {text!r} is no SHA-256: give 64 hex digits, as `apksigner verify --print-certs`")
    return plain


def _listed(parts: Sequence[str]) -> str:
    more = len(parts) - _NAMED
    return "; ".join(parts[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
