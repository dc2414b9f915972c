"""What a container may do, and where a key can be seen: looked at from outside and inside while one trains."""

import os
import re
from pathlib import Path

import docker
from images import ROOT, Running, look

from tools.images.build import image_name
from tools.images.running import ORDINARY


def test_the_engine_was_asked_for_as_few_rights_as_can_be(trained: Running) -> None:
    config, host = trained.attributes["Config"], trained.attributes["HostConfig"]
    user = "{}:{}".format(*(ORDINARY if os.getuid() == 0 else (os.getuid(), os.getgid())))
    assert config["User"] == user
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["NetworkMode"] == "none"
    assert host["Privileged"] is False
    assert not host["Devices"]
    assert (host["PidMode"], host["IpcMode"], host["UTSMode"]) == ("", "private", "")
    assert host["Init"] is True
    assert host["Tmpfs"].keys() == {"/tmp"}


def test_nothing_is_mounted_but_what_is_needed_and_only_the_results_can_be_written(trained: Running) -> None:
    mounts = {mount["Destination"]: mount for mount in trained.attributes["Mounts"]}
    assert {target: mount["RW"] for target, mount in mounts.items()} == {
        "/work/runs": True, "/work/configs": False, "/run/secrets/keys": False
    }  # fmt: skip
    assert mounts["/work/runs"]["Source"] == str(trained.runs)
    assert mounts["/work/configs"]["Source"] == str(ROOT / "configs")


def test_a_process_inside_has_no_capability_and_can_gain_none(trained: Running) -> None:
    status = dict(line.split(":\t", 1) for line in trained.status.splitlines() if ":\t" in line)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert "0" not in status["Uid"].split()
    for attempt in ("become root", "open a raw socket", "give a file away"):
        code, said = trained.probes[attempt]
        assert code != 0, attempt
        assert "Operation not permitted" in said, attempt


def test_nothing_but_tmp_and_the_results_can_be_written(trained: Running) -> None:
    for place in ("write to the root", "write to the configs", "write to the code"):
        code, said = trained.probes[place]
        assert code != 0
        assert "Read-only file system" in said, place
    assert trained.probes["write to /tmp"] == (0, "x\n")
    assert trained.probes["run from /tmp"][0] != 0, "a program that was written there could be run"


def test_there_is_no_network_inside(trained: Running) -> None:
    assert trained.probes["interfaces"] == (0, "lo\n")
    assert trained.probes["routes"] == (0, "")


def test_without_the_runner_the_same_looks_find_more(client: docker.DockerClient) -> None:
    """A plain `docker run` as root, so that no test above passes because nothing could be seen."""
    container = client.containers.run(
        image_name("train"), ["sleep", "60"], user="0", network_mode="bridge", detach=True
    )
    try:
        probes, status = look(container)
    finally:
        container.remove(force=True)
    for name, (code, said) in probes.items():
        assert code == 0, f"{name}: {said}"
    assert probes["interfaces"][1].split() == ["eth0", "lo"]
    assert probes["routes"][1]
    assert re.search(r"(?m)^CapEff:\t(?!0+$)", status)
    assert "NoNewPrivs:\t0" in status


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_the_keys_reach_the_process(trained: Running) -> None:
    assert {f"{name}={value}" for name, value in trained.tokens.items()} <= trained.variables


def test_the_keys_are_nowhere_else_while_it_runs(trained: Running) -> None:
    assert "tools.images" in trained.command_lines, "the command lines were read"
    for value in trained.tokens.values():
        assert value not in str(trained.attributes), "docker inspect"
        assert value not in trained.command_lines, "a command line"
        assert value not in trained.output, "the screen"
        assert value not in trained.engine_log, "docker logs"


def test_the_keys_are_in_no_file_afterwards(trained: Running) -> None:
    (mount,) = [mount for mount in trained.attributes["Mounts"] if mount["Destination"] == "/run/secrets/keys"]
    assert not Path(mount["Source"]).exists()
    values = [value.encode() for value in trained.tokens.values()]
    files = [path for path in trained.runs.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if any(value in path.read_bytes() for value in values)]


def test_the_image_does_not_know_the_keys(trained: Running, client: docker.DockerClient) -> None:
    image = client.images.get(image_name("train"))
    told = f"{image.attrs} {image.history()}"
    assert not re.search("|".join([*trained.tokens, *trained.tokens.values()]), told)
