"""A model's chat template, rendered by Hugging Face and by llama.cpp.

Hugging Face is given a message with a picture part. llama-mtmd-cli puts the marker into the message's text instead
(tools/mtmd/mtmd-cli.cpp), which a template may treat otherwise; to tell that from a different template or renderer, the
tokenizer's template is rendered that way, too.
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import llama_cpp

from parity.terms import MARKER
from pipeline.core.errors import UserError

_PICTURE, _BEFORE, _AFTER = {"type": "image"}, "\u27e6before\u27e7", "\u27e6after\u27e7"

_RAW = f"give the whole prompt with --raw, {MARKER} where the picture goes"


@functools.cache
def _library() -> Any:
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(llama_cpp.__file__).parent / "lib")
    library = ctypes.CDLL(str(folder / "libparity-chat.so"))
    library.parity_chat_render.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    library.parity_chat_render.restype = ctypes.c_int
    return library


def render_llamacpp(model: Any, content: str, name: str = "the model") -> str:
    """llama.cpp's prompt for a first message of the user. ``model``: ``llama_model *``. Raises UserError where the GGUF
    has no template, or it fails."""
    size = 1 << 16
    while True:
        buffer = ctypes.create_string_buffer(size)
        code = _library().parity_chat_render(model, content.encode(), buffer, size)
        if code <= 0:
            break
        size = code
    text = buffer.value.decode(errors="replace")
    if code == -2:
        raise UserError(
            f"{name} has no chat template: give the whole prompt with --raw, {MARKER} where the picture goes"
        )
    if code == -1:
        raise UserError(f"the chat template of {name} fails in llama.cpp: {' '.join(text.split())}")
    return text


def picture_text(processor: Any) -> str:
    """What a processor's template writes for a picture: ``<image>``, ``<|vision_start|><|image_pad|><|vision_end|>``.

    Without a template, the processor's own token. Raises UserError where the template fails or there is no such token.
    """
    if not _has_template(processor):
        token = getattr(processor, "image_token", None)
        if not isinstance(token, str):
            raise UserError(
                "the processor names no text that stands for a picture, and has no chat template to show it"
            )
        return token
    parts = [{"type": "text", "text": _BEFORE}, _PICTURE, {"type": "text", "text": _AFTER}]
    text = _apply(processor, parts)
    between = text.partition(_BEFORE)[2].partition(_AFTER)[0]
    if between.strip():
        return between
    # A template may put the pictures in front of all text: what it writes more than without one.
    plain = _apply(processor, [{"type": "text", "text": _BEFORE + _AFTER}])
    head = next((i for i, (x, y) in enumerate(zip(text, plain, strict=False)) if x != y), len(plain))
    return text[head : len(text) - (len(plain) - head)]


def render_hf(processor: Any, question: str) -> tuple[str, str | None]:
    """(the prompt with a picture part, the prompt with the marker as text or None); ``question`` may hold the marker
    where the picture goes, else the picture comes first, as llama-mtmd-cli puts it. The first has the processor's own
    words for a picture. Raises UserError where the processor has no template, or it fails."""
    before, found, after = question.partition(MARKER)
    parts = [{"type": "text", "text": text} if text else None for text in (before, after if found else before)]
    content = [parts[0], _PICTURE, parts[1]] if found else [_PICTURE, parts[1]]
    with_picture = _apply(processor, [part for part in content if part])
    try:
        as_text = _apply(processor, question if found else MARKER + question)
    except UserError:
        as_text = None
    return with_picture, as_text


def _has_template(processor: Any) -> bool:
    return bool(getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None))


def _apply(processor: Any, content: Any) -> str:
    messages = [{"role": "user", "content": content}]
    if not _has_template(processor):
        raise UserError(f"the processor has no chat template: {_RAW}")
    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template is a program, which may raise whatever it likes
        raise UserError(f"the processor's chat template fails: {type(error).__name__}: {error}") from None
