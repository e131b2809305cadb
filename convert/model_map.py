"""From a checkpoint to a plan, a statement a tensor or key.  Enters: what an architecture's file says; leaves: a Plan.

An architecture reads keys of config.json through `ModelMap`, which checks their range and writes them under their GGUF
names, and maps tensors through `Part`s, which check their shapes.  `finish` refuses what is left over: a key that
nothing read and that could change the mathematics, and a tensor that has no place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from ..errors import ModelFileError, UnsupportedError, printable
from .checkpoint import Checkpoint
from .config_keys import is_harmless
from .jsonfile import Settings
from .lazy import Given, Lazy, Stored, stacked
from .plan import Entry, Plan, PlannedTensor
from .pooling import read_pooling
from .rope import Rope

MAX_SIZE = 1 << 20
MAX_LAYERS = 4096
MAX_VOCAB = 1 << 22
MAX_CONTEXT = 1 << 31

_MISSING: Any = object()
# What would make another computation of any architecture.
_FOR_ALL = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
}


class Dim(int):
    """A number of elements that knows its `words` in config.json, for errors about shapes: "2 x intermediate_size"."""

    words: str

    def __new__(cls, value: int, words: str) -> Dim:
        made = super().__new__(cls, value)
        made.words = words
        return made

    def __mul__(self, other: int) -> Dim:
        if not isinstance(other, int):
            return NotImplemented
        return Dim(int(self) * int(other), f"{self.words} x {_words(other)}")

    def __rmul__(self, other: int) -> Dim:
        if not isinstance(other, int):
            return NotImplemented
        return Dim(int(other) * int(self), f"{_words(other)} x {self.words}")

    def __add__(self, other: int) -> Dim:
        if not isinstance(other, int):
            return NotImplemented
        return Dim(int(self) + int(other), f"{self.words} + {_words(other)}")


def _words(size: int) -> str:
    return size.words if isinstance(size, Dim) else str(size)


class Part:
    """The tensors below one name: of the checkpoint ("model.layers.3.") and of the GGUF file ("blk.3.")."""

    def __init__(self, map: ModelMap, source: str, name: str):
        self._map, self._source, self._name = map, source, name

    def has(self, source: str) -> bool:
        """Return whether the checkpoint has the tensor."""
        return self._source + source in self._map.checkpoint.tensors

    def stored(self, source: str, *shape: int) -> Lazy:
        """Return a tensor of the checkpoint; ModelFileError when it is missing or has another shape."""
        return self._map.stored(self._source + source, *shape)

    def put(self, name: str, values: Lazy) -> None:
        """Write `values` under a GGUF name."""
        self._map.put(self._name + name, values)

    def copy(self, source: str, name: str, *shape: int) -> None:
        """Write a tensor as it is."""
        self.put(name, self.stored(source, *shape))

    def norm(self, source: str, name: str, size: int, *, bias: bool = False, plus: float = 0.0) -> None:
        """Write a norm's weight [size], `plus` added (Gemma's weights are differences from 1), and its bias."""
        weight = self.stored(f"{source}.weight", size)
        self.put(f"{name}.weight", weight.plus(plus) if plus else weight)
        if bias:
            self.copy(f"{source}.bias", f"{name}.bias", size)

    def linear(
        self, source: str, name: str, rows: int, columns: int, *, bias: bool = False, order: np.ndarray | None = None
    ) -> None:
        """Write a matrix [rows, columns] and, with `bias`, a vector [rows].

        order   int64 [rows]: row i of the output is row order[i] of the checkpoint's; None: as they are
        """
        found = [("weight", self.stored(f"{source}.weight", rows, columns))]
        if bias:
            found.append(("bias", self.stored(f"{source}.bias", rows)))
        for kind, values in found:
            self.put(f"{name}.{kind}", values if order is None else values.ordered(order))

    def experts(self, source: str, name: str, count: int, rows: int, columns: int) -> None:
        """Write `count` matrices, "{}" in `source` being the number of each, as one tensor [count, rows, columns]."""
        parts = [self.stored(f"{source.format(i)}.weight", rows, columns) for i in range(count)]
        self.put(f"{name}.weight", stacked(parts))


class ModelMap(Part):
    """What becomes of a checkpoint, in growing; itself the `Part` of the whole.

    checkpoint   what is converted
    config       its config.json, or the object in it that `enter` named
    architecture general.architecture of the file, the first word of the keys
    class_name   the name in config.json's "architectures"
    notes        what the user should know of the result
    pooling      llama.cpp's number of how a text's rows become one, None where the checkpoint says nothing of it

    Raises UnsupportedError for a pooling, or a module behind it, that halfbyte does not compute.
    """

    def __init__(self, checkpoint: Checkpoint, class_name: str, architecture: str):
        super().__init__(self, "", "")
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.class_name, self.architecture = class_name, architecture
        self.notes: list[str] = []
        self.pooling = read_pooling(checkpoint.folder)
        self._entries: list[Entry] = []
        self._tensors: list[PlannedTensor] = []
        self._used: set[str] = set()
        self._ignored = [r".*\.rotary_emb\.inv_freq"]  # old files store what config.json says
        self._said: dict[str, object] = {}
        self._vocab = 0
        self._left: list[Settings] = []
        self._refuse_for_all()

    def _refuse_for_all(self) -> None:
        for key, value in _FOR_ALL.items():
            self.only(key, value)

    def enter(self, key: str, defaults: Mapping[str, Any]) -> None:
        """Go on with the object under `key` of config.json: one part of a model of several.

        defaults   what the object may leave out
        """
        inside = self.config.section(key)
        self._left.append(self.config)
        self.config = Settings(inside.path, {**defaults, **inside.values}, inside.place)
        self._refuse_for_all()

    # ------------------------------------------------------------------------------------------------- config.json

    def size(
        self, key: str, name: str | None = None, *, minimum: int = 1, maximum: int = MAX_SIZE, default: Any = _MISSING
    ) -> Dim:
        """Return an integer of config.json, and write it as `name` (below the architecture's) where one is given.

        default   of a file without the key; an error when there is none
        """
        found = self.config.integer(key, minimum, maximum, *([] if default is _MISSING else [default]))
        if name is not None:
            self.add(name, "uint32", int(found))
        return Dim(found, key)

    def number(self, key: str, name: str | None, minimum: float, maximum: float, default: Any = _MISSING) -> float:
        """Return a number of config.json, and write it as float32 `name` where one is given."""
        found = self.config.number(key, minimum, maximum, *([] if default is _MISSING else [default]))
        if name is not None:
            self.add(name, "float32", float(found))
        return found

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean of config.json that decides which tensors there are."""
        found = self.config.boolean(key, default=default)
        self._said[key] = found
        return found

    def only(self, key: str, *allowed: object) -> Any:
        """Return the value of `key`, the first of `allowed` when it is absent; UnsupportedError for another one."""
        found = self.config.get(key, allowed[0])
        if found not in allowed:
            self.refuse(key, found, *allowed)
        return found

    def refuse(self, key: str, found: object, *allowed: object) -> NoReturn:
        """Raise UnsupportedError about a key of config.json."""
        shown = printable(json.dumps(found), 60)
        raise UnsupportedError(f"config.json {key}", shown, [json.dumps(a) for a in allowed], self.config.path)

    def unused(self, *keys: str) -> None:
        """Say that the architecture's forward pass, as mapped, does not depend on these keys."""
        for key in keys:
            self.config.has(key)

    def named(self, *keys: str) -> str:
        """Return which of the names of one key config.json has, the first when it has none.

        Raises ModelFileError when two of them have different values.
        """
        found = [key for key in keys if self.config.has(key)]
        for key in found[1:]:
            if self.config.get(key) != self.config.get(found[0]):
                self.config.fail(key, f"is {self.config.get(key)}, but {found[0]} is {self.config.get(found[0])}")
        return found[0] if found else keys[0]

    def vocab(self, key: str = "vocab_size") -> Dim:
        """Return the rows of the embedding, which the vocabulary must fill."""
        rows = self.size(key, "vocab_size", maximum=MAX_VOCAB)
        self._vocab = int(rows)
        return rows

    def layers(self, count: int, source: str, name: str = "blk.") -> Iterator[Part]:
        """Yield the part of each layer: SOURCE0. and blk.0. are those of the first."""
        self._said[_words(count)] = int(count)
        for i in range(count):
            yield self.part(f"{source}{i}.", f"{name}{i}.")

    # ------------------------------------------------------------------------------------------------------ output

    def prefix(self, name: str) -> str:
        """Return `name` when the checkpoint's tensors are below it, "" when it holds the model without its head."""
        return name if any(tensor.startswith(name) for tensor in self.checkpoint.tensors) else ""

    def part(self, source: str, name: str) -> Part:
        """Return the tensors below these names."""
        return Part(self, source, name)

    def add(self, name: str, type: str, value: Any, items: str | None = None) -> None:
        """Write the metadata key ARCHITECTURE.NAME; `items` is the type of an array's elements."""
        self._entries.append(Entry(f"{self.architecture}.{name}", type, value, items))

    def add_tokenizer(self, name: str, type: str, value: Any) -> None:
        """Write the metadata key tokenizer.NAME, of what the tokenizer's own files do not say."""
        self._entries.append(Entry(f"tokenizer.{name}", type, value))

    def rope(self, rope: Rope) -> None:
        """Write the keys and tensors of rotary positions."""
        for name, type, value in rope.entries():
            self.add(name, type, value)
        for name, factors in rope.tensors().items():
            self.put(name, Given(factors))
        if rope.kind == "dynamic":
            old = rope.original_context
            self.notes.append(
                f"the context is {old} tokens; dynamic rope scaling serves longer ones, by its factor up to "
                f"{int(rope.factor * old)} (run with -c); llama.cpp does not have it"
            )

    def stored(self, source: str, *shape: int) -> Lazy:
        """Return a tensor of the checkpoint; ModelFileError when it is missing or has another shape."""
        words, asked = ", ".join(_words(size) for size in shape), [int(size) for size in shape]
        config, found = self.config.path.name, self.checkpoint.tensors.get(source)
        if found is None:
            raise ModelFileError(
                self.checkpoint.folder, f"is missing; {config} asks for {asked} ({words})", place=f"tensor {source}"
            )
        if list(found.shape) != asked:
            message = f"has the shape {list(found.shape)}, but {config} says {asked} ({words})"
            raise ModelFileError(self.checkpoint.file_of(source), message, place=f"tensor {source}")
        self._used.add(source)
        return Stored(self.checkpoint, source)

    def put(self, name: str, values: Lazy) -> None:
        """Write `values` under a GGUF name."""
        self._tensors.append(PlannedTensor(name, values))

    def ignore(self, pattern: str) -> None:
        """Leave out stored tensors whose whole names match the regex: buffers that config.json decides."""
        self._ignored.append(pattern)

    def output(
        self, embedding: str, head: str, rows: int, columns: int, *, tied: bool, bias: bool = False, copy: bool = False
    ) -> None:
        """Write the matrix of the logits as output.weight, unless config.json says that it is the embedding.

        embedding, head   names in the checkpoint, without ".weight"
        tied              what tie_word_embeddings is where it is absent
        copy              write the embedding once more when it is tied: llama.cpp wants the tensor

        A checkpoint that gives embeddings of texts may have neither.

        Raises ModelFileError when it is tied but the checkpoint holds another matrix.
        """
        if not self.flag("tie_word_embeddings", tied):
            embeds = self.pooling is not None or self.class_name.endswith("Model")
            if embeds and not self.has(f"{head}.weight"):
                self.notes.append("has no matrix for logits: embeddings of texts alone mean something")
                return
            self.linear(head, "output", rows, columns, bias=bias)
            return
        if self.has(f"{head}.weight"):
            self._check_same(f"{embedding}.weight", f"{head}.weight")
        if copy:
            self.copy(f"{embedding}.weight", "output.weight", rows, columns)

    def _check_same(self, embedding: str, head: str) -> None:
        shape = self.checkpoint.tensors[embedding].shape
        there = self.stored(head, *shape)
        step = max(1, (1 << 20) // shape[1])
        for begin in range(0, shape[0], step):
            end = min(begin + step, shape[0])
            rows = self.checkpoint.rows(embedding, begin, end)
            if not np.array_equal(rows, there.rows(begin, end), equal_nan=True):
                message = f"differs from {embedding}, but {self.config.path.name} says tie_word_embeddings true"
                raise ModelFileError(self.checkpoint.file_of(head), message, place=f"tensor {head}")

    # ---------------------------------------------------------------------------------------------------- the plan

    def finish(self) -> Plan:
        """Return the plan.

        Raises UnsupportedError for a key that nothing asked for, ModelFileError for a tensor that has no place.
        """
        if self.pooling is not None:
            self.add("pooling_type", "uint32", self.pooling)
        for config in (*self._left, self.config):
            for key in config.unread():
                if not is_harmless(key):
                    self.refuse(f"{config.place}{key}", config.get(key), None)
        for name in self.checkpoint.tensors:
            if name not in self._used and not any(re.fullmatch(pattern, name) for pattern in self._ignored):
                said = ", ".join(f"{key} {json.dumps(value)}" for key, value in sorted(self._said.items()))
                raise ModelFileError(
                    self.checkpoint.file_of(name),
                    f"has no place in the model that {self.config.path.name} describes ({said})",
                    place=f"tensor {printable(name)}",
                )
        return Plan(self.architecture, tuple(self._entries), tuple(self._tensors), self._vocab, tuple(self.notes))
