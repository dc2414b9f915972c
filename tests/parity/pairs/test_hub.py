"""A pair by a repository's name: which files are taken, and that they come, from a server that speaks as the hub."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from parity.pairs.hub import choose, fetch_pair
from pipeline.core.errors import UserError

FILES = {
    "README.md": b"a model",
    "tiny-F16.gguf": b"text in F16",
    "tiny-Q4_K_M.gguf": b"text in Q4_K_M",
    "tiny-Q8_0.gguf": b"text in Q8_0",
    "mmproj-tiny-F16.gguf": b"mmproj in F16",
    "mmproj-tiny-Q8_0.gguf": b"mmproj in Q8_0",
    "tiny-imatrix.gguf": b"no model",
}
COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("tag", "text", "mmproj"),
    [
        ("Q8_0", "tiny-Q8_0.gguf", "mmproj-tiny-Q8_0.gguf"),
        ("q8_0", "tiny-Q8_0.gguf", "mmproj-tiny-Q8_0.gguf"),
        ("F16", "tiny-F16.gguf", "mmproj-tiny-F16.gguf"),
        ("", "tiny-Q4_K_M.gguf", "mmproj-tiny-Q8_0.gguf"),  # Q4_K_M first; of 8 and 16 bits 8 are nearer to 4
    ],
)
def test_the_files_are_those_that_llama_cpp_takes(tag: str, text: str, mmproj: str) -> None:
    assert choose(list(FILES), tag) == (text, mmproj)


def test_a_nearer_folder_wins() -> None:
    files = ["a/m-Q8_0.gguf", "a/mmproj-m-F32.gguf", "b/mmproj-m-Q8_0.gguf", "mmproj-m-Q8_0.gguf"]
    assert choose(files, "Q8_0") == ("a/m-Q8_0.gguf", "a/mmproj-m-F32.gguf")


@pytest.mark.parametrize(
    ("files", "tag", "message"),
    [
        (["m-Q8_0.gguf"], "Q8_0", "has no mmproj for m-Q8_0.gguf"),
        (["m-Q8_0.gguf", "mmproj-m.gguf"], "Q4_0", "no GGUF of Q4_0 in the repository; it has m-Q8_0.gguf"),
        (["README.md"], "", "it has no GGUF"),
        (["m-Q8_0-00001-of-00003.gguf", "mmproj-m.gguf"], "Q8_0", "is one of 3 parts"),
    ],
)
def test_what_cannot_be_chosen(files: list[str], tag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(files, tag)


class Hub(BaseHTTPRequestHandler):
    """The two calls that huggingface_hub makes: what a repository holds, and a file of it."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/tiny"):
            siblings = [{"rfilename": name} for name in FILES]
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()]
            about = {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "siblings": siblings}
            data = json.dumps(tree if "/tree/" in path else about).encode()
            self.reply(200, data, {"Content-Type": "application/json"}, body)
        elif path.startswith("/owner/tiny/resolve/main/") and (name := path.rpartition("/main/")[2]) in FILES:
            data = FILES[name]
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.reply(200, data, headers, body)
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def reply(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    # Read once, when the package is imported.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
    yield address
    server.shutdown()


def test_a_pair_is_fetched(hub: str) -> None:
    text, mmproj = fetch_pair("owner/tiny:Q8_0")
    assert (text.read_bytes(), mmproj.read_bytes()) == (b"text in Q8_0", b"mmproj in Q8_0")


def test_a_repository_that_is_not_there(hub: str) -> None:
    with pytest.raises(UserError, match=r"--hf owner/none:Q8_0: .*(no repository owner/none|cannot be had)"):
        fetch_pair("owner/none:Q8_0")


def test_a_name_that_is_none() -> None:
    with pytest.raises(UserError, match="give owner/name, or owner/name:Q8_0"):
        fetch_pair("tiny")
