"""The chat template as each side renders it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from anypair import EXACT, Tiny, reworded, tiny_pair
from models import Pair
from session import Once

from parity.engines.chat import picture_text, render_hf, render_llamacpp
from parity.engines.mtmd import Mtmd
from parity.studies.families.models import make_family
from parity.terms import MARKER
from pipeline.core.errors import UserError
from pipeline.models.auto import load_processor

QUESTION = "What is this?"
PICTURES = {
    "qwen2.5-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
    "smolvlm": "<image>",
}
"""What each family's template writes for a picture."""
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "smolvlm")]


@pytest.fixture(scope="module")
def qwen(once: Once) -> Tiny:
    return tiny_pair(once, "qwen2.5-vl")


@pytest.fixture(scope="module")
def side(qwen: Tiny) -> Iterator[Mtmd]:
    with Mtmd(qwen.text, qwen.mmproj, EXACT) as opened:
        yield opened


@pytest.mark.parametrize("name", ["qwen2.5-vl", *SLOW])
def test_what_stands_for_a_picture(once: Once, name: str) -> None:
    processor = load_processor(str(once(name, lambda folder: make_family(name, folder))))
    assert picture_text(processor) == PICTURES[name]
    with_picture, as_text = render_hf(processor, QUESTION)
    assert with_picture.count(PICTURES[name]) == 1
    assert as_text is not None
    # The marker as text is how llama-mtmd-cli asks. SmolVLM's template writes a space more in front of a text.
    assert (as_text.replace(MARKER, PICTURES[name]) == with_picture) == (name != "smolvlm")


def test_a_template_that_puts_pictures_in_front(qwen: Tiny) -> None:
    processor: Any = load_processor(str(qwen.folder))
    processor.chat_template = (
        "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<IMG>{% endif %}{% endfor %}"
        "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    assert picture_text(processor) == "<IMG>"


def test_the_marker_says_where_the_picture_stands(qwen: Tiny) -> None:
    processor = load_processor(str(qwen.folder))
    first, _ = render_hf(processor, QUESTION)
    assert f"{PICTURES['qwen2.5-vl']}{QUESTION}" in first
    behind, _ = render_hf(processor, f"Look: {MARKER} {QUESTION}")
    assert f"Look: {PICTURES['qwen2.5-vl']} {QUESTION}" in behind


@pytest.mark.parametrize("content", [QUESTION, f"{MARKER}{QUESTION}", "{{ 'jinja' }} <|im_end|> äöü 你好 " * 3])
def test_llama_cpp_renders_as_jinja(qwen: Tiny, side: Mtmd, content: str) -> None:
    tokenizer: Any = load_processor(str(qwen.folder)).tokenizer
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert render_llamacpp(side.handle, content) == wanted


def test_a_long_question_is_whole(side: Mtmd) -> None:
    assert render_llamacpp(side.handle, "wordy " * 30_000).count("wordy ") == 30_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "smolvlm", "qwen3-vl", "glm-4v", "lfm2-vl", "pixtral"])
def test_llama_cpp_renders_other_families_as_jinja(once: Once, name: str) -> None:
    pair = tiny_pair(once, name)
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(pair.folder)
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": MARKER + QUESTION}], add_generation_prompt=True, tokenize=False
    )
    with Mtmd(pair.text, pair.mmproj, EXACT) as side:
        found = render_llamacpp(side.handle, MARKER + QUESTION)
        begin = tokenizer.bos_token if llama_cpp.llama_vocab_get_add_bos(side.vocab) else ""
    # Where the vocabulary adds the token itself, llama.cpp takes it off the text.
    assert (begin or "") + found == wanted or found == wanted


def test_a_template_that_raises_is_told(qwen: Tiny, tmp_path: Path) -> None:
    processor: Any = load_processor(str(qwen.folder))
    processor.chat_template = "{{ raise_exception('pictures come first') }}"
    with pytest.raises(UserError, match=r"the processor's chat template fails: TemplateError: pictures come first"):
        render_hf(processor, QUESTION)
    template = (qwen.folder / "chat_template.jinja").read_text()
    text = reworded(qwen.text, tmp_path / "a.gguf", template, "{{ raise_exception('pictures come first') }}")
    with (
        Mtmd(text, qwen.mmproj, EXACT) as side,
        pytest.raises(
            UserError, match=r"the chat template of a\.gguf fails in llama\.cpp: .*pictures come first"
        ) as told,
    ):
        render_llamacpp(side.handle, QUESTION, "a.gguf")
    assert "\n" not in str(told.value)


def test_no_template_at_all_is_told(qwen: Tiny, tiny: Path, exact_pair: Pair) -> None:
    processor: Any = load_processor(str(tiny))
    assert picture_text(processor) == "<image>"
    with pytest.raises(UserError, match=r"has no chat template: give the whole prompt with --raw"):
        render_hf(processor, QUESTION)
    with (
        Mtmd(exact_pair.text, exact_pair.mmproj, EXACT) as side,
        pytest.raises(UserError, match=r"b\.gguf has no chat template: give the whole prompt with --raw"),
    ):
        render_llamacpp(side.handle, QUESTION, "b.gguf")


def test_a_processor_that_names_no_picture_is_told(tiny: Path) -> None:
    processor: Any = load_processor(str(tiny))
    processor.image_token = None
    with pytest.raises(UserError, match="names no text that stands for a picture"):
        picture_text(processor)
