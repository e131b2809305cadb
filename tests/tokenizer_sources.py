"""Published tokenizers and vectors.  Enters: the folder of test data; leaves: tokenizers of ours, references, texts.

A tokenizer of a checkpoint's files goes through the converter's own plan into a vocabulary-only GGUF file, with the
whole tokenizer.json or with the usual keys alone, as files of others have them.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mistral_vectors as vectors
import numpy as np
import sentencepiece
import tiny_vocab as vocab
import tokenizers

from halfbyte.convert.jsonfile import Settings
from halfbyte.convert.vocab import plan_vocab
from halfbyte.convert.vocab.pretokenizers import FAMILIES
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.tokenizer import Tokenizer, load_tokenizer

Encode = Callable[[str], list[int]]
Cases = Iterator[tuple[str, bool]]  # text, whether the ids are equal

GGML = {
    "SentencePiece BPE": ("llama-spm", "phi-3"),
    "byte-level BPE": ("llama-bpe", "gpt-2", "qwen2", "falcon", "mpt", "starcoder", "deepseek-llm"),
    "WordPiece": ("bert-bge",),
}
# tokenizers of transformers.js whose vocabulary the test data holds -> where
PUBLISHED = {
    "SentencePiece BPE": {"Xenova/llama-tokenizer": "ggml:llama-spm"},
    "byte-level BPE": {
        "tiiuae/falcon-7b": "ggml:falcon",
        "tiiuae/falcon-rw-1b": "ggml:gpt-2",
        "Xenova/gpt2": "ggml:gpt-2",
        "openai-community/gpt2": "ggml:gpt-2",
        "Xenova/llama3-tokenizer": "ggml:llama-bpe",
        "Xenova/llama3-tokenizer-new": "ggml:llama-bpe",
        "Xenova/Qwen1.5-0.5B-Chat": "ggml:qwen2",
        "Xenova/all-distilroberta-v1": "json:roberta",
    },
    "WordPiece": {
        "Xenova/bert-base-uncased": "ggml:bert-bge",
        "Xenova/distilbert-base-uncased-finetuned-sst-2-english": "ggml:bert-bge",
    },
    "Unigram": {"Xenova/t5-small": "json:t5-small", "google-t5/t5-small": "json:t5-small"},
}
MISTRAL_CASES = {
    "text": vectors.text_cases,
    "messages": vectors.message_cases,
    "messages, by the template's rules": vectors.answer_cases,
}


def data() -> Path:
    return vocab.data_folder()


def from_folder(folder: Path, out: Path, whole: bool) -> Tokenizer:
    """The tokenizer of a checkpoint's files, with (`whole`) or without tokenizer.json in the file."""
    content = Settings.load_if_there(folder / "tokenizer.json").values
    sizes = [len(content.get("model", {}).get("vocab", ())) + len(content.get("added_tokens", ()))]
    if (folder / "tokenizer.model").exists():
        sizes.append(sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size())
    plan = plan_vocab(folder, Settings(folder / "config.json", {}), max(sizes))
    metadata: dict[str, Any] = {}
    for entry in plan.entries:
        value = entry.value
        if isinstance(value, np.ndarray):
            value = bytearray(value) if value.dtype == np.uint8 else value.tolist()
        metadata[entry.key] = value
    if not whole:
        metadata.pop("tokenizer.huggingface.json", None)
    return load_tokenizer(vocab.write(out, metadata))


@cache
def published(place: str, whole: bool = True) -> Tokenizer:
    """The tokenizer "ggml:NAME" of llama.cpp's vocabulary files or "json:NAME" of the published tokenizer.json."""
    kind, name = place.split(":")
    if kind == "ggml":
        return load_tokenizer(data() / f"ggml-vocab/ggml-vocab-{name}.gguf")
    with tempfile.TemporaryDirectory() as folder:
        return from_folder(data() / "tokenizers" / name, Path(folder, "v.gguf"), whole)


@cache
def mistral(version: str) -> Tokenizer:
    """Mistral's SentencePiece model of a version; its chat format writes its spaces itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.model").write_bytes(vectors.model_bytes(version))
        (folder / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": False, "bos_token": "<s>"}))
        return from_folder(folder, folder / "v.gguf", False)


# ------------------------------------------------------------------------------------------------------------ vectors


def ggml_cases(name: str) -> Cases:
    """Every text of llama.cpp's own test of a vocabulary file."""
    tokenizer, file = published(f"ggml:{name}"), data() / f"ggml-vocab/ggml-vocab-{name}.gguf"
    texts = file.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    for text, line in zip(texts, file.with_suffix(".gguf.out").read_text().splitlines(), strict=False):
        yield text, tokenizer.encode(text) == [int(i) for i in line.split()]


def published_cases(name: str, place: str) -> Cases:
    """transformers.js' cases: special tokens are parsed, and added in some of them."""
    cases = json.loads((data() / "vectors/transformersjs_tokenizer_vectors.json").read_text("utf-8"))
    tokenizer = published(place)
    for case in cases[name]["cases"].values():
        flags = itertools.product((False, True), repeat=2)
        found = [tokenizer.encode(case["text"], special, parse) for special, parse in flags]
        if "text_pair" in case:  # each text is ended, the first is begun
            pair = tokenizer.encode(case["text_pair"], parse_special=True)
            found = [[*ids, *pair, tokenizer.eos_id] for ids in found]
        yield case["text"], case["ids"] in found


def absent() -> int:
    """How many tokenizers of transformers.js' vectors the test data does not hold."""
    names = json.loads((data() / "vectors/transformersjs_tokenizer_vectors.json").read_text("utf-8"))
    return len(set(names) - {name for places in PUBLISHED.values() for name in places})


def vector_sets() -> dict[str, dict[str, Callable[[], Cases]]]:
    """Family -> name of a set of vectors -> its cases."""
    sets: dict[str, dict[str, Callable[[], Cases]]] = {}
    for family, names in GGML.items():
        for name in names:
            sets.setdefault(family, {})[f"llama.cpp {name}"] = lambda name=name: ggml_cases(name)
    for family, places in PUBLISHED.items():
        for name, place in places.items():
            sets.setdefault(family, {})[f"transformers.js {name}"] = lambda name=name, place=place: published_cases(
                name, place
            )
    for name, cases in MISTRAL_CASES.items():
        sets["SentencePiece BPE"][f"mistral-common, {name}"] = lambda cases=cases: cases(mistral)
    return sets


# ------------------------------------------------------------------------------------------------------- differential


def library(name: str) -> Encode:
    """The `tokenizers` library on a published tokenizer.json."""
    loaded = tokenizers.Tokenizer.from_file(str(data() / f"tokenizers/{name}/tokenizer.json"))
    return lambda text: loaded.encode(text, add_special_tokens=False).ids


def wordpiece_library() -> Encode:
    """BERT's tokenizer in the `tokenizers` library, from the words of llama.cpp's file."""
    ours = published("ggml:bert-bge")
    words = {}
    for i, token in enumerate(ours.vocabulary.tokens):
        special = token.startswith("[") and token.endswith("]")
        words[token if special else token[1:] if token.startswith("\u2581") else "##" + token] = i
    loaded = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    loaded.normalizer = tokenizers.normalizers.BertNormalizer()
    loaded.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    loaded.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return lambda text: loaded.encode(text, add_special_tokens=False).ids


def byte_level_library(name: str) -> Encode:
    """One of llama.cpp's files in the `tokenizers` library, cut into words by the converter's table."""
    with open_gguf(data() / f"ggml-vocab/ggml-vocab-{name}.gguf") as file:
        tokens, merges = (list(file.get_array(f"tokenizer.ggml.{key}", of="string")) for key in ("tokens", "merges"))
        types = file.get_array("tokenizer.ggml.token_type", of="integer").tolist()
    rule, made = FAMILIES[name], tokenizers.pre_tokenizers
    words = {token: i for i, token in enumerate(tokens) if types[i] in (vocab.NORMAL, vocab.USER_DEFINED)}
    halves = [tuple(merge.split(" ", 1)) for merge in merges]
    loaded = tokenizers.Tokenizer(tokenizers.models.BPE(words, halves, ignore_merges=rule.ignore_merges))
    steps: list[Any] = []
    for step in rule.steps:
        if step[0] == "Split":
            steps.append(made.Split(tokenizers.Regex(step[2]), step[3].lower(), step[4]))
        elif step[0] == "Digits":
            steps.append(made.Digits(step[1]))
        else:
            steps.append(made.ByteLevel(add_prefix_space=step[1], use_regex=step[2]))
    loaded.pre_tokenizer = made.Sequence(steps)
    added = [token for i, token in enumerate(tokens) if types[i] == vocab.USER_DEFINED]
    loaded.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    return lambda text: loaded.encode(text, add_special_tokens=False).ids


def gpt2_library() -> Encode:
    folder = data() / "tokenizers/gpt2"
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    loaded = tokenizers.Tokenizer(model)
    loaded.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    loaded.add_special_tokens(["<|endoftext|>"])
    return lambda text: loaded.encode(text, add_special_tokens=False).ids


def sentencepiece_library() -> Encode:
    loaded = sentencepiece.SentencePieceProcessor(model_file=str(data() / vectors.MODEL))
    # the library puts a space in front of a text, the chat format does not
    return lambda text: loaded.EncodeAsIds(text)


def _parsed(tokenizer: Tokenizer) -> Encode:
    return lambda text: tokenizer.encode(text, parse_special=True)


def mistral_with_prefix() -> Encode:
    """Mistral's model as sentencepiece runs it alone: no text is a control token, and a space goes in front."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.model").write_bytes((data() / vectors.MODEL).read_bytes())
        return from_folder(folder, folder / "v.gguf", False).encode


def pairs() -> dict[str, dict[str, Callable[[], tuple[Encode, Encode]]]]:
    """Family -> what is compared -> (ours, the reference)."""
    return {
        "SentencePiece BPE": {
            "Mistral's model, sentencepiece": lambda: (mistral_with_prefix(), sentencepiece_library()),
            "Phi-3's tokenizer.json, tokenizers": lambda: (
                _parsed(published("json:phi-3-mini")),
                library("phi-3-mini"),
            ),
        },
        "byte-level BPE": {
            "GPT-2's keys, tokenizers": lambda: (_parsed(published("ggml:gpt-2")), gpt2_library()),
            "Llama 3's keys, tokenizers": lambda: (published("ggml:llama-bpe").encode, byte_level_library("llama-bpe")),
            "Qwen2's keys, tokenizers": lambda: (published("ggml:qwen2").encode, byte_level_library("qwen2")),
            "DeepSeek's keys, tokenizers": lambda: (
                published("ggml:deepseek-llm").encode,
                byte_level_library("deepseek-llm"),
            ),
            "Falcon's tokenizer.json, tokenizers": lambda: (_parsed(published("json:falcon")), library("falcon")),
            "GPT-NeoX's tokenizer.json, tokenizers": lambda: (_parsed(published("json:neox20b")), library("neox20b")),
        },
        "WordPiece": {"BERT's keys, tokenizers": lambda: (_parsed(published("ggml:bert-bge")), wordpiece_library())},
        "Unigram": {
            "T5's tokenizer.json, tokenizers": lambda: (_parsed(published("json:t5-small")), library("t5-small")),
        },
    }


# -------------------------------------------------------------------------------------------------------------- texts

_TEXT = (
    "the of and to in is that for it was on be with as his they at this have from or had by word but what some we can "
    "don't I'LL we've it's HELLO World camelCase HTMLParser snake_case x86_64 3.14 1e-9 0xFF caf\u00e9 na\u00efve "
    "stra\u00dfe \u0130stanbul \u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d\u4e16\u754c "
    "\u3053\u3093\u306b\u3061 \ud55c\uad6d\uc5b4 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 ti\u1ebfng \ufb01ne \u2167 "
    "\uff21\uff22 \u00bd \u0663\u0664 e\u0301 \u1e9b\u0323 "
)
_WORDS = _TEXT.split()
_HOSTILE = (
    "\0", "\x01", "\x1b[31m", "\x7f", "\x85", "\u00a0", "\u00ad", "\u0300", "\u0345", "\u034f", "\u061c", "\u1680",
    "\u180e", "\u200b", "\u200d", "\u200e", "\u2028", "\u2029", "\u202e", "\u2060", "\u2581", "\u2581\u2581", "\u3000",
    "\ufeff", "\ufffc", "\ufffd", "\ufffe", "\uffff", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea", "\U0001d54f", "\U000e0041", "\U0010ffff", "\ue000", "<s>", "</s>", "<unk>", "<|endoftext|>",
    "[CLS]", "[SEP]", "##",
    "<0x0A>", "\u0120", "\u010a", "<|", "|>", "\r", "\r\n", "\n", "\n\n", "\t", "  ", "    ", " ", "'", "''", "\"", "`",
)  # fmt: skip
_RANGES = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xFFF),
    (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xE000, 0xFFFF), (0x10000, 0x1F9FF), (0x20000, 0x2FA1F), (0x0, 0x10FFFF),
)  # fmt: skip


def _character(rng: random.Random) -> str:
    low, high = rng.choice(_RANGES)
    code = rng.randint(low, high)
    return chr(code) if not 0xD800 <= code <= 0xDFFF else "\ufffd"


def texts(count: int, seed: int) -> Iterator[str]:
    """Yield random and hostile texts: words, characters of all scripts, runs, pieces that tokenizers treat apart."""
    rng = random.Random(seed)
    for _ in range(count):
        pieces = []
        for _ in range(rng.randint(1, 8)):
            kind = rng.random()
            if kind < 0.35:
                pieces.append(rng.choice(("", " ", "  ", "\n")) + rng.choice(_WORDS))
            elif kind < 0.55:
                pieces.append("".join(_character(rng) for _ in range(rng.randint(1, 6))))
            elif kind < 0.75:
                pieces.append(rng.choice(_HOSTILE) * rng.randint(1, 3))
            elif kind < 0.85:
                pieces.append(rng.choice("a1 .\n\t-=_#/\u4e2d\u0301") * rng.randint(1, 40))
            else:
                pieces.append("".join(chr(rng.randint(0x20, 0x7E)) for _ in range(rng.randint(1, 12))))
        yield "".join(pieces)
