"""Encoders and embeddings: rows of transformers, pooling, batches, the Python interface, the command, llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import tiny
from architectures import ENCODERS, Row
from conversions import metadata, mistake, refused, run_command
from gguf_models import opened, rewritten
from test_architectures_peers import THEIRS, quantized_by_it
from test_wordpiece_unigram import NAMES, wordpiece

from halfbyte import LLM, convert_checkpoint
from halfbyte.errors import ContextLengthError, ModelFileError, UnsupportedError, UsageError
from halfbyte.runtime.embedding import normalised, pooled
from halfbyte.runtime.engine import engine as engine_module
from halfbyte.runtime.engine.batch import Part
from halfbyte.runtime.engine.engine import Engine

every_encoder = pytest.mark.parametrize("row", ENCODERS, ids=lambda row: row.name)
TEXTS = ["Once upon a time", "A robot lost its key.", "", "one two three four five six seven " * 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


def gguf_of(folder: Path, name: str, type: str = "f32", pooling: str | None = "mean") -> Path:
    """The row's file, made once; pooling: what its checkpoint asks for."""
    file = folder / f"{name}-{type}-{pooling}.gguf"
    if not file.exists():
        checkpoint = architectures.build(folder / f"{file.stem}-checkpoint", architectures.BY_NAME[name])
        if pooling is not None:
            write_pooling(checkpoint, **{f"pooling_mode_{pooling}": True})
        convert_checkpoint(checkpoint, file, type)
    return file


def write_pooling(checkpoint: Path, place: str = "1_Pooling", **config: Any) -> None:
    (checkpoint / place).mkdir(exist_ok=True)
    tiny.write_json(checkpoint / place / "config.json", config)


def rows_of(engine: Engine, *texts: list[int]) -> list[np.ndarray]:
    """The rows of sequences in one step."""
    sequences = [engine.new_sequence() for _ in texts]
    found = engine.step([Part(s, ids, len(ids)) for s, ids in zip(sequences, texts, strict=True)]).copy()
    for sequence in sequences:
        sequence.close()
    return np.split(found, np.cumsum([len(ids) for ids in texts])[:-1])


# ---------------------------------------------------------------------------------------------------------------------
# rows


@every_encoder
def test_rows_of_transformers(folder: Path, row: Row) -> None:
    with opened(gguf_of(folder, row.name, pooling="mean_tokens")) as engine:
        (found,) = rows_of(engine, row.golden["ids"])
    error = np.abs(found - row.logits).max()
    print(f"{row.name}: largest difference {error:.1e} of rows with a deviation of {row.logits.std():.1f}")
    assert found.shape == row.logits.shape
    assert error < row.tolerance


@every_encoder
@pytest.mark.parametrize("type", ["f16", "q8_0"])
def test_a_batch_gives_the_same_bits(folder: Path, row: Row, type: str) -> None:
    """Texts of several lengths in one step, on one and on three threads, as each alone."""
    rng = np.random.default_rng(1)
    texts = [rng.integers(3, architectures.VOCAB, n).tolist() for n in (1, 70, 20, 130, 2)]
    file = gguf_of(folder, row.name, type, "mean_tokens")
    with opened(file) as engine:
        alone = [rows_of(engine, text)[0] for text in texts]
    with opened(file, threads=3) as engine:
        together = rows_of(engine, *texts)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@every_encoder
def test_types_round_little(folder: Path, row: Row) -> None:
    for type, least in (("f16", 0.99999), ("q8_0", 0.999)):
        with LLM(gguf_of(folder, row.name, type, "mean_tokens"), threads=1) as llm:
            (found,) = llm.embed([row.golden["ids"]])
        assert found @ normalised(row.logits.mean(axis=0)) > least


def test_what_an_encoder_takes(folder: Path) -> None:
    with opened(gguf_of(folder, "bert", pooling=None)) as engine:
        sequence = engine.new_sequence()
        with pytest.raises(ValueError, match="whole sequences"):
            engine.step([Part(sequence, [3, 4], 1)])
        with pytest.raises(ValueError, match="65 sequences; allowed are 64"):
            engine.step([Part(sequence, [3], 1)] * 65)
        engine.step([Part(sequence, [3, 4], 2)])
        with pytest.raises(ValueError, match="whole sequences"):
            engine.step([Part(sequence, [5], 1)])


def test_sixty_four_texts_fill_a_step(folder: Path) -> None:
    """However short: each holds a page."""
    rng = np.random.default_rng(2)
    with opened(gguf_of(folder, "bert", pooling=None)) as engine:
        texts = [rng.integers(3, architectures.VOCAB, 4).tolist() for _ in range(64)]
        together = rows_of(engine, *texts)
        np.testing.assert_array_equal(together[63], rows_of(engine, texts[63])[0])


def test_positions_end(folder: Path) -> None:
    with pytest.raises(UsageError, match="a context of 257 tokens; this model has positions for 256"):
        LLM(gguf_of(folder, "bert", pooling=None), context=257)
    with pytest.raises(UsageError, match="a context of 65537 tokens; an encoder's is at most 65536"):
        LLM(gguf_of(folder, "modern-bert", pooling=None), context=65537)


# ---------------------------------------------------------------------------------------------------------------------
# the Python interface


@pytest.mark.parametrize(("pooling", "row"), [("mean_tokens", None), ("cls_token", 0), ("lasttoken", -1)])
def test_the_pooling_of_the_checkpoint(folder: Path, pooling: str, row: int | None) -> None:
    want = architectures.BY_NAME["nomic-bert"].logits
    want = want.mean(axis=0) if row is None else want[row]
    ids = architectures.BY_NAME["nomic-bert"].golden["ids"]
    with LLM(gguf_of(folder, "nomic-bert", pooling=pooling), threads=1) as llm:
        found = llm.embed([ids], normalize=False)
        assert (found.shape, found.dtype) == ((1, 64), np.float32)
        np.testing.assert_allclose(found[0], want, atol=1e-4)
        np.testing.assert_allclose(llm.embed([ids])[0], want / np.sqrt((want**2).sum()), atol=1e-5)


def test_texts_and_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings, ids and many steps give the same; a text is what its tokens are."""
    with LLM(gguf_of(folder, "modern-bert", pooling="cls_token"), threads=1) as llm:
        ids = [llm.tokenize(text) for text in TEXTS]
        found = llm.embed(TEXTS)
        np.testing.assert_array_equal(llm.embed(ids), found)
        np.testing.assert_array_equal(llm.embed(TEXTS[1]), found[1:2])
        rows = llm.embed_tokens(TEXTS, normalize=False)
        assert [r.shape for r in rows] == [(len(i), 64) for i in ids]
        for kind in ("mean", "cls", "last"):
            want = normalised(np.stack([pooled(r, kind) for r in rows]))
            np.testing.assert_array_equal(llm.embed(TEXTS, pooling=kind), want)
        assert llm.embed([]).shape == (0, 64)
        monkeypatch.setattr("halfbyte.runtime.embedding.MAX_SEQUENCES", 2)
        np.testing.assert_array_equal(llm.embed(TEXTS), found)
        many = [[5] * 100, [6] * 200, [7] * 60]
        np.testing.assert_array_equal(llm.embed(many), np.concatenate([llm.embed([ids]) for ids in many]))


def test_a_decoder_gives_embeddings_and_text(tiny_gguf: Path) -> None:
    """Its rows before the output matrix, whatever the steps; generating goes on as if nothing were."""
    with LLM(tiny_gguf, threads=1, ubatch=8) as llm:
        told = llm.generate("Once upon a time", max_tokens=8, temperature=0).token_ids
        ids = llm.tokenize("The little dog went to the park and was happy")
        (rows,) = llm.embed_tokens([ids], normalize=False)
        assert rows.shape == (len(ids), llm.model.n_embd)
        np.testing.assert_array_equal(llm.embed([ids], False, "last")[0], rows[-1])
        sequence = llm.engine.new_sequence()
        np.testing.assert_array_equal(llm.engine.embed([Part(sequence, ids[:8], 2)]), rows[6:8])
        sequence.close()
        matrix = llm._file.tensors[
            "output.weight" if "output.weight" in llm._file.tensors else "token_embd.weight"
        ].dequantize()
        logits = llm.logits(ids)
        np.testing.assert_allclose(rows @ matrix.T, logits, atol=0.1 * logits.std())
        assert llm.generate("Once upon a time", max_tokens=8, temperature=0).token_ids == told


@pytest.mark.parametrize("name", ["bert", "modern-bert"])
def test_an_encoder_does_not_generate(folder: Path, name: str) -> None:
    with LLM(gguf_of(folder, name, pooling=None), threads=1) as llm:
        for use in (llm.generate, llm.logits):
            with pytest.raises(UsageError, match="is an encoder: it gives embeddings"):
                use([3, 4])
        with pytest.raises(UsageError, match="is an encoder"):
            llm.chat([{"role": "user", "content": "Hello"}])
        with pytest.raises(UsageError, match="is an encoder"):
            llm.engine.feed(llm.engine.new_sequence(), [3])


def test_mistakes(folder: Path) -> None:
    with LLM(gguf_of(folder, "bert", pooling=None), threads=1, context=100) as llm:
        with pytest.raises(UsageError, match="pooling: the file names none; one vector of a text takes mean, cls"):
            llm.embed(["a"])
        with pytest.raises(UsageError, match="pooling: it is 'max'"):
            llm.embed(["a"], pooling="max")
        with pytest.raises(ContextLengthError, match="text 1 has 101 tokens; the context is 100 tokens"):
            llm.embed([[3], [3] * 101], pooling="mean")
        with pytest.raises(UsageError, match="text 1 has no tokens"):
            llm.embed([[3], []], pooling="mean")
        with pytest.raises(UsageError, match="token id 420 is outside the vocabulary"):
            llm.embed([[420]], pooling="mean")


def test_norms() -> None:
    x = np.array([[3, -4], [0, 0]], np.float32)
    np.testing.assert_allclose(normalised(x), [[0.6, -0.8], [0, 0]])
    np.testing.assert_array_equal(normalised(x, -1), x)
    np.testing.assert_allclose(normalised(x, 0), [[24570, -32760], [0, 0]])
    np.testing.assert_allclose(normalised(x, 1), [[3 / 7, -4 / 7], [0, 0]])
    np.testing.assert_allclose(normalised(x, 3), [[3 / 91 ** (1 / 3), -4 / 91 ** (1 / 3)], [0, 0]], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# files and checkpoints


def test_keys_of_llama_cpp(folder: Path) -> None:
    found = metadata(gguf_of(folder, "modern-bert", pooling="cls_token"))
    at = "modern-bert."
    said = {key.removeprefix(at): value for key, value in found.items() if key.startswith(at)}
    assert (said["attention.causal"], said["pooling_type"], said["hidden_activation"]) == (False, 2, "gelu")
    assert (said["attention.sliding_window"], said["attention.sliding_window_pattern"]) == (8, 3)
    assert (said["rope.freq_base"], said["rope.freq_base_swa"]) == (160000, 10000)
    assert "pooling_type" not in {key.split(".")[1] for key in metadata(gguf_of(folder, "bert", pooling=None))}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pooling_mode_max_tokens": True}, "pooling 'max' is not supported"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "pooling 'mean and cls' is not supported"),
        ({"pooling_mode": "weightedmean"}, "pooling 'weightedmean' is not supported"),
        ({"word_embedding_dimension": 64}, "pooling 'none of them' is not supported"),
    ],
)
def test_other_poolings_are_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    checkpoint = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME["bert"])
    write_pooling(checkpoint, **config)
    refused(checkpoint, UnsupportedError, said, "supported: mean, cls, lasttoken")


def test_modules_of_sentence_transformers(tmp_path: Path) -> None:
    checkpoint = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME["bert"])

    def modules(*pairs: tuple[str, str]) -> None:
        kinds = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in pairs]
        tiny.write_json(checkpoint / "modules.json", kinds)

    modules(("Transformer", ""), ("Pooling", "3_Pool"), ("Normalize", "4_Normalize"))
    write_pooling(checkpoint, "3_Pool", pooling_mode="lasttoken", embedding_dimension=64)
    convert_checkpoint(checkpoint, tmp_path / "m.gguf", "f32")
    assert metadata(tmp_path / "m.gguf")["bert.pooling_type"] == 3
    modules(("Transformer", ""), ("Pooling", "3_Pool"), ("Dense", "5_Dense"))
    refused(checkpoint, UnsupportedError, "sentence-transformers module 'Dense' is not supported")
    modules(("Pooling", "../3_Pool"))
    refused(checkpoint, ModelFileError, "modules.json", "'../3_Pool'; the name of a folder is allowed")
    tiny.write_json(checkpoint / "modules.json", {"0": "Transformer"})
    refused(checkpoint, ModelFileError, "modules.json", "something else than a list of objects")


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("bert", {"is_decoder": True}, "config.json is_decoder 'true'"),
        ("bert", {"hidden_act": "gelu_new"}, "config.json hidden_act"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("nomic-bert", {"hidden_act": "gelu"}, "config.json hidden_act"),
        ("nomic-bert", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "config.json rope type"),
        ("nomic-bert", {"num_key_value_heads": 2}, "config.json num_key_value_heads"),
        ("modern-bert", {"layer_types": ["sliding_attention"] * 5}, "config.json layer_types"),
        ("modern-bert", {"norm_bias": True}, "config.json norm_bias"),
        ("modern-bert", {"hidden_activation": "relu"}, "config.json hidden_activation"),
    ],
)
def test_other_encoders_are_refused(tmp_path: Path, name: str, config: dict[str, Any], said: str) -> None:
    checkpoint = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME[name], **config)
    refused(checkpoint, UnsupportedError, said)


def test_old_files_of_bert(tmp_path: Path, folder: Path) -> None:
    """TensorFlow's names of norms, the prefix of the pretraining model, a pooler and a buffer."""
    row = architectures.BY_NAME["bert"]
    checkpoint = architectures.build(tmp_path / "checkpoint", row)
    held = architectures.weights(row, row.golden["tensors"])
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in held.items()
    }
    old["cls.seq_relationship.weight"] = np.zeros((2, 64), np.float32)
    tiny.write_safetensors(checkpoint / "model.safetensors", old, "f32")
    convert_checkpoint(checkpoint, tmp_path / "m.gguf", "f32")
    with opened(tmp_path / "m.gguf") as engine, opened(gguf_of(folder, "bert", pooling=None)) as other:
        np.testing.assert_array_equal(rows_of(engine, row.golden["ids"])[0], rows_of(other, row.golden["ids"])[0])


def test_nomic_bert_in_its_own_words(tmp_path: Path) -> None:
    """config.json as the model's own code writes it: GPT-2's names."""
    row = architectures.BY_NAME["nomic-bert"]
    checkpoint = architectures.build(tmp_path / "checkpoint", row)
    words = {
        "architectures": ["NomicBertModel"], "vocab_size": architectures.VOCAB, "type_vocab_size": 2, "n_embd": 64,
        "n_inner": 96, "n_layer": 3, "n_head": 4, "n_positions": 8192, "max_trained_positions": 2048,
        "layer_norm_epsilon": 1e-12, "activation_function": "swiglu", "causal": False, "prenorm": False,
        "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "qkv_proj_bias": False, "mlp_fc1_bias": False,
        "mlp_fc2_bias": False, "use_rms_norm": False, "scale_attn_weights": True, "pad_vocab_size_multiple": 64,
    }  # fmt: skip
    tiny.write_json(checkpoint / "config.json", words)
    report = convert_checkpoint(checkpoint, tmp_path / "m.gguf", "f32")
    assert report.notes == ("the context is 2048 tokens, which the model was trained on, not 8192",)
    with opened(tmp_path / "m.gguf", context=64) as engine:
        (found,) = rows_of(engine, row.golden["ids"])
    assert np.abs(found - row.logits).max() < row.tolerance
    for key, value in (("rotary_scaling_factor", 2), ("rotary_emb_interleaved", True), ("moe_every_n_layers", 2)):
        tiny.write_json(checkpoint / "config.json", words | {key: value})
        refused(checkpoint, UnsupportedError, f"config.json {key}")


@pytest.mark.parametrize(
    ("name", "key", "type", "value", "error", "said"),
    [
        ("bert", "bert.attention.causal", "bool", True, UnsupportedError, "bert.attention.causal 'True'"),
        ("bert", "bert.pooling_type", "uint32", 4, UnsupportedError, "bert.pooling_type '4' is not supported"),
        ("bert", "tokenizer.ggml.token_type_count", "uint32", 3, ModelFileError, "token_types.weight"),
        ("bert", "bert.context_length", "uint32", 255, ModelFileError, "position_embd.weight"),
        ("modern-bert", "modern-bert.hidden_activation", "string", "relu", UnsupportedError, "activation 'relu'"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, folder: Path, name: str, key: str, type: str, value: object, error: type[Exception], said: str
) -> None:
    file = rewritten(
        gguf_of(folder, name, pooling=None), tmp_path / "m.gguf", metadata=lambda e: e.update({key: (type, value)})
    )
    with pytest.raises(error, match=said):
        LLM(file, threads=1)


def test_all_layers_share_the_pages(folder: Path) -> None:
    with opened(gguf_of(folder, "modern-bert", pooling=None)) as engine:
        pool = engine._pages
        assert len(pool.layers) == 1
        assert pool.n_pages == 256 // 64 + engine_module.MAX_SEQUENCES - 1


# ---------------------------------------------------------------------------------------------------------------------
# the command


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = gguf_of(folder, "bert", pooling="mean_tokens")
    with LLM(file, threads=1) as llm:
        want = llm.embed(TEXTS)
        rows = llm.embed_tokens(TEXTS[:2], normalize=False)
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(TEXTS) + "\n")
    for given in (["-f", lines], ["-p", TEXTS[0], "-p", "\n".join(TEXTS[1:])]):
        code, out, _ = run_command(capsys, "embed", file, "-t", 1, *given)
        found = json.loads(out)
        assert (code, found["object"], [d["index"] for d in found["data"]]) == (0, "list", [0, 1, 2, 3])
        np.testing.assert_allclose([d["embedding"] for d in found["data"]], want, rtol=1e-7)
    options = ["-p", f"{TEXTS[0]}|{TEXTS[1]}", "--embd-separator", "|", "-t", 1]
    _, out, _ = run_command(
        capsys, "embed", file, *options, "--pooling", "none", "--embd-normalize", -1, "--embd-output-format", "array"
    )
    for one, other in zip(json.loads(out), rows, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7)
    _, out, _ = run_command(capsys, "embed", file, *options, "--embd-output-format", "json+", "--pooling", "cls")
    similar = json.loads(out)["cosineSimilarity"]
    unit = normalised(np.stack([r[0] for r in rows]))
    np.testing.assert_allclose(similar, unit @ unit.T, atol=1e-6)


def test_mistakes_of_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = gguf_of(folder, "bert", pooling="mean_tokens")
    assert "with -p and with -f" in mistake(capsys, 2, "embed", file, "-p", "a", "-f", "b")
    assert "--embd-normalize is 101" in mistake(capsys, 2, "embed", file, "-p", "a", "--embd-normalize", 101)
    assert "pooling: it is 'max'" in mistake(capsys, 2, "embed", file, "-p", "a", "--pooling", "max", "-t", 1)
    assert "No such file" in mistake(capsys, 2, "embed", file, "-f", tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"\xe9")
    assert "not valid UTF-8" in mistake(capsys, 2, "embed", file, "-f", tmp_path / "latin")
    assert "is an encoder: it gives embeddings" in mistake(capsys, 2, "run", file, "Once", "-t", 1)
    for words in ([], ["-n", 0, "-d", 8]):
        assert "generates none: -n 0 and -d 0" in mistake(capsys, 2, "bench", "speed", file, "-p", 4, "-t", 1, *words)


# ---------------------------------------------------------------------------------------------------------------------
# llama.cpp


def with_wordpiece(checkpoint: Path) -> Path:
    """Put a BERT tokenizer in the place of the checkpoint's."""
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / "tokenizer.json").write_text(wordpiece(True, None), encoding="utf-8")
    tiny.write_json(checkpoint / "tokenizer_config.json", NAMES)
    return checkpoint


def test_bert_with_its_own_tokenizer(tmp_path: Path) -> None:
    """Texts begin with [CLS] and end with [SEP], and what cls pools is the first of them."""
    row = architectures.BY_NAME["bert"]
    checkpoint = with_wordpiece(architectures.build(tmp_path / "checkpoint", row))
    convert_checkpoint(checkpoint, tmp_path / "m.gguf", "f32")
    with LLM(tmp_path / "m.gguf", threads=1) as llm:
        ids = [llm.tokenize(text) for text in TEXTS]
        assert [(i[0], i[-1]) for i in ids] == [(2, 3)] * len(TEXTS)
        assert ids[2] == [2, 3]
        np.testing.assert_array_equal(llm.embed(TEXTS, pooling="cls"), llm.embed(ids, pooling="cls"))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["bert", "nomic-bert"])
def test_llama_cpp_gives_the_same_embeddings_of_words(tmp_path: Path, name: str) -> None:
    """With BERT's tokenizer, from text to vector."""
    checkpoint = with_wordpiece(architectures.build(tmp_path / "checkpoint", architectures.BY_NAME[name]))
    write_pooling(checkpoint, pooling_mode_cls_token=True)
    convert_checkpoint(checkpoint, tmp_path / "m.gguf", "f16")
    ours, theirs = both(tmp_path / "m.gguf")
    assert (ours * theirs).sum(axis=1).min() > 0.9999


@pytest.mark.peers
@pytest.mark.parametrize("type", ["f32", "f16", THEIRS])
@every_encoder
def test_llama_cpp_gives_the_same_embeddings(folder: Path, row: Row, type: str) -> None:
    """Of our file and of its own, of texts that both tokenize alike."""
    for pooling in ("mean_tokens", "cls_token"):
        file = gguf_of(folder, row.name, "f32" if type == THEIRS else type, pooling)
        ours, theirs = both(quantized_by_it(file) if type == THEIRS else file)
        cosines = (ours * theirs).sum(axis=1)
        print(f"{row.name} {type} {pooling}: least cosine {cosines.min():.7f}")
        assert cosines.min() > (0.999 if type == THEIRS else 0.9999)


def both(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The texts' embeddings, here and in llama.cpp, as the file wants them pooled, of length 1."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the extra peers is not installed")
    params = llama_cpp.llama_cpp.llama_model_default_params

    def as_in_the_file() -> Any:
        found = params()
        found.use_extra_bufts = False  # its layout for AMX crashes where GCC 12 built it (bench/peers/llamacpp.py)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", as_in_the_file)
        other = llama_cpp.Llama(str(file), embedding=True, n_ctx=256, n_threads=1, verbose=False)
    theirs = np.array(other.embed(TEXTS, normalize=True))
    other.close()
    with LLM(file, threads=1) as llm:
        return llm.embed(TEXTS), theirs
