"""`make docker-train` and `make docker-parity` as a user meets them: what comes out, whose it is, what is said."""

import json
import os
import re
import subprocess
from pathlib import Path

import docker
import pytest
from images import ROOT, Running, run

from pipeline.export.verify import verify_bundle
from tools.images.build import image_name
from tools.images.digest import content_digest, image_tree
from tools.images.engine import Engine


def test_the_images_are_of_this_code(client: docker.DockerClient) -> None:
    """Else every other test here is about another."""
    script = "cd /opt/app && sha256sum $(find pipeline parity docker -name '*.py' | sort)"
    for stage in ("train", "parity"):
        said = client.containers.run(image_name(stage), ["sh", "-c", script], remove=True).decode()
        inside = {name: sha256 for sha256, name in (line.split() for line in said.splitlines())}
        names = subprocess.run(
            ["sha256sum", *sorted(inside)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
        ).stdout.splitlines()
        here = {name: sha256 for sha256, name in (line.split() for line in names)}
        changed = [name for name in inside if inside[name] != here.get(name)]
        assert not changed, f"run `make docker-build`: {image_name(stage)} has other versions of {changed}"


def test_training_leaves_a_whole_bundle(trained: Running) -> None:
    assert trained.code == 0, trained.output
    names = {path.name for path in (trained.run / "bundle").iterdir()}
    assert names == {"Tiny-Element-Q8_0.gguf", "mmproj-Tiny-Element-Q8_0.gguf", "contract.json", "manifest.json"}
    verify_bundle(trained.run / "bundle")


def test_the_stages_are_told_as_they_go(trained: Running) -> None:
    """The container was looked at when its first stage had been told of, so that line did not wait for the end."""
    assert trained.attributes["State"]["Running"]
    assert "] dataset " in trained.while_running
    assert "] export " not in trained.while_running
    told = [re.sub(r"^\[\d/\d\] ", "", line).split()[0] for line in trained.output.splitlines()]
    assert [name for name in told if name in ("dataset", "base", "merge", "export")] == [
        "dataset", "base", "merge", "export"
    ]  # fmt: skip
    assert "docker stop" in trained.output.splitlines()[0]


def test_the_results_belong_to_the_caller(trained: Running) -> None:
    paths = [trained.runs, *trained.runs.rglob("*")]
    assert len(paths) > 50
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in paths} == {(os.getuid(), os.getgid())}


def test_the_manifest_names_the_image_by_a_digest_that_can_be_computed_again(trained: Running, engine: Engine) -> None:
    image = json.loads((trained.run / "bundle" / "manifest.json").read_text())["image"]
    name = image_name("train")
    assert image["content_digest"] == content_digest(image_tree([engine.client], name))
    assert (image["name"], image["id"]) == (name, engine.image_id(name))


def test_parity_ends_with_a_verdict_that_is_its_exit_code(trained: Running, judged: tuple[int, str]) -> None:
    code, said = judged
    verdict = json.loads((trained.run / "parity" / "verdict.json").read_text())
    assert code == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}[verdict["status"]], said
    assert f" {verdict['status']} " in said
    gates = {gate["stage"]: gate["status"] for gate in verdict["gates"]}
    # So small a model may miss the margin; that both sides get and answer the same is no matter of training.
    same = ("provenance", "runtime", "letterbox", "decoded", "pixels", "tiles", "tokens", "embeddings", "answers")
    assert {gates[stage] for stage in same} == {"green"}, said
    assert (trained.run / "parity" / "report.html").is_file()


def test_parity_goes_on_from_what_training_made(judged: tuple[int, str]) -> None:
    named = [(re.sub(r"^\[\d/\d\] ", "", line).split(), line) for line in judged[1].splitlines()]
    lines = {words[0]: line for words, line in named if words}
    assert all("unchanged" in lines[stage] for stage in ("dataset", "base", "train", "merge", "export")), judged[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.epoch=1"], "train.epoch"),
        (["--recipe", "no-such.yaml"], "there is no recipe no-such.yaml"),
        (["--photos", "no-such-folder"], "PHOTOS=no-such-folder is no folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    code, said = run("train", "--no-build", "--runs", tmp_path / "runs", *arguments)
    assert code == 2
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert words in error
    assert "Traceback" not in said
