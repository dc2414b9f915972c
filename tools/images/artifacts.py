"""What leaves the images: llama.cpp's programs, and an SBOM and a content digest of each image, in ``dist/``.

dist/llama.cpp/x86_64/  dist/llama.cpp/aarch64/   programs, each folder with its manifest.json
dist/<image>.cdx.json                             CycloneDX SBOM
dist/images.json                                  name, id, size and content digest of each image
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_folder, write_json
from tools.images.build import IMAGES, NAME, folder, image_name
from tools.images.digest import content_digest, image_tree
from tools.images.engine import Engine
from tools.images.sbom import KEEP, image_sbom
from tools.setup.native import Console


def write_artifacts(root: Path, engine: Engine, torch: str, console: Console) -> None:
    """Fill ``dist/`` from the images.

    Raises UserError where an image is missing, CheckFailed where its files are not those of its manifest.
    """
    dist = root / "dist"
    names = {stage: image_name(stage, torch) for stage in IMAGES}
    missing = [name for name in names.values() if not engine.image_id(name)]
    if missing:
        raise UserError(f"there is no image {missing[0]}: run `make docker-build` first")
    images = {}
    for stage, name in names.items():
        tree = image_tree([engine.client], name, keep=KEEP)
        digest = content_digest(tree)
        size = engine.image_size(name)
        labels = engine.ask(
            "image", "inspect", "--format", "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}\n{{end}}", name
        )
        given = dict(line.split("=", 1) for line in labels.splitlines() if "=" in line)
        write_json(dist / f"{stage}.cdx.json", image_sbom(tree, name, digest, given))
        images[stage] = {"name": name, "id": engine.image_id(name), "size": size, "content_digest": digest}
        console.step(f"{dist / stage}.cdx.json: {digest[:19]}, {size / 1e6:.0f} MB")
    container = engine.ask("create", names["artifacts"], "none")
    try:
        with atomic_folder(dist / "llama.cpp") as scratch:
            for architecture in ("x86_64", "aarch64"):
                engine.ask("cp", f"{container}:/{architecture}", str(scratch))
    finally:
        engine.run("rm", container)
    write_json(dist / "images.json", {"schema_version": 1, "images": images})
    console.step(f"{dist / 'llama.cpp'}: programs for x86-64 and aarch64")


def remove_images(root: Path, engine: Engine) -> str:
    """Remove this project's containers, its images and what was gathered for their build; says how many."""
    containers = engine.ask("ps", "--all", "--quiet", "--filter", f"name=^{NAME}-").split()
    if containers:
        engine.ask("rm", "--force", *containers)
    names = engine.ask("images", "--format", "{{.Repository}}:{{.Tag}}", f"{NAME}/*").split()
    if names:
        engine.ask("rmi", "--force", *names)
    shutil.rmtree(folder(root), ignore_errors=True)
    for place in ("ca", "build", "wheels"):
        for file in (root / "docker" / "inputs" / place).iterdir():
            if file.name != ".gitkeep":
                file.unlink()
    return f"removed {len(names)} images and {len(containers)} containers"
