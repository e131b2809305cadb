"""Tokenizers against llama.cpp's ids, the sentencepiece library and published vectors; and damaged files."""

import itertools
import json
import subprocess
import sys

import pytest
import tiny
import tiny_vocab as vocab
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halfbyte.errors import ModelFileError, UnsupportedError, UsageError
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.tokenizer import load_tokenizer

FAMILIES = [
    "llama-spm",
    "llama-bpe",
    "gpt-2",
    "phi-3",
    "qwen2",
    "falcon",
    "mpt",
    "starcoder",
    "deepseek-llm",
    "bert-bge",
]
_loaded = {}


def real(family):
    """The tokenizer of one of llama.cpp's vocabulary files, loaded once."""
    if family not in _loaded:
        _loaded[family] = load_tokenizer(vocab.data_folder() / f"ggml-vocab/ggml-vocab-{family}.gguf")
    return _loaded[family]


def made(tmp_path, metadata):
    return load_tokenizer(vocab.write(tmp_path / "v.gguf", metadata))


# ---------------------------------------------------------------------------------------------------------------------
# equality with others


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_llama_cpp(family):
    """Every text of llama.cpp's own test, and back."""
    file = vocab.data_folder() / f"ggml-vocab/ggml-vocab-{family}.gguf"
    texts = file.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(i) for i in line.split()] for line in file.with_suffix(".gguf.out").read_text().splitlines()]
    assert len(expected) == 46
    for text, ids in zip(texts, expected, strict=False):
        assert real(family).encode(text) == ids, text
        assert family == "bert-bge" or real(family).decode(ids) == text, "lower case and white space are lost"


@pytest.mark.parametrize(
    ("family", "published"),
    [
        ("llama-spm", "Xenova/llama-tokenizer"),
        ("llama-bpe", "Xenova/llama3-tokenizer-new"),
        ("gpt-2", "openai-community/gpt2"),
        ("qwen2", "Xenova/Qwen1.5-0.5B-Chat"),
        ("falcon", "tiiuae/falcon-7b"),
    ],
)
def test_ids_equal_hugging_face(family, published):
    """transformers.js publishes ids with special tokens parsed; some of its cases add BOS and some do not."""
    vectors = json.loads((vocab.data_folder() / "vectors/transformersjs_tokenizer_vectors.json").read_text("utf-8"))
    tokenizer = real(family)
    for name, case in vectors[published]["cases"].items():
        flags = itertools.product((False, True), repeat=2)
        ids = [tokenizer.encode(case["text"], special, parse) for special, parse in flags]
        assert case["ids"] in ids, name


def sentencepiece_file(tmp_path, model):
    """A GGUF file with the pieces of a SentencePiece model."""
    import sentencepiece

    source = sentencepiece.SentencePieceProcessor(model_proto=model)
    count = source.vocab_size()

    def kind(i):
        if source.IsByte(i):
            return vocab.BYTE
        if source.IsControl(i):
            return vocab.CONTROL
        return vocab.UNKNOWN if source.IsUnknown(i) else vocab.NORMAL

    metadata = {
        ".model": "llama",
        ".tokens": [source.IdToPiece(i) for i in range(count)],
        ".scores": [float(source.GetScore(i)) for i in range(count)],
        ".token_type": [kind(i) for i in range(count)],
    }
    return source, vocab.write(tmp_path / "spm.gguf", metadata)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.lists(st.sampled_from(tiny.text()), max_size=3).map("  ".join))
@example(text="\u2581")
@example(text=" a\u2581b ")
def test_rebuilt_sentencepiece_model_equals_the_source(tmp_path_factory, text):
    if "tiny" not in _loaded:
        source, file = sentencepiece_file(tmp_path_factory.mktemp("spm"), tiny.spm_model())
        _loaded["tiny"] = source, load_tokenizer(file)
    source, tokenizer = _loaded["tiny"]
    assert tokenizer.encode(text) == source.EncodeAsIds(text)
    # sentencepiece writes spaces as U+2581, so neither it nor this can tell that character from a space again
    assert tokenizer.decode(tokenizer.encode(text)) == source.DecodeIds(source.EncodeAsIds(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


@pytest.mark.parametrize(
    "model",
    ["checkpoints/stories260K/tokenizer.model", "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3"],
)
def test_published_sentencepiece_models_rebuilt(tmp_path, model):
    data = vocab.data_folder()
    source, file = sentencepiece_file(tmp_path, (data / model).read_bytes())
    tokenizer = load_tokenizer(file)
    inputs = (data / "ggml-vocab/ggml-vocab-llama-spm.gguf.inp").read_text("utf-8")
    for text in [*inputs.split("\n__ggml_vocab_test__\n"), *tiny.text()]:
        # sentencepiece itself gives no id for the empty text's dummy prefix, and neither do we
        assert tokenizer.encode(text) == source.EncodeAsIds(text), text


# ---------------------------------------------------------------------------------------------------------------------
# behaviour


@pytest.mark.parametrize("kind", [vocab.spm, vocab.bpe])
def test_control_tokens_only_when_asked(tmp_path, kind):
    tokenizer = made(tmp_path, kind())
    end = tokenizer.vocabulary.ids["<|im_end|>"]
    tool = tokenizer.vocabulary.ids["[TOOL]"]
    text = "hello<|im_end|>hello[TOOL]"
    plain, parsed = tokenizer.encode(text), tokenizer.encode(text, parse_special=True)
    assert end not in plain and end in parsed
    assert plain[-1] == parsed[-1] == tool, "a token that a user added is found in any case"
    assert tokenizer.decode(plain) == text
    assert tokenizer.decode(parsed, skip_special=True).replace(" ", "") == "hellohello[TOOL]"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_becomes_a_control_token(family):
    tokenizer = real(family)
    for i, kind in enumerate(tokenizer.vocabulary.file_types.tolist()):
        if kind == vocab.CONTROL:
            assert i not in tokenizer.encode(f"a {tokenizer.token_text(i)} b")


def test_add_special(tmp_path):
    spm = made(tmp_path, vocab.spm())
    assert (spm.add_bos, spm.add_eos) == (True, False), "the family's defaults"
    assert spm.encode("", add_special=True) == [1] and spm.encode("") == []
    both = made(tmp_path, vocab.spm(**{".add_bos_token": True, ".add_eos_token": True}))
    assert both.encode("hello", add_special=True) == [1, *spm.encode("hello"), 2]
    assert not made(tmp_path, vocab.bpe()).add_bos
    assert made(tmp_path, vocab.bpe(**{".pre": "llama-bpe"})).add_bos
    assert not made(tmp_path, vocab.bpe(**{".pre": "llama-bpe", ".add_bos_token": False})).add_bos


def test_longest_special_token_first(tmp_path):
    """As llama.cpp: the longer token is taken wherever it is, even where a shorter one begins earlier."""
    metadata = vocab.bpe()
    count = len(metadata[".tokens"])
    metadata[".tokens"] += ["<ab>", "b><cd>", "<cd>"]
    metadata[".token_type"] += [vocab.USER_DEFINED] * 3
    tokenizer = made(tmp_path, metadata)
    assert tokenizer.encode("<ab><cd>") == [*tokenizer.encode("<a"), count + 1]
    assert tokenizer.encode("<ab>.<cd>") == [count, *tokenizer.encode("."), count + 2]


def test_phi3_special_tokens_swallow_space(tmp_path):
    metadata = vocab.spm() | {"general.name": "Phi-3-mini"}
    tokenizer = made(tmp_path, metadata)
    end = tokenizer.vocabulary.ids["<|im_end|>"]
    assert tokenizer.encode("<|im_end|> \n hello", parse_special=True) == [end, *tokenizer.encode("hello")]
    assert tokenizer.encode("<s> hello", parse_special=True) == [1, *tokenizer.encode(" hello")]


def test_spaces_of_sentencepiece(tmp_path):
    tokenizer = made(tmp_path, vocab.spm())
    hello = tokenizer.vocabulary.ids["▁hello"]
    assert tokenizer.encode("hello") == [hello]
    assert tokenizer.encode("<|im_end|>hello", parse_special=True)[1:] == [hello], "a space also behind special tokens"
    assert tokenizer.decode([hello, hello]) == "hello hello"
    assert tokenizer.decode([1, hello]) == "<s> hello"
    assert tokenizer.decode([1, hello], skip_special=True) == "hello"
    bare = made(tmp_path, vocab.spm(**{".add_space_prefix": False}))
    assert bare.encode("hello") == [bare.vocabulary.ids["hello"]]
    assert bare.decode([hello]) == " hello"


def test_token_texts_and_bytes(tmp_path):
    tokenizer = made(tmp_path, vocab.spm())
    ids = tokenizer.vocabulary.ids
    assert tokenizer.token_text(ids["▁hello"]) == "▁hello" and tokenizer.token_bytes(ids["▁hello"]) == b" hello"
    assert tokenizer.token_bytes(ids["<0xF0>"]) == b"\xf0"
    assert tokenizer.is_control(1) and tokenizer.is_control(0) and not tokenizer.is_control(ids["[TOOL]"])
    for wrong in (-1, tokenizer.n_vocab):
        with pytest.raises(UsageError, match=f"token id {wrong} .* 0 to {tokenizer.n_vocab - 1}"):
            tokenizer.decode([wrong])


def test_long_tokens(tmp_path):
    """Lengths of more than one byte in the rebuilt SentencePiece model."""
    metadata = vocab.spm()
    metadata[".tokens"] += ["w" * size for size in (119, 120, 127, 128, 4096)]
    metadata[".token_type"] += [vocab.NORMAL] * 5
    metadata[".scores"] += [0.0] * 5
    tokenizer = made(tmp_path, metadata)
    assert tokenizer.decode(tokenizer.encode("hello www")) == "hello www"
    assert tokenizer.token_bytes(tokenizer.n_vocab - 1) == b"w" * 4096


def test_surrogates_count_as_replacement_characters(tmp_path):
    for kind in (vocab.spm, vocab.bpe):
        tokenizer = made(tmp_path, kind())
        assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff\0")) == "a�b�\0"


def test_stop_ids(tmp_path):
    tokenizer = made(tmp_path, vocab.bpe())
    ids = tokenizer.vocabulary.ids
    assert tokenizer.stop_ids == {ids["<|eos|>"], ids["<|im_end|>"]}
    assert tokenizer.eot_id == ids["<|im_end|>"], "found by its text"
    assert real("llama-bpe").stop_ids == {128001, 128009}
    metadata = vocab.bpe()
    metadata[".tokens"] += ["<|end|>", "<|return|>", "<|call|>"]
    metadata[".token_type"] += [vocab.CONTROL] * 3
    tokenizer = made(tmp_path, metadata)
    ids = tokenizer.vocabulary.ids
    assert ids["<|end|>"] not in tokenizer.stop_ids and ids["<|call|>"] in tokenizer.stop_ids, "the Harmony format"


def test_no_token_of_that_name(tmp_path):
    tokenizer = made(tmp_path, vocab.bpe(**{".bos_token_id": 2**32 - 1, ".eos_token_id": None}))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, None, None)


def test_whole_words(tmp_path):
    """With the rule of Llama 3 a word that is a token is taken whole, also where the merges do not lead there."""
    metadata = vocab.bpe(**{".pre": "llama-bpe"})
    metadata[".tokens"][-3:-3] = ["world"]
    metadata[".token_type"][-3:-3] = [vocab.NORMAL]
    tokenizer = made(tmp_path, metadata)
    assert tokenizer.encode("world") == [tokenizer.vocabulary.ids["world"]]
    assert len(made(tmp_path, metadata | {".pre": "gpt-2"}).encode("world")) > 1


def raw_vocabulary(**changes):
    """A BPE vocabulary of characters, not of bytes, as Gemma 4 has: merges make "▁hello" and a token is two lines."""
    metadata = vocab.spm(**{".model": "gemma4", ".scores": None, ".merges": vocab.bpe()[".merges"]})
    metadata[".merges"] = [merge.replace("Ġ", "▁") for merge in metadata[".merges"]]
    metadata[".tokens"] += ["\n\n"]
    metadata[".token_type"] += [vocab.NORMAL]
    return metadata | changes


def test_merges_of_characters(tmp_path):
    tokenizer = made(tmp_path, raw_vocabulary())
    ids = tokenizer.vocabulary.ids
    assert tokenizer.add_bos
    assert tokenizer.encode(" hello") == [ids["▁hello"]]
    assert tokenizer.encode("hello\n\nhello\n") == [ids["hello"], ids["\n\n"], ids["hello"], ids["<0x0A>"]]
    for text in (" hello\n\n  héllo \n", "▁", "中\n\n\n文"):
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_white_space_that_only_separates(tmp_path):
    tokenizer = made(tmp_path, raw_vocabulary(**{".model": "whitespace"}))
    hello = tokenizer.vocabulary.ids["hello"]
    assert tokenizer.encode(" hello \n\thello") == [hello, hello]
    lower = made(tmp_path, raw_vocabulary(**{".model": "whitespace", ".normalizer.lowercase": True}))
    assert lower.encode("HELLO") == [hello] and tokenizer.encode("HELLO") != [hello]


def test_the_first_of_two_equal_merges_counts(tmp_path):
    once = made(tmp_path, vocab.bpe())
    twice = made(tmp_path, vocab.bpe(**{".merges": [*vocab.bpe()[".merges"], "h e"]}))
    assert twice.encode("hehello") == once.encode("hehello")


def test_tokens_that_are_not_utf8_print_as_bytes(tmp_path):
    for kind in (vocab.spm, vocab.bpe):
        metadata = kind()
        metadata[".tokens"][-2] = b"\xff\xfe"
        tokenizer = made(tmp_path, metadata)
        last = tokenizer.n_vocab - 2
        assert tokenizer.token_bytes(last) == b"\xff\xfe"
        assert tokenizer.decode([last]) == "��" == tokenizer.token_text(last)
        assert tokenizer.decode(tokenizer.encode("hello ÿ")) == "hello ÿ"


def test_a_byte_without_a_token_is_an_error(tmp_path):
    """llama.cpp drops such bytes; a prompt must not change without a word."""
    metadata = vocab.bpe()
    metadata[".tokens"][ord("z")] = "unreachable"
    tokenizer = made(tmp_path, metadata)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(UsageError, match="no token for a byte of 'jazz'"):
        tokenizer.encode("jazz")


@pytest.mark.parametrize("family", ["llama-spm", "llama-bpe", "falcon", "deepseek-llm"])
def test_long_runs(family):
    """A regex engine or a merge loop that goes quadratic or recurses would hang or die here (llama.cpp does in two)."""
    tokenizer = real(family)
    for unit in ("A", "中", " ", ".", "\n", "7", "\u0301", "👩\u200d", "'"):
        text = unit * (30_000 // len(unit)) + "x"
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_file_may_be_open_already(tmp_path):
    with open_gguf(vocab.write(tmp_path / "v.gguf", vocab.spm())) as gguf:
        assert load_tokenizer(gguf).encode("hello") == load_tokenizer(str(gguf.path)).encode("hello")


def test_import_is_light():
    names = ("tokenizer", "templates", "sampling", "steps")
    code = "; ".join(f"import halfbyte.runtime.{name}" for name in names) + "; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tokenizers", "sentencepiece", "jinja2", "numba", "numpy.random"} & set(loaded)


# ---------------------------------------------------------------------------------------------------------------------
# damaged and foreign files (hostile-input.md H091 to H103)


def replaced(values, index, value):
    return [*values[:index], value, *values[index + 1 :]]


SPM, BPE = vocab.spm(), vocab.bpe()
N_SPM = len(SPM[".tokens"])
DAMAGED = {
    "tokens missing": (SPM | {".tokens": None}, "tokens.*missing"),
    "tokens not strings": (SPM | {".tokens": [1, 2]}, "tokens.*array.int32"),
    "no tokens": (BPE | {".tokens": []}, "tokens"),
    "token too long": (BPE | {".tokens": replaced(BPE[".tokens"], 9, "x" * 5000)}, "tokens.*token 9 has 5000 bytes"),
    "duplicate token": (BPE | {".tokens": replaced(BPE[".tokens"], 9, "a")}, "tokens.*tokens 9 and 97 are both 'a'"),
    "scores missing": (SPM | {".scores": None}, "scores.*missing"),
    "scores short": (SPM | {".scores": SPM[".scores"][:-1]}, f"scores.*has {N_SPM - 1} .* has {N_SPM}"),
    "scores of integers": (SPM | {".scores": [1] * N_SPM}, "scores.*array.int32"),
    "score nan": (SPM | {".scores": replaced(SPM[".scores"], 7, float("nan"))}, "scores.*score 7 is nan"),
    "score inf": (SPM | {".scores": replaced(SPM[".scores"], 8, float("inf"))}, "scores.*score 8 is inf"),
    "types missing": (SPM | {".token_type": None}, "token_type.*missing"),
    "types short": (BPE | {".token_type": BPE[".token_type"][1:]}, "token_type.*has "),
    "type 99": (BPE | {".token_type": replaced(BPE[".token_type"], 3, 99)}, "token_type.*type 3 is 99.*0 to 6"),
    "type -1": (BPE | {".token_type": replaced(BPE[".token_type"], 3, -1)}, "token_type.*type 3 is -1"),
    "byte token <0xZZ>": (SPM | {".tokens": replaced(SPM[".tokens"], 9, "<0xZZ>")}, "token 9 .*'<0xZZ>'"),
    "byte token <0x-1>": (SPM | {".tokens": replaced(SPM[".tokens"], 9, "<0x-1>")}, "token 9 .*'<0x-1>'"),
    "byte token <0x100>": (SPM | {".tokens": replaced(SPM[".tokens"], 9, "<0x100>")}, "token 9 .*'<0x100>'"),
    "byte token twice": (SPM | {".tokens": replaced(SPM[".tokens"], 9, "<0x07>")}, "tokens 9 and 10 are both"),
    "byte token missing": (
        SPM | {".token_type": replaced(SPM[".token_type"], 9, vocab.NORMAL)},
        "255 of the 256 byte tokens; <0x06> is missing",
    ),
    "neither bytes nor unknown": (
        SPM | {".token_type": [vocab.NORMAL] * N_SPM},
        "neither byte tokens nor an unknown token",
    ),
    "bos out of range": (SPM | {".bos_token_id": N_SPM}, f"bos_token_id.*is {N_SPM}; allowed are 0 to {N_SPM - 1}"),
    "eot out of range": (BPE | {".eot_token_id": 2**31}, "eot_token_id.*is 2147483648"),
    "pad a text": (BPE | {".padding_token_id": "x"}, "padding_token_id.*string"),
    "add_bos without bos": (BPE | {".bos_token_id": None, ".add_bos_token": True}, "add_bos_token.*is true"),
    "add_bos a number": (BPE | {".add_bos_token": 1}, "add_bos_token.*uint32"),
    "merges missing": (BPE | {".merges": None}, "merges.*missing"),
    "merge without space": (BPE | {".merges": replaced(BPE[".merges"], 2, "hell")}, "merges.*merge 2 is 'hell'"),
    "merge of three": (BPE | {".merges": replaced(BPE[".merges"], 2, "h e ll")}, "merges.*merge 2 is 'h e ll'"),
    "misaligned merges": (
        BPE | {".merges": [*replaced(BPE[".merges"], 2, "hell"), "h e ll"]},
        "merges.*merge 2 is 'hell'",
    ),
    "merge of unknown parts": (BPE | {".merges": replaced(BPE[".merges"], 1, "l zzz")}, "merge 1 .*'zzz' is no token"),
    "merge to nothing": (BPE | {".merges": replaced(BPE[".merges"], 1, "l x")}, "merge 1 .*'lx' is no token"),
    "empty half": (BPE | {".merges": replaced(BPE[".merges"], 1, " l")}, "merge 1 .*'' is no token"),
    "model missing": (BPE | {".model": None}, "tokenizer.ggml.model.*missing"),
    "pre missing": (BPE | {".pre": None}, "tokenizer.ggml.pre.*missing"),
    "template a number": (BPE | {"tokenizer.chat_template": 3}, "chat_template.*uint32"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_vocabulary(tmp_path, case):
    metadata, message = DAMAGED[case]
    file = vocab.write(tmp_path / "damaged.gguf", metadata)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_tokenizer(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_unknown_family_and_rule_list_what_is_supported(tmp_path):
    with pytest.raises(
        UnsupportedError, match=r"tokenizer model 'rwkv' is not supported; supported: llama, gpt2, .*t5"
    ):
        made(tmp_path, BPE | {".model": "rwkv"})
    with pytest.raises(
        UnsupportedError, match=r"pre-tokenizer 'martian' is not supported; supported: default, .*qwen2"
    ):
        made(tmp_path, BPE | {".pre": "martian"})


def test_empty_tokens_are_accepted(tmp_path):
    metadata = SPM | {".tokens": replaced(replaced(SPM[".tokens"], N_SPM - 3, ""), N_SPM - 4, "")}
    assert made(tmp_path, metadata).token_text(N_SPM - 3) == f"[EMPTY_{N_SPM - 3}]"
