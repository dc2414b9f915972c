"""In a build stage: writes manifest.json beside compiled files.

manifest.py FOLDER ARCHITECTURE FLAGS REQUIRES COMPILER
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

folder, architecture, flags, requires, compiler = sys.argv[1:]
files = {
    path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(Path(folder).rglob("*"))
    if path.is_file() and not path.is_symlink()
}
version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
manifest = {
    "schema_version": 1,
    "architecture": architecture,
    "source": {
        "archive": os.environ["LLAMA_ARCHIVE"],
        "sha256": os.environ["LLAMA_ARCHIVE_SHA256"],
        "llama_cpp_commit": os.environ["LLAMA_CPP_COMMIT"],
    },
    "compiler": version,
    "flags": dict(flag.removeprefix("-D").split("=", 1) for flag in flags.split()),
    "requires": requires.split(),
    "files": files,
}
(Path(folder) / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
