"""`halfbyte demo` as a process, with the checkpoint that ships, and the parts of it that a run does not show."""

import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys

import pytest
import tiny
from command_line import HALFBYTE, assert_clean_error, halfbyte

from halfbyte import LLM, convert_checkpoint
from halfbyte.bench import demo, picture
from halfbyte.cache import cache_folder
from halfbyte.commands.demo import _next, _picture
from halfbyte.errors import HalfbyteWarning, ModelFileError

ROW = demo.Row("f16", 7_716_000, 16.01, 6.51, 0.07, None, None, 104, 120, 11_000.0, 1500.0)
LESS = demo.Row("q4_0", 2_216_000, 4.52, 6.87, 0.08, 0.06, 0.91, 99, 120, 16_000.0, 3200.0)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A finished `halfbyte demo --quick` and the folder that it ran in; one thread: a busy neighbour delays two."""
    folder = tmp_path_factory.mktemp("demo")
    return halfbyte("demo", "--quick", "-t", "1", cwd=folder, timeout=600), folder


def test_it_ends_well_and_tells_each_step(shown):
    done, _ = shown
    assert done.returncode == 0, done.stderr
    for step in ("Converting", "Checking", "Asking", "Measuring", "Drawing", "To try next"):
        assert re.search(rf"^.*{step}", done.stdout, re.M), step
    assert len(re.findall(r"^  (?:f16|q8_0|q4_0) +all logits finite; .* 64 predictions agree", done.stdout, re.M)) == 3
    assert re.findall(r"^  > (.+)$", done.stdout, re.M) == list(demo.EXAMPLES)


def test_the_table_has_a_row_of_sound_figures_for_each_type(shown):
    done, _ = shown
    number = r"([\d.]+)"
    row = rf"^  (\w+) +{number} MiB +{number} +{number} ± {number} +(\S+) +(\S+)(?: %)? +(\d+) of (\d+) +(\d+) +(\d+)$"
    rows = re.findall(row, done.stdout, re.M)
    assert [found[0] for found in rows] == ["f16", "q8_0", "q4_0"]
    sizes, bits = ([float(found[i]) for found in rows] for i in (1, 2))
    assert sizes[0] > 1.8 * sizes[1] > 3 * sizes[2] > 0
    assert bits == pytest.approx([16, 8.5, 4.8], abs=0.1)
    assert rows[0][5:7] == ("-", "-")
    assert 0 <= float(rows[1][5]) < float(rows[2][5])
    for found in rows:
        assert float(found[3]) > 1
        assert float(found[4]) > 0
        assert 0 <= int(found[7]) <= int(found[8])
        assert min(int(found[9]), int(found[10])) > 0


def test_the_picture_is_where_it_says(shown):
    done, folder = shown
    assert re.search(r"^Drawing .*: halfbyte-demo\.png$", done.stdout, re.M)
    assert [file.name for file in folder.iterdir()] == ["halfbyte-demo.png"]
    assert_png((folder / "halfbyte-demo.png").read_bytes())


def test_the_commands_to_try_work(shown):
    done, folder = shown
    lines = done.stdout.split("To try next:\n")[1].splitlines()
    assert len(lines) == 3
    assert [line.split()[1] for line in lines] == ["chat", "run", "convert"]
    done = halfbyte(*shlex.split(lines[1])[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished `halfbyte demo` with JSON, models in a folder, and a picture that cannot be; and the folder."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "file").touch()
    words = ["--quick", "--json", "-t", "1", "--output-dir", folder / "new/models", "--picture", folder / "file/x.png"]
    return halfbyte("demo", *words, cwd=folder, timeout=600), folder


def test_a_picture_that_cannot_be_written_is_a_note(kept):
    done, folder = kept
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert notes == [f"note: no picture in {folder / 'file/x.png'}: Not a directory"]
    assert json.loads(done.stdout)["picture"] is None


def test_json_is_all_of_the_output(kept):
    done, folder = kept
    record = json.loads(done.stdout)
    assert record["machine"].endswith(", 1 thread")
    assert [answer["question"] for answer in record["answers"]] == list(demo.EXAMPLES)
    for model in record["models"]:
        path = folder / "new/models" / f"sample-{model['type'].upper()}.gguf"
        assert model["path"] == str(path)
        assert model["file_bytes"] == path.stat().st_size
        assert model["perplexity"] > 1
        with LLM(path) as llm:
            assert model["bits_per_weight"] == pytest.approx(8 * llm.model.size_bytes / llm.model.n_params)
    assert [model["mean_kl"] is None for model in record["models"]] == [True, False, False]
    assert "Converting" in done.stderr


def test_models_in_a_folder_are_not_replaced_unasked(kept):
    _, folder = kept
    models = folder / "new/models"
    before = {file: file.stat().st_mtime_ns for file in models.iterdir()}
    assert len(before) == 3
    done = halfbyte("demo", "--output-dir", models, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {models / 'sample-F16.gguf'}: exists already")
    assert {file: file.stat().st_mtime_ns for file in models.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["model.gguf"], ["model.gguf"]),
        (["--force"], ["--force", "--output-dir"]),
        (["-t", "-1"], ["threads"]),
        (["--chunks", "x"], ["--chunks"]),
    ],
)
def test_mistakes_are_one_line(words, parts):
    assert_clean_error(halfbyte("demo", *words), 2, *parts)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        [*HALFBYTE, "demo"], cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("speed with"):  # the reference's logits are being written now
                break
        while not list((tmp_path / "tmp").rglob("reference*")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert "Traceback" not in said
    assert list((tmp_path / "tmp").iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# parts


def assert_png(data):
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1600, 1000)


@pytest.mark.parametrize("rows", [[ROW, LESS], [ROW, ROW], [ROW]], ids=["two", "equal", "one"])
def test_a_picture_is_drawn(rows):
    assert_png(picture.draw(rows, "A CPU, 2 threads"))


def test_without_matplotlib_there_is_a_note_and_no_picture(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _picture([ROW], "title", tmp_path / "x.png", sys.stdout) is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: no picture in")
    assert "matplotlib cannot be imported" in line
    assert not (tmp_path / "x.png").exists()


def test_a_folder_is_no_place_for_a_picture(tmp_path, capsys):
    assert _picture([ROW], "title", tmp_path, sys.stdout) is None
    assert "Is a directory" in capsys.readouterr().err


def test_a_model_whose_numbers_overflow_does_not_pass(tmp_path):
    spec = tiny.Tiny()
    folder = tiny.build(tmp_path / "model", spec)
    tensors = tiny.weights(spec)
    tensors["model.norm.weight"][:] = 1e38
    tiny.write_weights(folder, spec, tensors)
    path = convert_checkpoint(folder, tmp_path / "model.gguf", "f32").path
    with LLM(path) as llm, pytest.raises(ModelFileError, match="not finite") as caught:
        demo.check(llm, "to be or not to be")
    assert str(path) in str(caught.value)


def test_a_model_that_answers_otherwise_one_by_one_does_not_pass(tiny_gguf, monkeypatch):
    with LLM(tiny_gguf) as llm:
        tokens = demo.check(llm, "to be or not to be")
        assert tokens.tolist() == llm.logits(llm.tokenize("to be or not to be")).argmax(1).tolist()
        whole = llm.engine.feed
        monkeypatch.setattr(llm.engine, "feed", lambda sequence, tokens: -whole(sequence, tokens))
        with pytest.raises(ModelFileError, match="one by one"):
            demo.check(llm, "to be or not to be")


def test_no_command_to_try_names_a_file_that_goes_away(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HALFBYTE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(HalfbyteWarning, match="stands in"):
        path = cache_folder("models") / "sample-Q8_0.gguf"
    lines = _next(path)
    assert len(lines) == 3
    assert not any(str(path) in line for line in lines)
    assert any(str(tmp_path / "kept.gguf") in line for line in _next(tmp_path / "kept.gguf"))
