"""A model beside its checkpoint.  Enters: a GGUF file and a Hugging Face folder; leaves: verdicts on its token ids,
chat template and logits (of an encoder: the rows of the last layer).

What serves as reference: `tokenizers` or SentencePiece with the folder's own files, the folder's template, and the
forward passes of `archs` in float32.  The model runs without rounding its activations and its cache, so that what is
seen is the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convert.archs import plan_checkpoint
from ..convert.checkpoint import Checkpoint
from ..convert.jsonfile import Settings
from ..errors import HalfbyteError, printable
from ..quant.formats import BlockFormat
from ..quant.gguf_reader import open_gguf
from ..runtime.llm import LLM
from ..runtime.templates import ChatTemplate
from ..runtime.tokenizer import Tokenizer
from .archs import reference_of
from .source import Rounding, Source
from .torture import CONVERSATIONS, PROSE, TEXTS

SAME, DIFFERS, NO_REFERENCE = "same", "differs", "no reference"
POSITIONS = 48
EXACT = 1e-3
"""Largest difference of logits that is none, as a part of the largest logit: sums in another order."""
LEEWAY = 2.0
"""How many times the divergence that our rounding costs another program's may cost; of our own it explains all."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Verdict:
    """What was found of one thing: `result` is SAME, DIFFERS or NO_REFERENCE, `detail` one line."""

    what: str
    result: str
    detail: str


@dataclass(frozen=True)
class Verification:
    """All verdicts on a model; divergence: the mean KL of its logits in nats, None of an encoder and where there is no
    reference."""

    verdicts: tuple[Verdict, ...]
    divergence: float | None

    @property
    def differs(self) -> bool:
        return any(verdict.result == DIFFERS for verdict in self.verdicts)


def verify(model: str | Path, src: str | Path, threads: int = 0, progress: Progress | None = None) -> Verification:
    """Compare the GGUF file `model` with the checkpoint folder `src`.

    Raises what opening either of them raises.
    """
    with Checkpoint(Path(src)) as checkpoint:
        options: dict[str, Any] = {"activations": "f32", "cache_type": "f32", "context": 2 * POSITIONS}
        with LLM(model, threads=threads, progress=progress, **options) as llm:
            tokens = _tokens(llm.tokenizer, checkpoint.folder)
            template = _template(llm.chat_template(), checkpoint.folder)
            if progress:
                progress("computing the reference", 0, 1)
            logits, divergence = _logits(llm, checkpoint)
    return Verification((tokens, template, logits), divergence)


# ------------------------------------------------------------------------------------------------------------- tokens


def _tokens(tokenizer: Tokenizer, folder: Path) -> Verdict:
    what = "token ids"
    encode = _reference_encoder(folder)
    if encode is None:
        return Verdict(what, NO_REFERENCE, "the folder has neither tokenizer.json nor tokenizer.model")
    parses, reference = encode
    for text in TEXTS:
        want, got = reference(text), tokenizer.encode(text, parse_special=parses)
        if want != got:
            at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), min(len(want), len(got)))
            shown = f"{_some(got, at)}, the checkpoint's tokenizer {_some(want, at)}"
            return Verdict(what, DIFFERS, f"of {printable(repr(text), 40)}: from token {at} on {shown}")
    return Verdict(what, SAME, f"of {len(TEXTS)} texts")


def _some(ids: Sequence[int], at: int) -> str:
    return " ".join(map(str, ids[at : at + 4])) or "nothing"


def _reference_encoder(folder: Path) -> tuple[bool, Callable[[str], list[int]]] | None:
    """Return whether the text of special tokens is read as these, and the folder's own tokenizer."""
    if (folder / "tokenizer.json").exists():
        import tokenizers

        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return True, lambda text: list(library.encode(text, add_special_tokens=False).ids)
    if (folder / "tokenizer.model").exists():
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return False, lambda text: list(processor.encode(text))
    return None


# ----------------------------------------------------------------------------------------------------------- template


def _template(found: ChatTemplate, folder: Path) -> Verdict:
    what = "chat template"
    text, special = _source_template(folder)
    if text is None:
        result = SAME if found.text is None else DIFFERS
        return Verdict(what, result, "there is none" if found.text is None else "the checkpoint has none")
    if found.text is None:
        return Verdict(what, DIFFERS, "the file has none")
    reference = ChatTemplate.of_text(folder, text, special)
    for number, (messages, begins) in enumerate(CONVERSATIONS, 1):
        want, got = (_rendered(template, messages, begins) for template in (reference, found))
        if want != got:
            at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), min(len(want), len(got)))
            shown = f"{printable(repr(got[at : at + 20]))}, the checkpoint's {printable(repr(want[at : at + 20]))}"
            return Verdict(what, DIFFERS, f"conversation {number}: from character {at} on {shown}")
    return Verdict(what, SAME, f"of {len(CONVERSATIONS)} conversations")


def _rendered(template: ChatTemplate, messages: list[dict[str, Any]], begins: bool) -> str:
    """Return the prompt; a refusal counts as a prompt of its own, its text aside (it may name the file)."""
    try:
        return template.render(messages, add_generation_prompt=begins)
    except HalfbyteError as error:
        return f"refused: {type(error).__name__}"


def _source_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the folder's template and the texts of its special tokens."""
    config = Settings.load_if_there(folder / "tokenizer_config.json").values
    special = Settings.load_if_there(folder / "special_tokens_map.json").values
    texts = {}
    for key in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        value = config.get(key) or special.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            texts[key] = value
    found = config.get("chat_template")
    if (folder / "chat_template.jinja").exists():
        found = (folder / "chat_template.jinja").read_text("utf-8")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None, texts


# ------------------------------------------------------------------------------------------------------------- logits


def _logits(llm: LLM, checkpoint: Checkpoint) -> tuple[Verdict, float | None]:
    """Compare logits with the reference's, and with those that it gives with weights rounded as the file has them; of
    an encoder the rows of the last layer.

    A file that our converter wrote equals the second; one that another program rounded may be as far from the first.
    """
    source = Source(checkpoint)
    reference = reference_of(source.class_name)
    if reference is None:
        return Verdict("logits", NO_REFERENCE, f"for {printable(source.class_name)}"), None
    ids, encodes = llm.tokenize(PROSE)[:POSITIONS], reference.encodes
    what, compute = ("last layer", reference.rows) if encodes else ("logits", reference.logits)
    got = llm.embed_tokens([ids], normalize=False)[0] if encodes else llm.logits(ids)
    want = compute(reference(source, ids))
    if got.shape != want.shape:
        return Verdict(what, DIFFERS, f"{got.shape[1]} for each token, the checkpoint's {want.shape[1]}"), None
    rounding, only_read = _formats(llm, checkpoint)
    if only_read:
        return Verdict(what, NO_REFERENCE, f"for {only_read}, which nothing here rounds to"), None
    rounded = compute(reference(Source(checkpoint, rounding=rounding), ids)) if rounding else want
    measure, name = (mean_error, "squared error") if encodes else (mean_divergence, "KL")
    found, explained = measure(want, got), measure(want, rounded)
    equal = float(np.abs(got - rounded).max()) <= EXACT * max(1.0, float(np.abs(rounded).max()))
    fits = equal or (bool(rounding) and found <= LEEWAY * explained)
    detail = f"{name} {found:.1e}, of which rounding explains {'all' if equal else f'{explained:.1e}'}; "
    if encodes:
        detail += f"at {len(ids)} positions"
    else:
        same_top = int((got.argmax(axis=1) == want.argmax(axis=1)).sum())
        detail += f"same likeliest token at {same_top} of {len(ids)} positions"
    return Verdict(what, SAME if fits else DIFFERS, detail), None if encodes else found


def _formats(llm: LLM, checkpoint: Checkpoint) -> tuple[Rounding, str | None]:
    """Return what the file rounded the checkpoint's matrices to, empty where none is; and a type that can only be read,
    if any.

    A matrix that was quantized before is not rounded by a format that holds its values.
    """
    found: dict[str, list[BlockFormat | None]] = {}
    with open_gguf(llm.model.path) as file:
        for tensor in plan_checkpoint(checkpoint).tensors:
            view = file.tensors.get(tensor.name)
            if view is None or len(view.shape) < 2:
                continue
            if not isinstance(view.format, BlockFormat):
                return {}, view.format.name
            held = view.format.name == "f32" or view.format in tensor.values.held_by()
            for name in tensor.values.sources:
                found.setdefault(name, []).append(None if held else view.format)
    return found if any(map(any, found.values())) else {}, None


def mean_divergence(want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Return the mean over rows of KL(want || got) in nats, of logits [n, vocab]; infinite where one is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (want, got))
    return max(0.0, float((np.exp(p) * (p - q)).sum(axis=1).mean()))


def mean_error(want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Return the mean over rows [n, hidden] of |got - want|^2 / |want|^2; infinite where one is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    exact = want.astype(np.float64)
    return float((((got - exact) ** 2).sum(axis=1) / (exact**2).sum(axis=1)).mean())


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))
