"""What a model folder holds, before memory is asked for: config.json against the heads of its safetensors files.

transformers builds whatever config.json describes and only then looks at the weights; a null or a few zeros too many
would ask for more memory than the machine has. Here the model is built on torch's ``meta`` device, which has shapes and
no memory.
"""

import json
import math
import stat
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import read_regular, shown

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""

# The largest value of each size that a configuration names, far above any SmolVLM's: it keeps products within 63 bits,
# and the model that is built to be looked at small.
_MOST = {
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**10,
    "num_key_value_heads": 2**10,
    "head_dim": 2**12,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**24,
    "num_channels": 2**4,
    "image_size": 2**13,
    "patch_size": 2**13,
}
_MAY_BE_NULL = ("num_key_value_heads", "head_dim")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file. Raises UserError."""
    try:
        value = json.loads(read_regular(path))
    except OSError as error:
        raise UserError(f"model file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"model file {path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"model file {path} holds no JSON object")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` with ``text_config`` and ``vision_config``, each an object with sizes that a model can have.

    Raises UserError that names the key.
    """
    path = folder / "config.json"
    config = read_object(path)
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part), dict):
            raise UserError(f"{path}: {part} is {_json(config.get(part))}, not an object: fetch the model again")
        for key, most in _MOST.items():
            value = config[part].get(key, 1)
            if not (value is None and key in _MAY_BE_NULL):
                whole_number(value, most, f"{part}.{key}", path)
    return config


def whole_number(value: Any, most: int, key: str, path: Path, least: int = 1) -> int:
    """``value``, which must be a whole number in ``least``..``most``. Raises UserError that names ``key``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(
            f"{path}: {key} is {_json(value)}, not a whole number from {least} to {most}: fetch the model again"
        )
    return value


def _json(value: Any) -> str:
    """A few letters of a value, as the file has it."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a number beyond 64 bits"
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."


def stored_shapes(folder: Path) -> Shapes:
    """The shapes in the heads of a folder's safetensors files. Raises UserError for a file that is cut or damaged.

    The package checks a head before it believes it: its length against the file's, sizes against places.
    """
    from safetensors import SafetensorError, safe_open

    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                raise UserError(f"{folder} has no usable model: {file.name} is not a regular file")
            with safe_open(file, framework="np") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder} has no usable model: {file.name} is cut or damaged ({shown(error)})") from None
    return shapes


def described(folder: Path) -> Any:
    """The model that ``config.json`` describes, without memory for its weights. Raises UserError."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    read_config(folder)
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    except Exception as error:  # whatever a layer makes of the values that it is given
        raise UserError(f"{folder} has no usable model: config.json describes none ({first_line(error)})") from None


def check_model(folder: Path, bytes_per_weight: int = 4) -> None:
    """Raise UserError unless the folder's files hold just what its config.json describes, and it fits this machine."""
    stored, model = stored_shapes(folder), described(folder)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)  # tied weights are stored under one of their names
        found, wanted = stored.get(name), tuple(parameter.shape)
        if found not in (None, wanted):
            raise UserError(
                f"{folder} has no usable model: {name} is {list(found or ())} in the weights, and config.json makes it"
                f" {list(wanted)}"
            )
    missing = sorted(each[0] for each in names.values() if not stored.keys() & set(each))
    if missing:
        raise UserError(f"{folder} has no usable model: {len(missing)} weights are missing, such as {missing[0]}")
    needed = bytes_per_weight * sum(parameter.numel() for parameter in model.parameters())
    if needed > (there := machine_memory()):
        raise UserError(f"{folder} needs {needed / 1e9:.2g} GB of memory, and this machine has {there / 1e9:.2g} GB")


def check_adapter(model: Any, adapter: Path) -> None:
    """Raise UserError unless each tensor of a LoRA adapter's folder fits ``model`` and the rank that it states."""
    rank = whole_number(read_object(path := adapter / "adapter_config.json").get("r"), 2**16, "r", path)
    there = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    stored = stored_shapes(adapter)
    if not stored:
        raise UserError(f"{adapter} holds no adapter: train again")
    for full, shape in stored.items():
        name = full.removeprefix("base_model.model.")
        module, _, kind = name.partition(".lora_")
        out, into, *_ = (*there.get(f"{module}.weight", ()), 0, 0)
        fits = {
            "A.weight": (rank, into),
            "B.weight": (out, rank),
            "embedding_A": (rank, out),
            "embedding_B": (into, rank),
            # A module that is trained whole, or the table below its own adapter.
            "": there.get(name.replace(".base_layer.", ".")),
        }.get(kind)
        if shape != fits:
            raise UserError(
                f"{adapter} does not fit its base model: {name} is {list(shape)}, not {list(fits or ())}: train again"
            )


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of memory and swap of this machine, or of the control group it runs in where that has less."""
    limits = []
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith(("MemTotal:", "SwapTotal:")):
            limits.append(int(line.split()[1]) * 1024)
    group = [math.inf]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            group.append(int((root / "sys/fs/cgroup" / name).read_text()))
        except (OSError, ValueError):  # no control groups of that version; "max"
            continue
    return int(min(sum(limits), *group))


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its name where it says nothing."""
    return shown((str(error).strip() or type(error).__name__).splitlines()[0])
