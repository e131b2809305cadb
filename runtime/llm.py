"""The model as Python sees it.  Enters: a GGUF path, prompts, messages; leaves: text, steps, token ids, logits,
embeddings."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ContextLengthError, UsageError, printable
from ..quant.adapter import read_adapter
from ..quant.gguf_reader import GgufFile, open_gguf
from .embedding import POOLINGS, file_pooling, normalised, pooled, token_rows
from .engine.batch import Part
from .engine.engine import Engine, Progress
from .generate import stream as stream_steps
from .loading import load_both
from .options import RuntimeOptions
from .sampling.params import SamplingParams, recommended
from .steps import Generation, GenerationStep

if TYPE_CHECKING:
    from .templates import ChatTemplate


@dataclass(frozen=True)
class ModelInfo:
    """What a model is: for tables and messages.

    file_bytes  of the whole file; size_bytes of its tensors, body_bytes of those without token_embd and output
    type_label  the most common type of tensor
    """

    path: Path
    name: str
    architecture: str
    file_bytes: int
    size_bytes: int
    body_bytes: int
    n_params: int
    type_label: str
    n_layers: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int


def _info(file: GgufFile, engine: Engine) -> ModelInfo:
    by_type: dict[str, int] = {}
    for view in file.tensors.values():
        by_type[view.layout.name] = by_type.get(view.layout.name, 0) + view.nbytes
    model = engine.model
    ends = sum(view.nbytes for name, view in file.tensors.items() if name.split(".")[0] in ("token_embd", "output"))
    return ModelInfo(
        path=file.path,
        name=file.get_str("general.name", file.path.stem),
        architecture=file.get_str("general.architecture"),
        file_bytes=file.file_size,
        size_bytes=sum(by_type.values()),
        body_bytes=sum(by_type.values()) - ends,
        n_params=sum(int(np.prod(view.shape)) for view in file.tensors.values()),
        type_label=max(by_type, key=lambda name: by_type[name]).upper(),
        n_layers=model.n_layers,
        n_embd=model.n_embd,
        n_vocab=model.n_vocab,
        n_ctx_train=model.n_ctx_train,
    )


class LLM:
    """A loaded model.  Use it from one thread at a time; `with` or `close()` frees its threads and memory.

    tokenizer  encodes and decodes
    model      ModelInfo
    options    RuntimeOptions
    sampling   the sampling options that the file recommends, by field; they stand where a call says nothing
    adapters   the LoRA adapters that were loaded, name -> how much of it where a call says nothing
    n_ctx      context in tokens
    pooling    how the file wants a text's embedding to be made: a name of embedding.POOLINGS, or None
    """

    def __init__(self, path: str | os.PathLike[str], *, progress: Progress | None = None, **options: Any):
        """Load a GGUF file.  options: fields of RuntimeOptions (threads, context, ubatch, lora ...).

        Raises ModelFileError or UnsupportedError for a file, UsageError for an option.
        """
        self.options = _from_keywords(RuntimeOptions, {k: v for k, v in options.items() if v is not None})
        self._file = open_gguf(path)
        try:
            self.sampling = recommended(self._file)
            self.pooling = file_pooling(self._file)
            adapters = [(read_adapter(adapter, self._file), scale) for adapter, scale in self.options.adapters()]
            self.adapters = {adapter.name: scale for adapter, scale in adapters}
            if len(self.adapters) < len(adapters):
                names = ", ".join(adapter.name for adapter, _ in adapters)
                raise UsageError(f"two adapters have one name; the files {names} need different ones")
            self.tokenizer, self.engine = load_both(self._file, self.options, progress, adapters)
        except BaseException:
            self._file.close()
            raise
        self.model = _info(self._file, self.engine)
        self.n_ctx = self.engine.n_ctx
        self._sequence = self.engine.new_sequence()
        self._templates: dict[str | None, ChatTemplate] = {}

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the threads and the file; the object is of no use afterwards."""
        self.engine.close()
        self._file.close()

    # -- text -----------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of `text`, with BOS/EOS as the model wants them where `add_special`."""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Iterable[int]) -> str:
        """Return the text of token ids."""
        return self.tokenizer.decode(list(ids))

    def stream(
        self, prompt: str | Iterable[int], *, adapters: Mapping[str, float] | None = None, **sampling: Any
    ) -> Iterator[GenerationStep]:
        """Continue a prompt, a step at a time.

        adapters: how much of which adapter, by name; those that are not named are off; None: as they were loaded.
        sampling: fields of SamplingParams
        """
        self.engine.check_generates()
        scales = self._scales(adapters)
        params = _from_keywords(SamplingParams, self.sampling | sampling)
        ids = self.tokenize(prompt) if isinstance(prompt, str) else self._checked(prompt)
        continues = bool(ids) and not self.tokenizer.is_control(ids[-1])
        return stream_steps(self.engine, self.tokenizer, self._sequence, ids, params, continues, scales)

    def generate(self, prompt: str | Iterable[int], **options: Any) -> Generation:
        """Continue a prompt; return the whole continuation.  options: those of `stream`."""
        return _collect(self.stream(prompt, **options))

    def stream_chat(
        self,
        messages: list[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        adapters: Mapping[str, float] | None = None,
        **sampling: Any,
    ) -> Iterator[GenerationStep]:
        """Answer a conversation, a step at a time.

        messages              [{"role": "user", "content": ...}, ...]
        chat_template         a built-in's name where the file has none
        tools                 descriptions of functions, for templates that know tools
        chat_template_kwargs  further variables of the template, as {"enable_thinking": False}

        What earlier calls computed of the same conversation, with the same adapters, is not computed again.
        """
        self.engine.check_generates()
        scales = self._scales(adapters)
        params = _from_keywords(SamplingParams, self.sampling | sampling)
        text = self.chat_template(chat_template).render(messages, tools=tools, variables=chat_template_kwargs)
        ids = self.tokenizer.encode(text, add_special=False, parse_special=True)
        bos = self.tokenizer.bos_id
        if self.tokenizer.add_bos and bos is not None and ids[:1] != [bos]:  # a template may write it or leave it out
            ids.insert(0, bos)
        return stream_steps(self.engine, self.tokenizer, self._sequence, ids, params, adapters=scales)

    def chat(self, messages: list[Mapping[str, Any]], **options: Any) -> Generation:
        """Answer a conversation; return the whole answer."""
        return _collect(self.stream_chat(messages, **options))

    def chat_template(self, name: str | None = None) -> ChatTemplate:
        """Return the file's template, or the built-in called `name`."""
        if name not in self._templates:
            from .templates import ChatTemplate

            self._templates[name] = ChatTemplate(self.tokenizer, name)
        return self._templates[name]

    # -- numbers --------------------------------------------------------------------------------------------------

    def logits(self, token_ids: Iterable[int], *, adapters: Mapping[str, float] | None = None) -> NDArray[np.float32]:
        """Return float32 [n_tokens, n_vocab]: the logits after each token of the sequence `token_ids`."""
        ids = list(token_ids)
        out, row = np.empty((len(ids), self.model.n_vocab), np.float32), 0
        for rows in self.stream_logits(ids, adapters=adapters):
            out[row : row + len(rows)] = rows
            row += len(rows)
        return out

    def stream_logits(
        self, token_ids: Iterable[int], first: int = 0, *, adapters: Mapping[str, float] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield float32 [some, n_vocab], a few rows at a time: the logits after the tokens from index `first` on.

        Of the tokens before `first` no logits are computed.  The array is the engine's own, good until the next one;
        use the model for nothing else meanwhile.  Raises UsageError for a token that is none, and of an encoder;
        ContextLengthError.
        """
        self.engine.check_generates()
        ids = self._checked(token_ids)
        if len(ids) > self.n_ctx:
            raise ContextLengthError(f"{len(ids)} tokens do not fit the context of {self.n_ctx} tokens")
        return self._stream_logits(ids, first, self._scales(adapters))

    def _stream_logits(self, ids: list[int], first: int, scales: tuple[float, ...]) -> Iterator[NDArray[np.float32]]:
        self._sequence.adapt(scales)
        self._sequence.truncate(0)
        start = 0
        while start < len(ids):
            wanted = max(first, start)
            end = min(len(ids), start + self.engine.n_ubatch, wanted + self.engine.max_outputs)
            rows = self.engine.step([Part(self._sequence, ids[start:end], outputs=max(0, end - wanted))])
            if len(rows):
                yield rows
            start = end

    def embed(
        self,
        texts: str | Iterable[str | Iterable[int]],
        normalize: bool = True,
        pooling: str | None = None,
        *,
        adapters: Mapping[str, float] | None = None,
    ) -> NDArray[np.float32]:
        """Return float32 [n, n_embd]: one vector for each of `texts`, which are strings or token ids.

        normalize: to length 1.  pooling: the mean of the tokens' rows, the first ("cls") or the "last"; None: as the
        file says.  adapters: as `stream`.

        Raises UsageError for another pooling, ContextLengthError for a text that does not fit.
        """
        chosen = self.pooling if pooling is None else pooling
        if chosen not in POOLINGS[1:]:
            found = "the file names none" if chosen is None else f"it is {printable(chosen)!r}"
            raise UsageError(f"pooling: {found}; one vector of a text takes {', '.join(POOLINGS[1:])}")
        vectors = [pooled(rows, chosen) for rows in self._token_rows(texts, adapters)]
        found_all = np.stack(vectors) if vectors else np.empty((0, self.model.n_embd), np.float32)
        return normalised(found_all) if normalize else found_all

    def embed_tokens(
        self,
        texts: str | Iterable[str | Iterable[int]],
        normalize: bool = True,
        *,
        adapters: Mapping[str, float] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Return of each text float32 [n_tokens, n_embd]: one vector for each token; else as `embed`."""
        return [normalised(rows) if normalize else rows for rows in self._token_rows(texts, adapters)]

    def _token_rows(
        self, texts: str | Iterable[str | Iterable[int]], adapters: Mapping[str, float] | None
    ) -> Iterator[NDArray[np.float32]]:
        scales = self._scales(adapters)
        each = [texts] if isinstance(texts, str) else texts
        ids = [self.tokenize(text) if isinstance(text, str) else self._checked(text) for text in each]
        return token_rows(self.engine, ids, self._sequence, scales)

    def _scales(self, wanted: Mapping[str, float] | None) -> tuple[float, ...]:
        """Return how much of each of the engine's adapters a request wants; UsageError for one that is not loaded."""
        if wanted is None:
            return tuple(self.adapters.values())
        for name, scale in wanted.items():
            if name not in self.adapters:
                raise UsageError(f"no adapter is called {name!r}; loaded are: {', '.join(self.adapters) or 'none'}")
            if not math.isfinite(scale):
                raise UsageError(f"the scale of adapter {name} is {scale}; it must be a finite number")
        return tuple(float(wanted.get(name, 0.0)) for name in self.adapters)

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in token_ids]
        for i in ids:
            if not 0 <= i < self.model.n_vocab:
                raise UsageError(f"token id {i} is outside the vocabulary of {self.model.n_vocab} tokens")
        return ids


def _from_keywords(kind: Any, keywords: dict[str, Any]) -> Any:
    """Make the options dataclass `kind`; an unknown keyword is a UsageError that lists the known ones."""
    known = list(kind.__dataclass_fields__)
    unknown = [k for k in keywords if k not in known]
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!r}; {kind.__name__} has {', '.join(known)}")
    return kind(**keywords)


def _collect(steps: Iterable[GenerationStep]) -> Generation:
    texts: list[str] = []
    ids: list[int] = []
    for step in steps:
        texts.append(step.text)
        if step.token_id is not None:
            ids.append(step.token_id)
    return Generation("".join(texts), ids, step.finish_reason or "stop", step.timings)
