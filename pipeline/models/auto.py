"""Any family's processor and model, through transformers' Auto classes, with no code of a family here.

Pictures go through Pillow and no video processor is made. transformers has two backends for pictures whose pixels
differ (Qwen2.5-VL: 21 % of the bytes, 4 % in the embeddings); libmtmd follows Pillow's, so that one is pinned, whether
torchvision is installed or not. Video processors exist for torchvision alone, and several processors insist on theirs
even where no video is ever given.
"""

import importlib
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import UserError
from pipeline.models.smolvlm.inspect import first_line, read_object, stored_shapes

Attention = Literal["eager", "sdpa"]

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_processor(folder_or_id: str) -> Any:
    """The processor of a model folder or of an id on the hub, its pictures prepared by Pillow.

    Its ``video_processor``, where it has one, is None: text and pictures work as always, a video fails. Code that a
    model brings along is never run. Raises UserError for what is no model that answers in text about a picture, and
    for a family whose pictures only torchvision can prepare (LFM2-VL) where that is not installed.
    """
    from transformers import AutoProcessor

    _read_config(folder_or_id)
    try:
        with _without_torchvision(), _with_pillow():
            processor = AutoProcessor.from_pretrained(folder_or_id, trust_remote_code=False)
    except Exception as error:  # whatever one of its parts makes of its file
        if "orchvision" in str(error):
            raise UserError(
                f"{folder_or_id}: transformers prepares this family's pictures with torchvision alone, which is not"
                " installed: install the torchvision that belongs to this torch"
            ) from None
        raise UserError(f"{folder_or_id} has no usable processor: {first_line(error)}") from None
    for part, file in (("image_processor", "preprocessor_config.json"), ("tokenizer", "tokenizer.json")):
        if getattr(processor, part, None) is None:
            raise UserError(
                f"{folder_or_id} has no {part.replace('_', ' ')}: a model that reads pictures has one; fetch the model"
                f" again, with {file} or processor_config.json"
            )
    if hasattr(processor, "video_processor"):
        processor.video_processor = None
    return processor


def image_backend(processor: Any) -> str:
    """What prepares a processor's pictures: ``pil`` or ``torchvision``."""
    return str(processor.image_processor.backend)


def load_model(
    folder_or_id: str,
    dtype: str = "float32",
    device: str = "cpu",
    adapter: Path | None = None,
    attention: Attention | None = None,
) -> Any:
    """The model of a folder or of an id on the hub, in evaluation mode, in a torch dtype given by name.

    ``adapter``: a folder of PEFT's, merged into the weights. ``attention``: by default what transformers takes, which
    is ``sdpa`` where the family has it; :func:`attention_of` says which it was. Raises UserError for what is no model
    that answers in text about a picture, weights that are missing or of another shape (transformers would make them
    up), and an adapter that does not fit.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    _read_config(folder_or_id)
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise UserError(f"dtype is {dtype!r}, which is none of torch's: give float32, bfloat16 or float16")
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder_or_id,
            dtype=kind,
            attn_implementation=attention,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # missing, cut or damaged files; sizes that do not fit
        raise UserError(f"{folder_or_id} has no usable model: {first_line(error)}") from None
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder_or_id} has no usable model: {len(missing)} weights are missing, such as {missing[0]}")
    if adapter is not None:
        model = _merged(model, adapter)
    try:
        return model.to(device).eval()
    except Exception as error:  # no such device, or no room on it
        raise UserError(f"{folder_or_id} cannot be put on {device!r}: {first_line(error)}") from None


def attention_of(model: Any) -> str:
    """Which attention a loaded model computes with: ``sdpa`` or ``eager``."""
    return str(model.config._attn_implementation)


def _read_config(folder_or_id: str) -> Any:
    """The configuration. Raises UserError unless it is that of a decoder that reads pictures."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    path = Path(folder_or_id)
    if path.exists():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is no model folder: it has no config.json")
        if "model_type" not in read_object(path / "config.json"):
            raise UserError(f"{path} is no model folder: its config.json names no model_type")
    elif not _HUB_ID.fullmatch(folder_or_id):
        raise UserError(f"{folder_or_id} does not exist: give a model's folder, or its id on the hub (owner/name)")
    try:
        config = AutoConfig.from_pretrained(folder_or_id, trust_remote_code=False)
    except OSError as error:
        raise UserError(
            f"{folder_or_id} is no folder here, and cannot be had from the hub ({first_line(error)}): give a model's"
            " folder, or fetch the model where there is a network"
        ) from None
    except Exception as error:
        raise UserError(
            f"{folder_or_id} is of a family that the installed transformers does not know, or its config.json is"
            f" damaged: {first_line(error)}"
        ) from None
    if config.is_encoder_decoder:
        raise UserError(
            f"{folder_or_id} ({config.model_type}) is an encoder-decoder: only decoders that read pictures beside text"
            " can be compared"
        )
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        what = "reads text only" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else "does not answer in text"
        raise UserError(f"{folder_or_id} ({config.model_type}) {what}: give a vision-language model")
    return config


def _merged(model: Any, adapter: Path) -> Any:
    """``model`` with a PEFT adapter in its weights. Raises UserError."""
    from peft import PeftModel, get_peft_model_state_dict

    read_object(adapter / "adapter_config.json")
    stored = stored_shapes(adapter)
    if not stored:
        raise UserError(f"{adapter} holds no adapter: it has no *.safetensors")
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter))
        # PEFT passes over what finds no place, and makes up what is missing.
        taken = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(adapted).items()}
        if odd := sorted(stored.items() ^ taken.items()):
            raise UserError(f"{adapter} does not fit the model: {len({name for name, _ in odd})} of its weights have no"
                            f" place or are missing, such as {odd[0][0]}")  # fmt: skip
        return adapted.merge_and_unload()
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with adapter_config.json or the sizes
        raise UserError(f"{adapter} cannot be put on the model: {first_line(error)}") from None


class _Pillow:
    """Stands for ``AutoImageProcessor`` while a processor is made."""

    @classmethod
    def from_pretrained(cls, *where: Any, **settings: Any) -> Any:
        """The image processor of Pillow's backend, where the family has one."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(*where, **settings, backend="pil")


class _NoVideos:
    """Stands for a video processor while a processor is made, and knows none of its settings."""

    @classmethod
    def from_pretrained(cls, *_: object, **__: object) -> Any:
        """A stand-in that passes for one of transformers' own processors."""
        from transformers import ImageProcessingMixin

        return type(cls.__name__, (cls, ImageProcessingMixin), {})()

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None  # MiniCPM-V's processor reads two settings when it is made


@contextmanager
def _with_pillow() -> Iterator[None]:
    """Let processors be made with :class:`_Pillow` and :class:`_NoVideos` for their image and video processors.

    ``ProcessorMixin`` (transformers' processing_utils.py) looks the class to load and the class to accept up in two
    tables, which get other entries for the time being. A setting ``backend`` would reach the tokenizer, too, which has
    one of the same name.
    """
    from transformers import processing_utils

    loaded: Any = processing_utils._LazyAutoProcessorMapping._MAPPING_NAMES
    accepted: Any = processing_utils.MODALITY_TO_BASE_CLASS_MAPPING
    with (
        _entry(loaded, "image_processor", (__name__, _Pillow.__name__)),
        _entry(loaded, "video_processor", (__name__, _NoVideos.__name__)),
        _entry(accepted, "video_processor", "ImageProcessingMixin"),
    ):
        yield


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Let Pixtral's processor be found where torchvision is not installed.

    Its module takes one function from the module of torchvision's backend, which Pillow's has as well.
    """
    from transformers.utils.import_utils import is_torchvision_available

    if is_torchvision_available():
        yield
        return
    package = importlib.import_module("transformers.models.pixtral")
    pillow = importlib.import_module(f"{package.__name__}.image_processing_pil_pixtral")
    with _entry(sys.modules, f"{package.__name__}.image_processing_pixtral", pillow):
        module = importlib.import_module(f"{package.__name__}.processing_pixtral")
    with _entry(vars(package), "PixtralProcessor", module.PixtralProcessor):
        yield


@contextmanager
def _entry(table: MutableMapping[str, Any], key: str, value: Any) -> Iterator[None]:
    """Give ``key`` another value while the block runs."""
    there, before = key in table, table.get(key)
    table[key] = value
    try:
        yield
    finally:
        if there:
            table[key] = before
        else:
            del table[key]
