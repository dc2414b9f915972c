"""docker/compose.yaml and docker/docker-bake.json as the real tools read them, where this machine has these tools."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.images.build import IMAGES, image_name
from tools.images.engine import Engine


@pytest.fixture
def compose(engine: Engine) -> list[str]:
    """The beginning of compose's command line."""
    for command in ([engine.client, "compose"], [shutil.which("docker-compose") or "docker-compose"]):
        try:
            if subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            continue
    pytest.skip("no compose is here: `apt-get install docker-compose`")


@pytest.mark.parametrize("service", ["train", "parity"])
def test_compose_runs_the_image_with_no_rights(compose: list[str], project: Path, service: str) -> None:
    (project / "runs").mkdir()
    os.chmod(project / "runs", 0o777)
    script = "cat /proc/self/status; ls /sys/class/net; touch /x; touch /work/configs/x; touch /work/runs/made; id -u"
    command = [*compose, "-f", "docker/compose.yaml", "run", "--rm", "-T", service, "sh", "-c", script]
    environment = {name: value for name, value in os.environ.items() if name not in ("UID", "GID")}
    done = subprocess.run(
        command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    said = done.stdout
    assert done.returncode == 0, said
    assert re.search(r"(?m)^CapEff:\t0+$", said)
    assert re.search(r"(?m)^CapBnd:\t0+$", said)
    assert "NoNewPrivs:\t1" in said
    assert "\nlo\n" in said
    assert "eth" not in said
    assert said.count("Read-only file system") == 2
    assert re.search(r"(?m)^10001$", said)
    assert (project / "runs" / "made").stat().st_uid == 10001


def test_bake_reads_every_target(engine: Engine, project: Path) -> None:
    bake = [engine.client, "buildx", "bake", "--file", "docker/docker-bake.json"]
    if subprocess.run([engine.client, "buildx", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no buildx is here")
    for group, torch in (("default", "cpu"), ("cuda", "cuda")):
        done = subprocess.run([*bake, "--print", group], cwd=project, capture_output=True, text=True, check=True)
        targets = json.loads(done.stdout)["target"]
        assert {target["tags"][0] for target in targets.values()} == {image_name(stage, torch) for stage in IMAGES}
        assert {target["args"].get("TORCH_VARIANT", "cpu") for target in targets.values()} == {torch}
