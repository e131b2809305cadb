"""Pre-tokenizers of byte-level BPE.  Enters: the name in `tokenizer.ggml.pre`; leaves: how text is cut into words.

Each rule is a row of patterns.  The first cuts the text into its matches and what lies between them, the next cuts
each of these pieces, and so on; merges never cross a cut.  The patterns are those of the models' own tokenizer.json,
the names those that llama.cpp's converter writes (src/llama-vocab.cpp).  Patterns run in the `tokenizers` library
(Oniguruma syntax); a pattern that comes with a file is never run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...quant.split_patterns import CASED, CJK, CONTRACTIONS, PUNCTUATION, SPACES, cl100k, o200k


@dataclass(frozen=True)
class PreTokenizer:
    """One rule.

    patterns        applied one after the other
    whole_words     a word that is a token itself is taken whole, whatever the merges say (ignore_merges)
    add_bos         whether BOS is added where the file does not say
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + SPACES


def _class(ranges: str) -> str:
    """Return the inside of a character class for code points in hexadecimal: "41-5A B5"."""
    return "".join("-".join(rf"\x{{{point}}}" for point in part.split("-")) for part in ranges.split())


_CASED, _PUNCTUATION, _CJK = _class(CASED), _class(PUNCTUATION), _class(CJK)
_HAN_KANA = _class("4E00-9FA5 3040-309F 30A0-30FF")

_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    f"[{_HAN_KANA}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|" + SPACES,
)
_BLOOM = rf" ?[^(\s|.,!?{_class('2026 3002 FF0C 3001 964 6D4 60C')})]+"  # stops of several scripts

_LLAMA3 = PreTokenizer((cl100k(r"\p{N}{1,3}"),), whole_words=True, add_bos=True)
_QWEN2 = cl100k(r"\p{N}")
# marks belong to the letters before them
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|"
_SEED = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|"

# rule -> the names that mean it
_RULES: tuple[tuple[PreTokenizer, str], ...] = (
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (PreTokenizer((_GPT2,)), "gpt-2 phi-2 mpt olmo jais gigachat a.x-4.0 mellum trillion granite-docling exaone4"),
    (PreTokenizer((r"\p{N}", _GPT2)), "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"),
    (_LLAMA3, "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2"),
    (replace(_LLAMA3, whole_words=False, add_bos=False), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (PreTokenizer((_QWEN2,)), "qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open grok-2"),
    (PreTokenizer((_QWEN35,)), "qwen35"),
    (PreTokenizer((o200k(CONTRACTIONS + "?", r"\p{N}{1,3}"),)), "gpt-4o llama4 kanana2 minimax-m2"),
    (PreTokenizer((o200k("", r"\p{N}"),), whole_words=True, add_bos=True), "tekken"),
    (
        PreTokenizer((r"[\r\n]", rf"\s?[{_CASED}]+", rf"\s?[{_PUNCTUATION}]+", r"\s+$", f"[{_CJK}]+", r"\p{N}+")),
        "deepseek-llm",
    ),
    (PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_CJK}]+", r"\p{N}")), "deepseek-coder"),
    (PreTokenizer(_DEEPSEEK3), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (PreTokenizer((_BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((_BLOOM, r"\p{N}")), "viking"),
    (PreTokenizer((_BAILING + SPACES,)), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer((_SEED + SPACES,)), "seed-coder"),
)

PRE_TOKENIZERS = {name: rule for rule, names in _RULES for name in names.split()}
