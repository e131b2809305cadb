"""`verify`: the references beside transformers, verdicts on good and broken conversions, the stamp."""

from __future__ import annotations

import json
import re
import shutil

import architectures
import gguf
import numpy as np
import oracle
import pytest
import quantized_checkpoints
import tiny
from architectures import EMBEDDERS, ENCODERS, ROWS, Row
from conversions import mistake, run_command
from gguf_models import rewritten
from quantized_checkpoints import SCHEMES

from halfbyte import convert_checkpoint
from halfbyte.convert.checkpoint import Checkpoint
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.quant.quantize import quantize_file
from halfbyte.quant.stamp import STAMP, stamped
from halfbyte.verify import check
from halfbyte.verify.archs import reference_of
from halfbyte.verify.check import DIFFERS, NO_REFERENCE, SAME, mean_divergence, mean_error, verify
from halfbyte.verify.source import Source


def logits(folder, ids, rows=False):
    """What the reference computes; of an encoder, or with `rows`, the rows of the last layer."""
    with Checkpoint(folder) as checkpoint:
        source = Source(checkpoint)
        reference = reference_of(source.class_name)(source, ids)
        return reference.rows() if reference.encodes or rows else reference.logits()


@pytest.mark.parametrize("row", [*ROWS, *ENCODERS, *EMBEDDERS], ids=lambda row: row.name)
def test_the_references_give_transformers_logits(tmp_path, row: Row):
    found = logits(architectures.build(tmp_path / "checkpoint", row), row.golden["ids"], rows=row in EMBEDDERS)
    assert found.dtype == np.float32
    assert np.abs(found - row.logits).max() < 2e-4


def test_other_names_of_a_class():
    for row in ROWS:
        assert reference_of(row.class_name) is reference_of(row.cls)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("verify") / "checkpoint", hidden=256, ffn=512)


@pytest.fixture(scope="module")
def model(checkpoint):
    convert_checkpoint(checkpoint, checkpoint.with_suffix(".gguf"), "f32")
    return checkpoint.with_suffix(".gguf")


def results(model, source):
    found = verify(model, source, threads=1)
    for verdict in found.verdicts:
        print(verdict)
    return {verdict.what: verdict.result for verdict in found.verdicts}


ALL_SAME = {"token ids": SAME, "chat template": SAME, "logits": SAME}


@pytest.mark.parametrize("type", ["f32", "bf16", "q8_0", "q4_k_m"])
def test_what_the_converter_writes_is_the_same(checkpoint, tmp_path, type):
    convert_checkpoint(checkpoint, tmp_path / "m.gguf", type)
    assert results(tmp_path / "m.gguf", checkpoint) == ALL_SAME


def test_another_programs_rounding_is_explained(checkpoint, tmp_path):
    """Weights that were disturbed by less than rounding does are those of a file that was rounded otherwise."""
    _, tensors = oracle.load_checkpoint(checkpoint)
    rng = np.random.default_rng(0)
    near = {name: value * (1 + 0.02 * rng.standard_normal(value.shape)) for name, value in tensors.items()}
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    tiny.write_safetensors(other / "model.safetensors", {k: v.astype(np.float32) for k, v in near.items()}, "f32")
    convert_checkpoint(other, tmp_path / "q4.gguf", "q4_0", pure=True)
    assert results(tmp_path / "q4.gguf", checkpoint) == ALL_SAME
    convert_checkpoint(other, tmp_path / "f32.gguf", "f32")
    assert results(tmp_path / "f32.gguf", checkpoint) == ALL_SAME | {"logits": DIFFERS}


def test_what_is_wrong_in_a_file_is_seen(checkpoint, model, tmp_path):
    def changed(name, **edits):
        return rewritten(model, tmp_path / f"{name}.gguf", **edits)

    def swap_heads(tensors):
        shape, format, data = tensors["blk.1.attn_q.weight"]
        rows = data.view(np.float32).reshape(shape)
        order = np.arange(shape[0]).reshape(4, -1, 2).transpose(0, 2, 1).reshape(-1)  # not permuted as GGUF wants it
        tensors["blk.1.attn_q.weight"] = (shape, format, rows[order].copy().view(np.uint8))

    def turned(key, kind, value):
        return lambda entries: entries.update({key: (kind, value)})

    broken = {
        "rows": changed("rows", tensors=swap_heads),
        "rope": changed("rope", metadata=turned("llama.rope.freq_base", "float32", 5e5)),
        "epsilon": changed("epsilon", metadata=turned("llama.attention.layer_norm_rms_epsilon", "float32", 0.1)),
    }
    for file in broken.values():
        assert results(file, checkpoint) == ALL_SAME | {"logits": DIFFERS}
    template = changed("template", metadata=turned("tokenizer.chat_template", "string", tiny.CHATML + " "))
    assert results(template, checkpoint) == ALL_SAME | {"chat template": DIFFERS}
    none = changed("none", metadata=lambda entries: entries.pop("tokenizer.chat_template"))
    assert results(none, checkpoint) == ALL_SAME | {"chat template": DIFFERS}
    prefix = changed("prefix", metadata=turned("tokenizer.ggml.add_space_prefix", "bool", False))
    assert results(prefix, checkpoint)["token ids"] == DIFFERS


def test_byte_level_tokenizers(tmp_path):
    def reverse_merges(entries):
        entries.pop("tokenizer.huggingface.json")
        kind, merges = entries["tokenizer.ggml.merges"]
        entries["tokenizer.ggml.merges"] = (kind, np.array([merges[i] for i in range(len(merges))][::-1], object))

    for family in ("llama-bpe", "qwen2"):
        folder = tiny.build(tmp_path / family, tokenizer=family)
        file = tmp_path / f"{family}.gguf"
        convert_checkpoint(folder, file, "q8_0")
        assert results(file, folder) == ALL_SAME
        other = rewritten(file, tmp_path / f"{family}-other.gguf", metadata=reverse_merges)
        assert results(other, folder)["token ids"] == DIFFERS


def test_another_vocabulary_and_no_tokenizer(checkpoint, model, tmp_path):
    other = tiny.build(tmp_path / "other", vocab=430, hidden=256, ffn=512)
    assert results(model, other)["logits"] == DIFFERS
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("tokenizer.model", "tokenizer_config.json"))
    assert results(model, bare) == {"token ids": NO_REFERENCE, "chat template": DIFFERS, "logits": SAME}


def explained(folder, type, **options):
    """Whether the reference, rounded, has the logits of our file: the leeway is for other programs' rounding."""
    file = folder.with_suffix(".gguf")
    convert_checkpoint(folder, file, type, **options)
    detail = verify(file, folder, threads=1).verdicts[-1].detail
    print(detail)
    return "rounding explains all" in detail


@pytest.mark.parametrize("name", ["gpt-oss", "gpt2", "deepseek2", "gptneox-sequential", "phi3"])
def test_what_our_converter_rounds_is_explained(tmp_path, name):
    """Matrices that the checkpoint has across, or as parts of one, and an embedding that is the output too."""
    assert explained(architectures.build(tmp_path / "checkpoint", architectures.BY_NAME[name]), "q4_0")


def test_parts_of_a_matrix_may_have_types_of_their_own(tmp_path):
    folder = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME["deepseek2-lite"])
    assert explained(folder, "q4_0", tensor_types=["attn_k_b=q5_1", "attn_v_b=q8_0"])


@pytest.mark.parametrize("scheme", ["GPTQ 4 bits, zeros", "compressed-tensors int8", "NF4, double quantization"])
def test_what_was_quantized_before_is_explained(tmp_path, scheme):
    """Kept as it is, or requantized."""
    quantized_checkpoints.build(tmp_path / "checkpoint", SCHEMES[scheme][0])
    assert explained(tmp_path / "checkpoint", "q8_0")


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_as_it_was_first_saved(tmp_path, name):
    """The names of tensors without their first word."""
    row = architectures.BY_NAME[name]
    folder = architectures.build(tmp_path / "checkpoint", row)
    _, tensors = oracle.load_checkpoint(folder)
    short = {name.removeprefix("transformer."): value.astype(np.float32) for name, value in tensors.items()}
    tiny.write_safetensors(folder / "model.safetensors", short, "f32")
    assert np.abs(logits(folder, row.golden["ids"]) - row.logits).max() < 2e-4


def test_older_keys_of_falcon(tmp_path):
    row = architectures.BY_NAME["falcon-grouped"]
    older = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    renamed = {new: row.golden["config"][old] for old, new in older.items()} | dict.fromkeys([*older, "activation"])
    folder = architectures.build(tmp_path / "checkpoint", row, **renamed)
    assert np.abs(logits(folder, row.golden["ids"]) - row.logits).max() < 2e-4


def test_gemma3_with_images_is_gemma3(tmp_path):
    """The newer names of tensors, and a text_config that leaves out what transformers fills in."""
    row, ids, model, layer = architectures.BY_NAME["gemma3"], [5, 3, 9], "model.language_model.", "model.layers.0."
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
    shapes = {k: v for k, v in row.golden["tensors"].items() if ".layers." not in k or k.startswith(layer)}
    sizes = {"q_proj": [2048, 64], "k_proj": [1024, 64], "v_proj": [1024, 64], "o_proj": [64, 2048]}
    sizes |= {"q_norm": [256], "k_norm": [256]}
    shapes |= {f"{layer}self_attn.{name}.weight": shape for name, shape in sizes.items()}
    text = row.golden["config"] | {"num_hidden_layers": 1, "layer_types": None}
    folders = tmp_path / "text", tmp_path / "images"
    architectures.write_checkpoint(folders[0], row, text | heads, shapes)
    images = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text | dict.fromkeys(heads)}
    architectures.write_checkpoint(folders[1], row, images, {})
    tensors = {model + k.removeprefix("model."): v for k, v in architectures.weights(row, shapes).items()}
    tiny.write_safetensors(folders[1] / "model.safetensors", tensors, "f32")
    want, found = (logits(folder, ids) for folder in folders)
    assert np.array_equal(found, want)


def test_older_keys_of_nomic_bert(tmp_path):
    row = architectures.BY_NAME["nomic-bert"]
    older = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    older["layer_norm_eps"] = "layer_norm_epsilon"
    renamed = {new: row.golden["config"][old] for old, new in older.items()} | dict.fromkeys([*older, "head_dim"])
    renamed |= {"rope_parameters": None, "rotary_emb_base": 1000}
    folder = architectures.build(tmp_path / "checkpoint", row, **renamed)
    assert np.abs(logits(folder, row.golden["ids"]) - row.logits).max() < 2e-4


@pytest.mark.parametrize("name", ["bert", "nomic-bert"])
def test_the_last_layer_of_an_encoder(tmp_path, name):
    folder = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME[name])
    convert_checkpoint(folder, tmp_path / "m.gguf", "q8_0")
    assert results(tmp_path / "m.gguf", folder)["last layer"] == SAME
    epsilon = {f"{name}.attention.layer_norm_epsilon": ("float32", 0.1)}
    broken = rewritten(tmp_path / "m.gguf", tmp_path / "broken.gguf", metadata=lambda entries: entries.update(epsilon))
    assert results(broken, folder)["last layer"] == DIFFERS


def test_without_a_reference_nothing_is_passed(tmp_path, monkeypatch):
    """As of an architecture that is new."""
    monkeypatch.setattr(check, "reference_of", lambda class_name: None)
    folder = architectures.build(tmp_path / "checkpoint", ROWS[0])
    convert_checkpoint(folder, tmp_path / "m.gguf", "f32")
    assert results(tmp_path / "m.gguf", folder)["logits"] == NO_REFERENCE


def test_divergence():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((5, 9)).astype(np.float32)
    assert mean_divergence(logits, logits + 3) < 1e-12
    other = rng.standard_normal((5, 9)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits.astype(float), other.astype(float)))
    assert np.isclose(mean_divergence(logits, other), (p * np.log(p / q)).sum(axis=1).mean())
    assert np.isclose(
        mean_error(logits, other), np.mean([((a - b) @ (a - b)) / (a @ a) for a, b in zip(logits, other, strict=True)])
    )
    other[2, 3] = np.nan
    assert mean_divergence(logits, other) == mean_error(logits, other) == np.inf


def test_the_command_and_the_stamp(checkpoint, model, tmp_path, capsys):
    code, out, err = run_command(capsys, "verify", model, checkpoint, "-t", "1")
    assert code == 0, err
    assert re.findall(r"^(token ids|chat template|logits) +(\w+)", out, re.M) == [
        ("token ids", SAME),
        ("chat template", SAME),
        ("logits", SAME),
    ]
    wrong = tiny.build(tmp_path / "wrong", hidden=256, ffn=512, seed=2)
    code, out, _ = run_command(capsys, "verify", model, wrong, "-t", "1", "--json")
    assert code == 1
    assert [verdict["result"] for verdict in json.loads(out)["verdicts"]] == [SAME, SAME, DIFFERS]
    made = tmp_path / "made.gguf"
    code, out, err = run_command(capsys, "convert", checkpoint, made, "--type", "q8_0", "--verify")
    assert code == 0, err
    assert "token ids" in out
    with open_gguf(made) as file:
        keys = {key: file.metadata[key] for key in file.metadata if key.startswith("halfbyte.verify.")}
        assert 0 < keys.pop("halfbyte.verify.mean_kl_divergence") < 0.1
        assert keys == {f"halfbyte.verify.{what}": SAME for what in ("token_ids", "chat_template", "logits")}
    plain = tmp_path / "plain.gguf"
    convert_checkpoint(checkpoint, plain, "q8_0")
    for reader in (gguf.GGUFReader(made), gguf.GGUFReader(plain)):
        data = [tensor.data.tobytes() for tensor in reader.tensors]
        assert data == [tensor.data.tobytes() for tensor in gguf.GGUFReader(plain).tensors]
    stamped(made, tmp_path / "again.gguf", {STAMP + "logits": ("string", DIFFERS)})
    quantize_file(made, tmp_path / "q4.gguf", "q4_0", allow_requantize=True)
    for file, wanted in (("again", [STAMP + "logits"]), ("q4", [])):  # another file is not what was compared
        with open_gguf(tmp_path / f"{file}.gguf") as found:
            assert [key for key in found.metadata if key.startswith("halfbyte.verify.")] == wanted
    assert not list(tmp_path.glob("*.part"))
    assert "does not exist" in mistake(capsys, 2, "verify", model, tmp_path / "absent")
