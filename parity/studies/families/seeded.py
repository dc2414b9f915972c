"""What the tiny models of all families share: a vocabulary, weights from a seed, and a folder as the hub has it.

A family is written down in its module as transformers' configuration, the files of its processor and a chat template.
The weights are random but not small: as transformers initializes them, a model says the same whatever the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.files import write_json
from pipeline.models.smolvlm.embedded import BASE_VOCABULARY, smollm2_tokenizer
from pipeline.models.smolvlm.inspect import read_object

TABLE_DEVIATION = 0.3
"""Of the token table, which is the output layer too: at 64 wide the logits get a deviation of about 2."""
LANGUAGE_GAIN = 1.5
"""Of the language layers' matrices beside the vision half's: a picture is many tokens, which attention averages."""
SHARPENING = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
"""Norms of queries and keys. At a gain of 1 attention would be spread over all tokens alike."""
POSITION_DEVIATION = 0.3
"""Of tables of positions and class tokens, beside patches of about 1."""


@dataclass(frozen=True)
class Vocabulary:
    """SmolLM2's 49,152 tokens and those that a family adds, which come after them."""

    added: tuple[str, ...]
    roles: dict[str, Any] = field(default_factory=dict)
    """Settings of the tokenizer: ``bos_token``, ``eos_token``, ``pad_token``, ``extra_special_tokens``, ..."""

    multiple: int = 1
    """The table's rows are a multiple of this; those beyond the tokens stand for none."""

    @property
    def size(self) -> int:
        """Rows of the table."""
        return -(-(BASE_VOCABULARY + len(self.added)) // self.multiple) * self.multiple

    def id(self, token: str) -> int:
        """The id of an added token."""
        return BASE_VOCABULARY + self.added.index(token)


def write_family(
    folder: Path,
    model: Any,
    seed: int,
    vocabulary: Vocabulary,
    template: str,
    files: dict[str, Any],
    rename: Callable[[str], str] = lambda name: name,
    after_layers: tuple[str, ...] = (),
    config: dict[str, Any] | None = None,
) -> None:
    """Write a model folder in the form in which the family stands on the hub.

    ``model``: of transformers' class, its weights drawn anew here from ``seed``. ``files``: JSON files by name, such as
    ``preprocessor_config.json``. ``rename``: the hub's name of a tensor where transformers would save it under another.
    ``after_layers``: see :func:`draw_weights`. ``config``: values that transformers leaves out of the objects in
    config.json, by the objects' names.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    draw_weights(model, seed, after_layers)
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    renamed = {rename(name): value for name, value in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    if config:
        written = read_object(folder / "config.json")
        for key, values in config.items():
            written[key] |= values
        write_json(folder / "config.json", written)
    smollm2_tokenizer(vocabulary.added, **vocabulary.roles).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name, content in files.items():
        write_json(folder / name, content)


def build(model_class: Any, config: Any) -> Any:
    """A float32 model of a configuration, whatever the state of torch's generator, which is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config).float().eval()


def draw_weights(model: Any, seed: int, after_layers: tuple[str, ...] = ()) -> None:
    """Draw all weights of a model again: each layer answers at about the size of what it is given.

    Matrices and filters get a deviation of 1 / sqrt(inputs), in the language layers more; biases and the gains of
    norms, which are 0 or 1 before, get 0.1 on top, so that one that is dropped or taken for another shows.
    ``after_layers``: names of norms that stand behind the language layers, which would hold what a layer says down to
    the size of the token table.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter is table:
                parameter.copy_(noise * TABLE_DEVIATION)
            elif any(word in name for word in ("position_embedding", "pos_embed", "cls_token")):
                parameter.copy_(noise * POSITION_DEVIATION)
            elif name.endswith("A_log"):
                parameter.copy_(noise * 0.1 - 3)  # as it is initialized, linear attention forgets within a token
            elif parameter.ndim < 2:
                kind = name.split(".")[-2] if ".language_model.layers." in name else ""
                parameter.add_(noise * 0.1 + LANGUAGE_GAIN * (kind in after_layers) + (kind in SHARPENING))
            else:
                gain = LANGUAGE_GAIN if ".language_model.layers." in name else 1
                parameter.copy_(noise * gain / (parameter.numel() / len(parameter)) ** 0.5)


def chat_template(turn: str, end: str, reply: str, picture: str, begin: str = "''") -> str:
    """A chat template: ``begin``, then for each message ``turn``, its parts and ``end``; at the end ``reply``.

    ``turn`` and ``begin`` are expressions of Jinja, in which ``role`` and ``message`` can stand; the others are texts.
    A part that is a picture becomes ``picture``, a part that is text the text itself. A message's content may also be
    one string.
    """
    return (
        f"{{{{- {begin} }}}}"
        "{%- for message in messages -%}"
        f"{{%- set role = message['role'] -%}}{{{{- {turn} -}}}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] -%}"
        f"{{%- if part['type'] == 'image' -%}}{{{{- {picture!r} -}}}}"
        "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
        f"{{{{- {end!r} -}}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {reply!r} -}}}}{{%- endif -%}}"
    )
