"""Names of models, and what a repository offers under them: chosen, ambiguous, missing."""

import pytest

from halfbyte.errors import UsageError
from halfbyte.hub.names import ModelName, RemoteFile, choose, parse_name, quantization


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("a/b", ("a/b", None)),
        ("bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", ("bartowski/Llama-3.2-1B-Instruct-GGUF", "Q4_K_M")),
        ("hf.co/a/b:Q8_0", ("a/b", "Q8_0")),
        ("https://huggingface.co/a/b", ("a/b", None)),
        ("a", None),
        ("a/b/c", None),
        ("../b", None),
        ("a/..", None),
        ("/a/b", None),
        ("a/b:", None),
        ("a/b:../c", None),
    ],
)
def test_names(word, name):
    assert parse_name(word) == (name and ModelName(*name))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("llama-2-7b.q4_k_m.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "FP16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("m-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("m-IQ4_NL.gguf", "IQ4_NL"),
        ("Q5_K_S/m-00001-of-00002.gguf", "Q5_K_S"),
        ("BF16/m-Q8_0-00002-of-00003.gguf", "Q8_0"),
        ("EXAONE-Q2_instruct.gguf", None),
        ("model.gguf", None),
    ],
)
def test_quantization_in_a_files_name(file, kind):
    assert quantization(file) == kind


def remote(*names):
    return [RemoteFile(name, 10_000, "0" * 64) for name in names]


def chosen(word, *names):
    name = parse_name(word)
    choice = choose(name, remote(*names))
    return choice.kind, [file.name for file in choice.files]


CHECKPOINT = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "README.md", "onnx/m.onnx")


def test_what_is_chosen():
    two = ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-f16.gguf")
    assert chosen("a/b", *two) == ("Q4_K_M", ["m-Q4_K_M.gguf"])
    assert chosen("a/b:q8_0", *two) == ("Q8_0", ["m-Q8_0.gguf"])
    assert chosen("a/b:m-Q8_0.gguf", *two) == ("m-Q8_0", ["m-Q8_0.gguf"])
    assert chosen("a/b", "model.gguf") == ("model", ["model.gguf"])
    parts = [f"Q6_K/m-Q6_K-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert chosen("a/b:Q6_K", *reversed(parts)) == ("Q6_K", parts)
    assert chosen("a/b", *CHECKPOINT)[0] == "SAFETENSORS"
    assert sorted(chosen("a/b:q4_0", *CHECKPOINT, "m-f32.gguf")[1]) == sorted(CHECKPOINT[:4])
    shards = ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert set(shards) < set(chosen("a/b", "config.json", *shards, "consolidated.safetensors")[1])
    assert "consolidated.safetensors" not in chosen("a/b", "config.json", *shards, "consolidated.safetensors")[1]


@pytest.mark.parametrize(
    ("word", "names", "said"),
    [
        ("a/b:Q5_0", ["m-Q4_K_M.gguf", "m-Q8_0.gguf"], ["a/b:Q5_0: has no Q5_0", "Q4_K_M, Q8_0", "a/b:Q4_K_M"]),
        ("a/b", ["m-Q6_K.gguf", "m-Q8_0.gguf"], ["has no Q4_K_M", "Q6_K, Q8_0"]),
        ("a/b", ["README.md", "model.bin"], ["neither GGUF files nor a checkpoint"]),
        ("a/b:Q8_0", ["x-Q8_0.gguf", "y-Q8_0.gguf"], ["x-Q8_0.gguf, y-Q8_0.gguf", "name the file"]),
        ("a/b:Q8_0", ["x-Q8_0-00001-of-00003.gguf", "x-Q8_0-00003-of-00003.gguf"], ["not all"]),
        ("a/b:nonsense", CHECKPOINT, ["has no NONSENSE", "SAFETENSORS"]),
    ],
)
def test_what_cannot_be_chosen(word, names, said):
    with pytest.raises(UsageError) as raised:
        chosen(word, *names)
    for part in said:
        assert part in str(raised.value)
