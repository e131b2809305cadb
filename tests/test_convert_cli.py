"""`halfbyte convert` as a user meets it: the table, JSON, exit codes, one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import conversions
import pytest
import tiny
from conversions import run_command

from halfbyte.quant.gguf_reader import open_gguf

DATA = os.environ.get("HALFBYTE_TEST_DATA")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of `halfbyte convert ARGV`."""
    return run_command(capsys, "convert", *argv)


def mistake(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> str:
    """Run a conversion that must fail with `code` and one line; return the line."""
    return conversions.mistake(capsys, code, "convert", *argv)


def test_table_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.build(tmp_path / "m", tiny.Tiny(hidden=80, heads=5, kv_heads=5))
    code, out, err = run(capsys, folder, tmp_path / "m.gguf", "--type", "Q4_0", "--pure")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split("  ")[1:2] == ["type"]
    by_type = {line.split()[0]: line.split() for line in lines[1:-1]}
    assert list(by_type) == ["F16", "Q4_0", "F32"]
    assert by_type["Q4_0"][1] == "2"  # the down projections, whose rows of 96 the block divides
    assert by_type["Q4_0"][4] == "4.50"
    assert by_type["Q4_0"][-1].endswith(".ffn_down.weight")
    assert 0.01 < float(by_type["Q4_0"][-2]) < 0.2
    assert by_type["F32"][-1] == "exact"
    assert lines[-1].startswith(f"{tmp_path / 'm.gguf'}: ")
    assert "bits per weight" in lines[-1]


def test_json_names_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, tiny.build(tmp_path / "m"), tmp_path / "m.gguf", "--json")
    found = json.loads(out)
    assert (code, found["type"], found["path"]) == (0, "q8_0", str(tmp_path / "m.gguf"))
    with open_gguf(tmp_path / "m.gguf") as written:
        assert [tensor["name"] for tensor in found["tensors"]] == list(written.tensors)
        assert [tensor["bytes"] for tensor in found["tensors"]] == [v.nbytes for v in written.tensors.values()]
    assert {entry["type"] for entry in found["types"]} == {"q8_0", "f32"}
    assert 0 < max(entry["worst_relative_error"] for entry in found["types"]) < 0.02


def test_default_output(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, tiny.build(tmp_path / "some-model"))[0] == 0
    assert (tmp_path / "some-model-Q8_0.gguf").exists()


def test_force_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tiny.build(tmp_path / "m"), tmp_path / "m.gguf"
    out.write_text("precious")
    assert "--force" in mistake(capsys, 2, folder, out)
    assert out.read_text() == "precious"
    assert run(capsys, folder, out, "--force")[0] == 0
    open_gguf(out).close()


def test_wrong_use_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.build(tmp_path / "m")
    out = tmp_path / "out"
    out.mkdir()
    assert "SRC" in mistake(capsys, 2)
    assert "does not exist" in mistake(capsys, 2, tmp_path / "nowhere", out / "m.gguf")
    assert "is not a folder" in mistake(capsys, 2, folder / "config.json", out / "m.gguf")
    line = mistake(capsys, 2, folder, out / "m.gguf", "--type", "q9_0")
    assert "q9_0" in line
    assert "q5_1" in line
    assert "--what" in mistake(capsys, 2, folder, out / "m.gguf", "--what")
    assert "is a folder" in mistake(capsys, 2, folder, out)
    assert "missing/m.gguf" in mistake(capsys, 2, folder, out / "missing" / "m.gguf")
    assert "is a file of the checkpoint" in mistake(capsys, 2, folder, folder / "model.safetensors", "--force")
    assert list(out.iterdir()) == []


def test_bad_files_are_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.build(tmp_path / "m", tiny.Tiny(dtype="bf16"))
    out = tmp_path / "out"
    out.mkdir()
    weights, config = folder / "model.safetensors", folder / "config.json"
    good, described = weights.read_bytes(), config.read_text()
    for cut in (0, 7, 100, len(good) // 2, len(good) - 1):
        weights.write_bytes(good[:cut])
        assert "model.safetensors" in mistake(capsys, 3, folder, out / "m.gguf")
    weights.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    assert "model.safetensors" in mistake(capsys, 3, folder, out / "m.gguf")
    weights.write_bytes(good)
    config.write_text(described.replace("LlamaForCausalLM", "NobodyForCausalLM"))
    assert "LlamaForCausalLM, LlamaModel, MPTForCausalLM, MistralForCausalLM" in mistake(
        capsys, 3, folder, out / "m.gguf"
    )
    config.write_text(described.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    assert "model.layers.2." in mistake(capsys, 3, folder, out / "m.gguf")
    config.write_text(described[:50])
    assert "config.json: is not JSON" in mistake(capsys, 3, folder, out / "m.gguf")
    assert list(out.iterdir()) == []


def test_names_from_files_cannot_write_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.build(tmp_path / "m")
    spec = tiny.Tiny()
    odd = {"model.\x1b[2J\n": tiny.weights(spec)["model.norm.weight"]}
    tiny.write_weights(folder, spec, tiny.weights(spec) | odd)
    assert r"model.\x1b[2J\n" in mistake(capsys, 3, folder, tmp_path / "m.gguf")


@pytest.mark.skipif(DATA is None, reason="HALFBYTE_TEST_DATA is not set")
def test_a_real_checkpoint_through_the_installed_command(tmp_path: Path) -> None:
    folder = Path(str(DATA)) / "checkpoints" / "stories260K"
    program = "import sys; from halfbyte.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "convert", folder, tmp_path / "s.gguf", "--type", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "F32" in done.stdout
    with open_gguf(tmp_path / "s.gguf") as found:
        assert len(found.tensors) == 47
