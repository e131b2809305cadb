"""PEFT adapters to GGUF adapters.  Enters: an adapter's folder and its base model's checkpoint; leaves: a GGUF file.

What PEFT saves (adapter_config.json, adapter_model.safetensors): for a linear layer `lora_A` [rank, columns] and
`lora_B` [rows, rank], for an embedding `lora_embedding_A` [rank, rows] and `lora_embedding_B` [columns, rank]; the
layer gives scaling * B A x more, scaling = alpha / rank, or alpha / sqrt(rank) with rslora (Kalajdzievski 2023).
What llama.cpp reads: NAME.lora_a and NAME.lora_b in the layouts of quant/adapter.py and one alpha, scaling being
alpha / rank.  A scaling that this does not give (rslora, alpha_pattern) is multiplied into lora_b.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import ModelFileError, UnsupportedError, UsageError, printable
from ..quant.adapter import ADAPTER_TYPES, ALPHA, EMBEDDING, LORA_A, LORA_B
from ..quant.formats import FORMATS
from ..quant.gguf_types import QUANTIZATION_VERSION
from ..quant.gguf_writer import GgufWriter
from ..quant.recipe import recipe_by_name
from ..quant.report import ConversionReport, Meter
from ..quant.tensor_stream import TensorSource, write_tensors
from .archs import plan_checkpoint
from .checkpoint import Checkpoint
from .jsonfile import Settings
from .low_rank import Array, LowRank
from .plan import Plan
from .safetensors_file import SafetensorsFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DEFAULT_TYPE = "f32"

_PREFIX = "base_model.model."
_FACTOR = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
_MAX_RANK = 1 << 16
# Keys of adapter_config.json that leave the computation as it is, whatever they say.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_dropout", "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# Keys that change the computation, with the values besides absence that do not.
_ONLY = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # the others change the base model too
}
_READ = {"r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save"}


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Return whether `folder` holds a PEFT adapter rather than a model."""
    return (Path(folder) / CONFIG).exists()


def base_of(folder: str | os.PathLike[str]) -> str | None:
    """Return what the adapter calls its base model, a path or a name at the hub."""
    return Settings.load(Path(folder) / CONFIG).text("base_model_name_or_path", default=None)


def convert_adapter(
    src: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    type: str = DEFAULT_TYPE,
    force: bool = False,
) -> ConversionReport:
    """Convert the PEFT adapter in the folder `src` into the GGUF file `out` and return what was written.

    base   the checkpoint that the adapter was trained on: names, row order and shapes come from it
    out    default: <name of the folder>-<TYPE>.gguf in the current folder
    type   f32, f16 or bf16
    force  replace `out` when it is there

    Raises UnsupportedError for an adapter that is more than differences of low rank, ModelFileError when it is damaged
    or made for another model (the first tensor that does not fit is named), UsageError.
    """
    meter = Meter()
    if type not in ADAPTER_TYPES:
        raise UsageError(f"an adapter can be of type {', '.join(ADAPTER_TYPES)}, not {type}")
    folder = Path(src)
    target = Path(out) if out is not None else Path(f"{folder.resolve().name}-{type.upper()}.gguf")
    with Checkpoint(Path(base)) as checkpoint:
        plan = plan_checkpoint(checkpoint)
        config = Settings.load(folder / CONFIG)
        changes, alpha = _read(folder, config, checkpoint)
        tensors = _tensors(plan, changes, folder / WEIGHTS)
    with GgufWriter(target, force) as writer:
        writer.add_str("general.architecture", plan.architecture)
        writer.add_str("general.type", "adapter")
        writer.add_str("adapter.type", "lora")
        writer.add_float32(ALPHA, alpha)
        writer.add_str("general.name", folder.resolve().name.encode("utf-8", "replace"))
        writer.add_uint32("general.file_type", recipe_by_name(type).file_type)
        writer.add_uint32("general.quantization_version", QUANTIZATION_VERSION)
        reports = write_tensors(writer, [_source(folder / WEIGHTS, n, v, type) for n, v in tensors.items()])
    return ConversionReport(
        target, type, reports, target.stat().st_size, meter.seconds(), meter.peak_growth()
    )  # fmt: skip


def _source(path: Path, name: str, values: Array, type: str) -> TensorSource:
    return TensorSource(
        name,
        values.shape,
        FORMATS[type],
        rows=lambda begin, end: np.ascontiguousarray(values[begin:end]),
        error=lambda message: ModelFileError(path, message, place=f"tensor {name}"),
        release=lambda: None,
    )


# ------------------------------------------------------------------------------------------------------- the adapter


def _read(folder: Path, config: Settings, checkpoint: Checkpoint) -> tuple[dict[str, LowRank], float]:
    """Return what the adapter adds to each stored tensor, scaled so that the one alpha returned fits all."""
    _refuse(config)
    alpha = config.number("lora_alpha", 0.0, 1e9)
    if alpha == 0:
        config.fail("lora_alpha", "is 0: the adapter does nothing")
    changes: dict[str, LowRank] = {}
    for module, (first, second, is_embedding) in _factors(folder / WEIGHTS, config).items():
        flipped = is_embedding or config.boolean("fan_in_fan_out", default=False)
        scaling = _scaling(config, module, first.shape[0], alpha)
        change = LowRank(second * np.float32(scaling * first.shape[0] / alpha), first)
        change = change.transposed if flipped else change
        name = _stored_name(folder / WEIGHTS, module, checkpoint)
        shape = checkpoint.tensors[name].shape
        if change.shape != shape:
            message = f"is for a matrix {list(change.shape)}; {name} of {checkpoint.folder} is {list(shape)}"
            raise ModelFileError(folder / WEIGHTS, message, place=f"layer {printable(module)}")
        changes[name] = change
    return changes, alpha


def _refuse(config: Settings) -> None:
    """Raise UnsupportedError for a key by which the adapter is more than differences of low rank."""
    for key, allowed in _ONLY.items():
        found = config.get(key, allowed[0])
        if found not in allowed:
            raise UnsupportedError(f"{CONFIG} {key}", found, [str(a) for a in allowed], config.path)
    saved = config.get("modules_to_save", [])
    if saved:
        raise UnsupportedError(f"{CONFIG} modules_to_save (whole layers)", saved, ["none"], config.path)
    for key, value in config.values.items():
        if key not in _HARMLESS | _ONLY.keys() | _READ and value not in (None, False, [], {}):
            raise UnsupportedError(f"{CONFIG} {printable(key)}", value, ["null"], config.path)


def _scaling(config: Settings, module: str, rank: int, alpha: float) -> float:
    """Return what B A x is multiplied with in a layer; patterns are PEFT's: a key fits the end of the layer's name."""
    stated = _of_pattern(config.section("rank_pattern"), module, config.integer("r", 1, _MAX_RANK))
    if stated != rank:
        config.fail("r", f"is {stated} for layer {module}, whose factors have the rank {rank}")
    own = _of_pattern(config.section("alpha_pattern"), module, alpha)
    return own / (math.sqrt(rank) if config.boolean("use_rslora", default=False) else rank)


def _of_pattern(pattern: Settings, module: str, default: float) -> float:
    for key in pattern.values:
        try:
            fits = re.fullmatch(rf"(?:.*\.)?(?:{key})", module)
        except re.error as error:
            pattern.fail(printable(key), f"is no regex: {error}")
        if fits:
            return pattern.number(key, 0.0, 1e9)
    return default


def _factors(path: Path, config: Settings) -> dict[str, tuple[Array, Array, bool]]:
    """Return of each layer A float32 [rank, in], B float32 [out, rank], and whether it is an embedding."""
    found: dict[str, dict[str, Array]] = {}
    embeddings: set[str] = set()
    with contextlib.closing(SafetensorsFile(path)) as file:
        for name, stored in file.tensors.items():
            match = _FACTOR.fullmatch(name)
            if match is None or len(stored.shape) != 2:
                what = "whole matrix (modules_to_save)" if name.endswith((".weight", ".bias")) else "tensor"
                raise ModelFileError(path, f"is a {what}; factors of low rank are wanted", place=printable(name))
            module, embedding, letter = match.groups()
            found.setdefault(module, {})[letter] = file.rows(name, 0, stored.shape[0])
            if embedding:
                embeddings.add(module)
    pairs = {}
    for module, factors in found.items():
        if set(factors) != {"A", "B"} or factors["A"].shape[0] != factors["B"].shape[1]:
            shapes = ", ".join(f"{letter} {list(values.shape)}" for letter, values in sorted(factors.items()))
            raise ModelFileError(path, f"has {shapes}; A and B of one rank are wanted", place=f"layer {module}")
        pairs[module] = (factors["A"], factors["B"], module in embeddings)
    if not pairs:
        raise ModelFileError(path, "holds no factors of a LoRA adapter")
    return pairs


def _stored_name(path: Path, module: str, checkpoint: Checkpoint) -> str:
    """Return the checkpoint's tensor that is the layer's matrix; some checkpoints leave out the first word of names."""
    name = f"{module}.weight"
    near = [stored for stored in checkpoint.tensors if f".{name}".endswith(f".{stored}")]
    if name in checkpoint.tensors or len(near) == 1:
        return name if name in checkpoint.tensors else near[0]
    message = f"is not in the base model {checkpoint.folder}, or shares a matrix with another layer"
    raise ModelFileError(path, message, place=f"layer {printable(module)}")


# -------------------------------------------------------------------------------------------------------- the output


def _tensors(plan: Plan, changes: Mapping[str, LowRank], path: Path) -> dict[str, Array]:
    """Return the GGUF adapter's tensors by name.

    An output matrix that is the embedding, written once more, keeps its values: PEFT adapts what tokens look up only.
    """
    found: dict[str, Array] = {}
    left_over = dict(changes)
    embedding = next((tensor.values.sources for tensor in plan.tensors if tensor.name == EMBEDDING), ())
    for tensor in plan.tensors:
        if tensor.name != EMBEDDING and tensor.values.sources == embedding:
            continue
        try:
            change = tensor.values.change(changes)
        except ValueError as error:
            first = next(source for source in tensor.values.sources if source in changes)
            message = f"an adapter of {first}: {error}"
            raise UnsupportedError("layer", message, ["linear layers and embeddings"], path) from error
        for source in tensor.values.sources:
            left_over.pop(source, None)
        if change is None:
            continue
        a, b = (change.left, change.right.T) if tensor.name == EMBEDDING else (change.right, change.left)
        found[tensor.name + LORA_A], found[tensor.name + LORA_B] = a, b
    for source in left_over:
        message = "has no matrix of its own in a GGUF file of this model (tied to another, or left out)"
        raise ModelFileError(path, message, place=f"layer {source}")
    return found
