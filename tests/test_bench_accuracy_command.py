"""`halfbyte bench accuracy` in a process of its own: tables, records, mistakes, the bar."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import accuracy_files
import pytest
from accuracy_files import CHUNKS, N_CTX, TEXT
from command_line import Terminal, assert_clean_error, halfbyte

from halfbyte import LLM
from halfbyte.bench.accuracy import measure_accuracy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return accuracy_files.build(tmp_path_factory.mktemp("accuracy"))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT + "\n", encoding="utf-8")
    return file


def accuracy(model: Path, *words: Any, **options: Any) -> Any:
    return halfbyte("bench", "accuracy", model, "-t", "1", *words, **options)


def test_command_prints_what_was_measured_and_with_what(
    files: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "logits"
    first = accuracy(files["spm f32"], "--text", text_file, "-c", N_CTX, "--chunks", CHUNKS, "--save-logits", saved)
    assert first.returncode == 0, first.stderr
    assert "KL" not in first.stdout
    with LLM(files["spm q4_0"], threads=1) as llm:
        found = measure_accuracy(llm, TEXT, n_ctx=N_CTX, n_chunks=CHUNKS, reference=saved)
    assert found.divergence is not None
    done = accuracy(files["spm q4_0"], "--text", text_file, "-c", N_CTX, "--reference", saved)
    assert done.returncode == 0, done.stderr
    facts, figures = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
        for part in done.stdout.split("\n\n")
    )
    named = dict(zip(facts[0], facts[2], strict=True))
    assert named["model"].endswith("Q4_0")
    assert named["file bytes"] == str(files["spm q4_0"].stat().st_size)
    assert int(named["body bytes"]) < int(named["tensor bytes"]) < int(named["file bytes"])
    assert (named["activations"], named["KV"]) == ("int8", "f16")
    assert (named["n_ctx"], named["chunks"], named["scored"]) == (str(N_CTX), "6", "138")
    assert 4.5 <= float(named["bits/weight"]) < 5
    assert len(named["text"]) == 12
    assert named["reference"] == str(saved)
    assert named["engine"].startswith("halfbyte ")
    rows = {row[0]: row[1:] for row in figures[2:]}
    assert rows["perplexity"] == [f"{found.perplexity:.6f}", f"{found.perplexity_error:.6f}"]
    assert rows["KL divergence"] == [f"{found.divergence.kl.value:.6f}", f"{found.divergence.kl.error:.6f}"]
    assert rows["KL divergence, 99.9 %"] == [f"{found.divergence.kl_percentiles[99.9]:.6f}", ""]
    assert rows["change of p, 25 %"] == [f"{100 * found.divergence.delta_p_percentiles[25]:.3f} %", ""]
    share = found.divergence.same_top
    assert rows["same most likely token"] == [f"{100 * share.value:.3f} %", f"{100 * share.error:.3f} %"]
    assert len(rows) == 10 + 11 + 13


def test_json_and_csv_have_every_figure(files: dict[str, Path], text_file: Path) -> None:
    words = ["--text", text_file, "-c", N_CTX, "--chunks", CHUNKS, "-ct", "f32", "--reference", files["spm f32"]]
    [record] = json.loads(accuracy(files["spm q8_0"], *words, "-o", "json").stdout)
    [row] = csv.DictReader(io.StringIO(accuracy(files["spm q8_0"], *words, "-o", "csv").stdout))
    assert row == {key: str(value) for key, value in record.items()}
    assert {"perplexity_error", "base_perplexity", "correlation", "log_ratio_error", "kl_p99.9", "kl_median"} <= set(
        row
    )
    assert {"delta_p_p25", "delta_p_min", "rms_delta_p_error", "same_top_error", "difference", "ratio"} <= set(row)
    assert (record["type_k"], record["activation_type"]) == ("f32", "int8")
    assert record["model_filename"] == str(files["spm q8_0"])
    assert 0 < record["kl"] < 0.1


def test_figures_do_not_depend_on_threads_or_ubatch(files: dict[str, Path], text_file: Path) -> None:
    outputs = {
        halfbyte(
            "bench",
            "accuracy",
            files["spm q8_0"],
            "--text",
            text_file,
            "-c",
            N_CTX,
            "-o",
            "json",
            "--chunks",
            2,
            *words,
        ).stdout
        for words in (["-t", "1"], ["-t", "2"], ["-t", "2", "-ub", "7"])
    }
    assert len(outputs) == 1
    assert json.loads(outputs.pop())[0]["n_chunks"] == 2


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ([], 2, ["--text"]),
        (["--text", "absent.txt"], 2, ["absent.txt: cannot be read"]),
        (["--text", "."], 2, [".: cannot be read"]),
        (["--text", "latin.txt"], 2, ["latin.txt: is not valid UTF-8: byte 3"]),
        (["--text", "empty.txt"], 2, ["tokens; a context of 512 needs 1024"]),
        (["--text", "text.txt", "-c", "2"], 2, ["a context of 2 tokens"]),
        (["--text", "text.txt", "-c", "-5"], 2, ["a context of -5 tokens"]),
        (["--text", "text.txt", "-c", "many"], 2, ["-c", "many"]),
        (["--text", "text.txt", "--chunks", "0"], 2, ["0 chunks"]),
        (["--text", "text.txt", "-o", "sql"], 2, ["sql"]),
        (["--text", "text.txt", "-ct", "q5_0"], 2, ["cache_type"]),
        (["--text", "text.txt", "more"], 2, ["unexpected argument 'more'"]),
        (["--text", "text.txt", "-c", "48", "--reference", "absent"], 2, ["absent: cannot be read"]),
        (["--text", "text.txt", "-c", "48", "--reference", "latin.txt"], 3, ["latin.txt"]),
        (["--text", "text.txt", "-c", "48", "--reference", "broken"], 3, ["broken: ends at byte 8"]),
        (["--text", "text.txt", "-c", "48", "--chunks", "1", "--reference", "broken"], 3, ["broken"]),
        (["--text", "text.txt", "-c", "48", "--save-logits", "text.txt"], 2, ["text.txt: exists already"]),
        (["--text", "text.txt", "-c", "48", "--save-logits", "no/where"], 2, ["no/where: cannot be written"]),
    ],
)
def test_mistakes_are_one_line(
    files: dict[str, Path], text_file: Path, tmp_path: Path, words: list[str], code: int, parts: list[str]
) -> None:
    (tmp_path / "text.txt").write_bytes(text_file.read_bytes())
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 and more")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken").write_bytes(b"_logits_")
    assert_clean_error(accuracy(files["spm q8_0"], *words, cwd=tmp_path), code, *parts)
    assert len(list(tmp_path.iterdir())) == 4


def test_models_that_are_none_are_told(text_file: Path, tmp_path: Path) -> None:
    assert_clean_error(halfbyte("bench", "accuracy", "--text", text_file), 2, "MODEL is missing")
    assert_clean_error(accuracy(text_file, "--text", text_file), 3, text_file)
    assert_clean_error(accuracy(tmp_path / "absent.gguf", "--text", text_file), 2, "absent.gguf")


def test_help_names_both_measurements_and_their_options() -> None:
    whole = halfbyte("bench", "--help").stdout
    assert "usage: halfbyte bench" in whole
    assert "accuracy MODEL --text FILE" in whole
    assert "speed MODEL" in whole
    own = halfbyte("bench", "accuracy", "--help").stdout
    for flag in ("--text", "--reference", "--ctx", "--chunks", "--save-logits", "--threads", "--output"):
        assert flag in own
    assert "--repetitions" not in own


def test_a_terminal_shows_a_bar(files: dict[str, Path], tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text((TEXT + "\n") * 240, encoding="utf-8")
    with Terminal("bench", "accuracy", files["spm q8_0"], "--text", long, "-c", 16, "-t", 1) as terminal:
        terminal.expect(r"\rmeasuring \d+ % \[#+\.+\] chunk \d+ of \d+, perplexity \d+\.\d{4}, \d+:\d\d left")
        terminal.expect(r"\r +\r\| model")
        terminal.expect(r"\| perplexity +\| +\d+\.\d+")
        assert terminal.wait() == 0
