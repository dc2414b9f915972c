"""The in-process predictor against llama-server and against llama-mtmd-cli started for each image.

All run the same images, the same GGUF pair, the same number of threads and the contract's runtime profile on the CPU,
and generate greedily up to the contract's limit. They take turns, so that all see the same machine; the figures are
medians over the turns. Each begins where the harness begins, with the decoded canvas in memory: a server
wants it as a compressed file, which its client has to make and the server to decode (a row of its own shows it without
the making); the command line is given the file on disk.
"""

import base64
import ctypes
import http.client
import io
import json
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp
from PIL import Image

from parity.compare.samples import load_samples, spread
from parity.engines.llamacpp import LlamaCppPredictor
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.pinned import llama_tool
from pipeline.core.toolchain import ROOT
from pipeline.export.bundle import mmproj_name, text_name
from pipeline.models.prediction import log_softmax, top_logits
from pipeline.models.smolvlm.encoding import fed_bytes, make_encoder
from pipeline.models.smolvlm.folder import load_tokenizer, read_geometry
from pipeline.workflow.build import Build

IMAGES = 40
CLI_IMAGES = 8
READY_MADE = "  PNG ready made"
"""The server's row without its client's compressing."""
TURNS = 5
SERVER_START_SECONDS = 60.0
CLI_SECONDS = 60.0

Canvas = npt.NDArray[np.uint8]


@dataclass
class Way:
    """One way to get answers: ``answers`` yields a text for each of ``inputs``' values, in order."""

    name: str
    inputs: dict[str, Any]
    """Sample's key -> what this way is given."""
    answers: Callable[[Iterable[Any]], Iterator[str]]
    load_s: float | None
    """Seconds to load the model once; None where that is done for each image."""
    ms: list[float] = field(default_factory=list)
    """An image, of each turn: several may come at once, so that single times mean nothing."""
    texts: dict[str, str] = field(default_factory=dict)
    """Sample's key -> the last answer."""

    def turn(self) -> None:
        """Answer every input once."""
        start = time.perf_counter()
        self.texts = dict(zip(self.inputs, self.answers(self.inputs.values()), strict=True))
        self.ms.append((time.perf_counter() - start) * 1e3 / len(self.inputs))


def flags(contract: Contract, model: Path, mmproj: Path, n_threads: int) -> list[str]:
    """The contract's runtime profile as options of llama.cpp's own programs, which are built for the CPU alone."""
    runtime = contract.runtime
    return [
        *("--model", str(model), "--mmproj", str(mmproj), "--threads", str(n_threads)),
        *(
            "--ctx-size",
            str(runtime.n_ctx),
            "--batch-size",
            str(runtime.n_batch),
            "--ubatch-size",
            str(runtime.n_batch),
        ),
        *("--cache-type-k", runtime.type_k, "--cache-type-v", runtime.type_v),
        *("--flash-attn", "on" if runtime.flash_attn else "off"),
    ]


class Server:
    """llama-server on a free port of 127.0.0.1, from the ``with`` block's start, where it is ready, to its end.

    Raises UserError where it does not start.
    """

    def __init__(self, options: Sequence[str], contract: Contract) -> None:
        self._program = llama_tool(ROOT, "llama-server")
        self._options, self._contract = options, contract

    def __enter__(self) -> Self:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        where = ["--host", "127.0.0.1", "--port", str(self._port), "--parallel", "1"]
        self._log = tempfile.TemporaryFile()  # closed by _stop
        self._process = subprocess.Popen(
            [self._program, *self._options, *where], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        try:
            self._wait()
            # It draws its marker at random at each start.
            marker = self._ask(self._connect(), "GET", "/props")["media_marker"]
        except BaseException:
            self._stop()
            raise
        self._prompt = self._contract.prompt.replace(self._contract.media_marker, marker)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + SERVER_START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            connection = self._connect()
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass  # not listening yet
            finally:
                connection.close()
            time.sleep(0.02)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        raise UserError(f"{self._program} did not get ready: {reason}")

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def _ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"llama-server answered {path} with {response.status}: {content[:300]!r}")
        return json.loads(content)

    def answers(self, files: Iterable[bytes]) -> Iterator[str]:
        """What is generated for each picture (PNG, as bytes), one after another on one connection."""
        connection = self._connect()
        try:
            for data in files:
                picture = base64.b64encode(data).decode()
                body = {
                    "prompt": {"prompt_string": self._prompt, "multimodal_data": [picture]},
                    "n_predict": self._contract.max_new_tokens,
                    "temperature": 0,
                    "cache_prompt": False,
                }
                yield self._ask(connection, "POST", "/completion", body)["content"]
        finally:
            connection.close()


def command_line(options: Sequence[str], contract: Contract, files: Iterable[Path]) -> Iterator[str]:
    """What llama-mtmd-cli prints for each picture file, one process each.

    Raises UserError where it fails or is not built.
    """
    program = llama_tool(ROOT, "llama-mtmd-cli")
    asked = ["--prompt", contract.prompt, "--predict", str(contract.max_new_tokens), "--temp", "0"]
    # It insists on a chat; the contract's prompt is sent as it is, so the template adds nothing to it.
    raw = ["--jinja", "--chat-template", "{{ messages[0]['content'] }}"]
    for file in files:
        command = [str(program), *options, *asked, *raw, "--image", str(file)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CLI_SECONDS, check=False)
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip().split("\n")[-1]
            raise UserError(f"{program} failed on {file} with exit code {done.returncode}: {reason}")
        yield done.stdout.decode(errors="replace")


def as_the_app(model: LlamaCppPredictor, contract: Contract, canvases: Iterable[Canvas]) -> Iterator[str]:
    """The app's own calls, one image after another: mtmd_helper_eval_chunks, then a token at a time.

    Beside the answer it makes what the predictor makes of an image: hash, label probabilities, greatest logits.
    """
    mtmd, context, vocabulary = model._mtmd, model._context, model.decoder.vocab
    for canvas in canvases:
        fed = fed_bytes(canvas, contract)
        sha256_bytes(fed.tobytes())
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        past = ctypes.c_int32(0)
        with model.tokenize(fed) as chunks:
            n_batch = min(contract.runtime.n_batch, contract.runtime.n_ctx)
            mtmd_cpp.mtmd_helper_eval_chunks(
                mtmd, context, chunks._chunks, 0, 0, n_batch, True, ctypes.byref(past)
            )  # fmt: skip
        ids: list[int] = []
        while len(ids) < contract.max_new_tokens:
            pointer = llama_cpp.llama_get_logits_ith(context, -1)
            logits = np.ctypeslib.as_array(pointer, shape=(model.decoder.n_vocab,)).copy()
            if not ids:
                log_softmax(logits)
                top_logits(logits)
            token = int(logits.argmax())
            if llama_cpp.llama_vocab_is_eog(vocabulary, token):
                break
            ids.append(token)
            one = (llama_cpp.llama_token * 1)(token)
            llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(one, 1))
        yield model.decoder.text(ids)


def png(canvas: Canvas) -> bytes:
    """A canvas uint8 [size, size, 3] as a PNG file, at the level that takes the least time."""
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def rows(ways: Sequence[Way], contract: Contract) -> list[dict[str, Any]]:
    """A row for each way: way, images, ms (median an image), load_s, and, against the first, ratio and same_label."""
    own = ways[0]
    own_ms = statistics.median(own.ms)
    labels = {key: contract.parse_answer(text) for key, text in own.texts.items()}
    return [
        {
            "way": way.name,
            "images": len(way.inputs),
            "ms": statistics.median(way.ms),
            "load_s": way.load_s,
            "ratio": statistics.median(way.ms) / own_ms,
            "same_label": sum(contract.parse_answer(text) == labels[key] for key, text in way.texts.items()),
        }
        for way in ways
    ]


def run(build: Build) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(:func:`rows` of a build that is exported, the set-up they share). Raises UserError where it is not exported."""
    contract, merged = build.recipe.contract, build.merged_folder
    model, mmproj = (build.bundle_folder / name(build.recipe) for name in (text_name, mmproj_name))
    if not model.is_file():
        raise UserError(f"there is no {model} to run: `make bench` makes it first")
    samples = spread(load_samples(build.dataset_folder, contract)[0], IMAGES)
    canvases = {sample.key: sample.rgb for sample in samples}
    files = {sample.key: sample.folder / sample.record.image_path for sample in spread(samples, CLI_IMAGES)}
    encoder = make_encoder(contract, load_tokenizer(merged), read_geometry(merged))
    start = time.perf_counter()
    with (
        LlamaCppPredictor(model, mmproj, encoder) as predictor,
        LlamaCppPredictor(model, mmproj, encoder, sequences=1) as alone,
    ):
        loaded = time.perf_counter()
        options = flags(contract, model, mmproj, predictor.n_threads)
        with Server(options, contract) as server:
            serving = time.perf_counter() - loaded
            ways = [
                Way("in process", canvases, lambda given: (p.text for p in predictor.predict(given)), loaded - start),
                Way("as the app does", canvases, lambda given: as_the_app(alone, contract, given), loaded - start),
                Way("llama-server", canvases, lambda given: server.answers(map(png, given)), serving),
                Way(READY_MADE, {key: png(value) for key, value in canvases.items()}, server.answers, serving),
                Way("llama-mtmd-cli", files, lambda given: command_line(options, contract, given), None),
            ]
            take_turns(ways)
        about = contract.runtime.model_dump(mode="json") | {"n_threads": predictor.n_threads}
    return rows(ways, contract), about | {"max_new_tokens": contract.max_new_tokens, "model": model.name}


def take_turns(ways: Sequence[Way]) -> None:
    """One turn that does not count, then :data:`TURNS` of each way."""
    for way in ways:
        way.turn()
        way.ms.clear()
    for _ in range(TURNS):
        for way in ways:
            way.turn()
