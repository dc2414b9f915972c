"""Real APKs, built and signed by Android's own tools as Debian packages them."""

import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
TOOLS = ("aapt2", "zipalign", "apksigner", "keytool", "jarsigner", "gcc")
PACKAGE = "org.example.elements"
MANIFEST = """<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="{package}"
 android:versionCode="{version}" {root}><uses-sdk android:minSdkVersion="26" android:targetSdkVersion="34"/>
 <application android:label="Elements" android:hasCode="false" {application}/></manifest>"""


def missing() -> str:
    """What cannot be built with, in a sentence; empty where all is there."""
    found = [tool for tool in TOOLS if not shutil.which(tool)] + ([] if FRAMEWORK.exists() else [str(FRAMEWORK)])
    packages = "aapt zipalign apksigner android-framework-res default-jdk-headless"
    return f"{', '.join(found)}: not installed (Debian: {packages})" if found else ""


def _run(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True).stdout


def _message(number: int, data: bytes) -> bytes:
    """A field of a protobuf message: a message or a text of at most 127 bytes."""
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


@dataclass(frozen=True)
class Builder:
    """Builds in a folder of its own, with a key of its own."""

    folder: Path

    def key(self, name: str = "release") -> Path:
        path = self.folder / f"{name}.p12"
        if not path.exists():
            _run("keytool", "-genkeypair", "-keystore", path, "-storepass", "123456", "-alias", "a", "-keyalg", "EC",
                 "-dname", f"CN={name}", "-validity", "9999")  # fmt: skip
        return path

    def library(self, name: str, text: str = "1") -> bytes:
        """A native library with a GNU build id, which depends on ``text``."""
        source, built = self.folder / "library.c", self.folder / name
        source.write_text(f'const char *said(void) {{ return "{text}"; }}\n')
        _run("gcc", "-shared", "-Wl,--build-id", "-o", built, source)
        return built.read_bytes()

    def apk(
        self,
        name: str,
        files: Mapping[str, bytes],
        package: str = PACKAGE,
        version: int = 7,
        root: str = "",
        application: str = "",
        deflated: bool = False,
        key: str | None = "release",
    ) -> Path:
        """An aligned APK with ``files``, signed with a key unless that is None."""
        manifest, path = self.folder / "AndroidManifest.xml", self.folder / f"{name}.apk"
        manifest.write_text(
            MANIFEST.format(package=package, version=version, root=root, application=application), encoding="utf-8"
        )
        linked, aligned = self.folder / "linked.apk", self.folder / "aligned.apk"
        _run("aapt2", "link", "-o", linked, "-I", FRAMEWORK, "--manifest", manifest)
        with zipfile.ZipFile(linked, "a") as archive:
            for inside, data in files.items():
                stored = inside.endswith((".gguf", ".so")) and not deflated
                archive.writestr(inside, data, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
        _run("zipalign", "-f", "-p", "4", linked, aligned)
        if key is None:
            return Path(shutil.copy(aligned, path))
        _run("apksigner", "sign", "--ks", self.key(key), "--ks-pass", "pass:123456", "--v4-signing-enabled", "false",
             "--out", path, aligned)  # fmt: skip
        return path

    def aab(
        self, name: str, files: Mapping[str, bytes], globs: tuple[str, ...] = ("**.gguf",), key: str | None = "release",
        application: str = "",
    ) -> Path:  # fmt: skip
        """A bundle for a store with one module, signed by jarsigner. All in it is deflated; ``globs`` name what will
        not be so in its APKs (BundleConfig of bundletool's config.proto)."""
        manifest, path = self.folder / "AndroidManifest.xml", self.folder / f"{name}.aab"
        manifest.write_text(MANIFEST.format(package=PACKAGE, version=7, root="", application=application))
        linked = self.folder / "linked.apk"
        _run("aapt2", "link", "--proto-format", "-o", linked, "-I", FRAMEWORK, "--manifest", manifest)
        tool = _message(1, _message(2, b"1.18.0"))
        compression = _message(3, b"".join(_message(1, glob.encode()) for glob in globs))
        with zipfile.ZipFile(linked) as proto, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("BundleConfig.pb", tool + compression)
            archive.writestr("base/manifest/AndroidManifest.xml", proto.read("AndroidManifest.xml"))
            archive.writestr("base/resources.pb", proto.read("resources.pb"))
            for inside, data in files.items():
                archive.writestr(f"base/{inside}", data)
        if key:
            _run("jarsigner", "-keystore", self.key(key), "-storepass", "123456", path, "a")
        return path

    def certificate(self, key: str = "release") -> str:
        """SHA-256 of a key's certificate, as keytool writes it."""
        said = _run("keytool", "-list", "-v", "-keystore", self.key(key), "-storepass", "123456")
        return next(line.split("SHA256: ")[1].strip() for line in said.splitlines() if "SHA256: " in line)
