"""Special ids, flags and chat templates.  Enters: the JSON files and the token table; leaves: their metadata entries.

Order of authority for an id, as in llama.cpp's converter: the token that tokenizer_config.json names, then the id in
config.json.  For add_bos and add_eos: tokenizer_config.json, then tokenizer.json's post-processor, then the family's
habit.  Both flags are always written, so that no reader has to guess them from the pre-tokenizer's name.  A text that
the post-processor ends with another token than eos_token (Qwen3-Embedding) has that one as its EOS; eos_token then is
one of the further ends.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import ModelFileError, UnsupportedError, printable
from ..jsonfile import Settings, check_utf8
from ..plan import Entry
from ..source import read_whole
from .table import TokenTable

MAX_TEMPLATE_BYTES = 1 << 20

_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # the spelling is GGUF's
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
# Tokens that llama.cpp ends generation at by their text alone (llama-vocab.cpp).
_KNOWN_ENDS = frozenset(
    (
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
        "<EOT>", "_<EOT>", "</s>", "<|return|>", "<|call|>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)  # fmt: skip
_SAMPLING = {
    "top_k": ("top_k", "int32"),
    "top_p": ("top_p", "float32"),
    "min_p": ("min_p", "float32"),
    "temperature": ("temp", "float32"),
}


def special_entries(
    folder: Path, config: Settings, tokenizer_config: Settings, tokenizer_json: Settings, table: TokenTable
) -> list[Entry]:
    """Return the entries for special ids, add_bos and add_eos, the chat template and the sampling defaults.

    Raises ModelFileError when an id is beyond the vocabulary or two files contradict each other.
    """
    ids = table.ids()
    found = {kind: _special_id(kind, config, tokenizer_config, table, ids) for kind in _KEYS}
    first, last = _template_ends(tokenizer_json, table)
    if table.model == "bert":  # [CLS] and [SEP], whatever stands in config.json
        found["bos"], found["eos"] = first, last
        found["sep"] = last if found["sep"] is None else found["sep"]
    named_end = found["eos"]
    if last is not None:
        found["eos"] = last
    for kind, end in (("bos", first), ("eos", last)):
        if end is not None and found[kind] is None:
            found[kind] = end
        if end is not None and end != found[kind]:
            tokenizer_json.fail(
                "post_processor",
                f"adds the token {end}, but {kind}_token is {found[kind]} in {tokenizer_config.path.name}",
            )
    entries = [Entry(_KEYS[kind], "uint32", id) for kind, id in found.items() if id is not None]
    entries += _further_ends(folder, config, table, found["eos"], named_end)
    habit = table.model == "llama" and not tokenizer_json.has("post_processor")
    add_bos = tokenizer_config.boolean("add_bos_token", default=first is not None or habit)
    add_eos = tokenizer_config.boolean("add_eos_token", default=last is not None)
    entries.append(Entry("tokenizer.ggml.add_bos_token", "bool", add_bos and found["bos"] is not None))
    entries.append(Entry("tokenizer.ggml.add_eos_token", "bool", add_eos and found["eos"] is not None))
    return entries + _templates(folder, tokenizer_config)


def _special_id(
    kind: str, config: Settings, tokenizer_config: Settings, table: TokenTable, ids: dict[bytes, int]
) -> int | None:
    """Return the id of "bos", "eos" ... or None when no file has it.

    An id beyond the vocabulary is an error for bos and eos; the others do not take part in generation, and old files
    say -1 or the vocabulary's size for "none".
    """
    named = tokenizer_config.get(f"{kind}_token", None)
    text = named.get("content") if isinstance(named, dict) else named
    if isinstance(text, str):
        check_utf8(tokenizer_config, f"{kind}_token", text)
        if text.encode() in ids:
            return ids[text.encode()]
    id = config.get(f"{kind}_token_id", None)
    if isinstance(id, list):
        id = id[0] if id else None
    if type(id) is int and 0 <= id < len(table.tokens):
        return id
    if id is not None and kind in ("bos", "eos"):
        config.fail(f"{kind}_token_id", f"is {printable(id)}; an id from 0 to {len(table.tokens) - 1} is allowed")
    return None


def _further_ends(
    folder: Path, config: Settings, table: TokenTable, eos: int | None, named_end: int | None
) -> list[Entry]:
    """Return entries for the end tokens of generation_config.json that llama.cpp would not know by their text.

    named_end: what eos_token says, which may be another than `eos`.  GGUF has two keys to spare for them, eot and eom.
    """
    generation = Settings.load_if_there(folder / "generation_config.json")
    entries = _sampling_defaults(generation)
    unknown: list[int] = []
    stated = [(settings, settings.get("eos_token_id", [])) for settings in (generation, config)]
    for settings, ends in [*stated, (config, [] if named_end is None else named_end)]:
        for id in ends if isinstance(ends, list) else [ends]:
            if type(id) is not int or not 0 <= id < len(table.tokens):
                settings.fail("eos_token_id", f"is {printable(id)}; ids from 0 to {len(table.tokens) - 1} are allowed")
            text = (table.tokens[id] or b"").decode("utf-8", "replace")
            if id != eos and id not in unknown and text not in _KNOWN_ENDS:
                unknown.append(id)
    if len(unknown) > 2:
        allowed = ("2 besides eos_token and those that llama.cpp knows by name",)
        raise UnsupportedError("number of end tokens", len(unknown), allowed, generation.path)
    keys = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    return entries + [Entry(key, "uint32", id) for key, id in zip(keys, unknown, strict=False)]


def _sampling_defaults(generation: Settings) -> list[Entry]:
    """Return general.sampling.* for the settings that generation_config.json recommends."""
    found = []
    for key, (name, type) in _SAMPLING.items():
        if generation.has(key):
            value = generation.number(key, 0, 1e9)
            found.append(Entry(f"general.sampling.{name}", type, int(value) if type == "int32" else value))
    return found


def _template_ends(tokenizer_json: Settings, table: TokenTable) -> tuple[int | None, int | None]:
    """Return the ids that tokenizer.json's post-processor puts before and after a text.

    Raises UnsupportedError for a post-processor that does more than that.
    """
    processor = tokenizer_json.section("post_processor")
    steps = processor.items("processors", []) if processor.values.get("type") == "Sequence" else [processor.values]
    ends: tuple[int | None, int | None] = (None, None)
    for step in steps:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "TemplateProcessing":
            ends = _single_template(Settings(processor.path, step, "post_processor."), table)
        elif kind in ("BertProcessing", "RobertaProcessing"):
            described = Settings(processor.path, step, "post_processor.")
            ends = _named_end(described, "cls", table), _named_end(described, "sep", table)
        elif step and kind != "ByteLevel":
            allowed = ("ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing", "Sequence of these")
            raise UnsupportedError("tokenizer post-processor", kind, allowed, processor.path)
    return ends


def _named_end(step: Settings, key: str, table: TokenTable) -> int:
    """Return the id in ["[CLS]", 101]."""
    pair = step.items(key)
    if len(pair) != 2 or type(pair[1]) is not int or not 0 <= pair[1] < len(table.tokens):
        step.fail(key, f"is {printable(pair)}; a token and an id of the vocabulary are allowed")
    return int(pair[1])


def _single_template(step: Settings, table: TokenTable) -> tuple[int | None, int | None]:
    pieces = step.items("single")
    names: list[str | None] = []
    for piece in pieces:
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        names.append(special.get("id") if isinstance(special, dict) else None)
    text = [number for number, name in enumerate(names) if name is None]
    if len(text) != 1 or text[0] > 1 or len(names) - text[0] > 2:
        raise UnsupportedError("template of the post-processor", names, ("[bos] text [eos]",), step.path)
    known = step.section("special_tokens")

    def id_of(name: str | None) -> int | None:
        if name is None:
            return None
        ids = known.section(name).items("ids")
        if len(ids) != 1 or type(ids[0]) is not int or not 0 <= ids[0] < len(table.tokens):
            known.fail(printable(name), f"has the ids {printable(ids)}; one id of the vocabulary is allowed")
        return int(ids[0])

    return id_of(names[0] if text[0] == 1 else None), id_of(names[-1] if text[0] != len(names) - 1 else None)


def _templates(folder: Path, tokenizer_config: Settings) -> list[Entry]:
    """Return the chat template and the named ones; chat_template.jinja counts before tokenizer_config.json.

    Raises ModelFileError for templates that are neither a string nor a list of {name, template}.
    """
    path = folder / "chat_template.jinja"
    found: Any = tokenizer_config.get("chat_template", None)
    if path.exists():
        try:
            found = read_whole(path, MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(path, "is not UTF-8", offset=error.start) from None
    if found is None:
        return []
    named = [{"name": "default", "template": found}] if isinstance(found, str) else found
    if not isinstance(named, list):
        tokenizer_config.fail("chat_template", "is neither a string nor a list of named templates")
    entries, names = [], []
    for number, entry in enumerate(named):
        if not isinstance(entry, dict):
            tokenizer_config.fail(f"chat_template[{number}]", "is not an object with name and template")
        described = Settings(tokenizer_config.path, entry, f"chat_template[{number}].")
        name, text = re.sub(r"[^A-Za-z0-9]", "_", described.text("name")), described.text("template")
        if name == "default":
            entries.append(Entry("tokenizer.chat_template", "string", text))
        elif name and name not in names:
            names.append(name)
            entries.append(Entry(f"tokenizer.chat_template.{name}", "string", text))
    if names:
        entries.append(Entry("tokenizer.chat_templates", "array", names, "string"))
    return entries
