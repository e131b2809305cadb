"""`halfbyte bench speed` on a tiny model: llama-bench's table and fields, and figures that agree with each other."""

import csv
import io
import json
import statistics

import pytest
from command_line import assert_clean_error, halfbyte
from conversions import run_command
from test_embedding import gguf_of

from halfbyte import LLM
from halfbyte.bench import report, speed

FIELDS = {"n_prompt", "n_gen", "n_depth", "n_threads", "avg_ts", "stddev_ts", "samples_ts"}
FIELDS |= {"avg_ns", "stddev_ns", "samples_ns", "test_time", "n_batch", "n_ubatch", "type_k", "type_v", "backends"}
FIELDS |= {"model_filename", "model_type", "model_size", "model_n_params", "cpu_info"}


def test_markdown_is_llama_benchs_table_with_one_more_column(tiny_gguf):
    done = halfbyte("bench", "speed", tiny_gguf, "-p", "32", "-n", "8", "-d", "0,64", "-r", "2", "-t", "1")
    assert done.returncode == 0, done.stderr
    header, rule, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert header == ["model", "size", "params", "backend", "threads", "test", "t/s", "GB/s"]
    assert all(set(cell) <= set("-:") for cell in rule)
    assert [row[5] for row in rows] == ["pp32", "tg8", "pp32 @ d64", "tg8 @ d64"]
    for row in rows:
        mean, deviation = map(float, row[6].split(" ± "))
        assert mean > 0 <= deviation
        assert row[3:5] == ["CPU", "1"]
        assert row[0].startswith("llama ")
        assert row[0].endswith(" Q8_0")


def test_json_has_llama_benchs_fields_and_adds_up(tiny_gguf):
    done = halfbyte("bench", "speed", "-m", tiny_gguf, "-p", "16,32", "-n", "8", "-r", "3", "-t", "1,2", "-o", "json")
    records = json.loads(done.stdout)
    assert [(r["n_threads"], r["n_prompt"], r["n_gen"]) for r in records] == [
        (threads, *sizes) for threads in (1, 2) for sizes in ((16, 0), (32, 0), (0, 8))
    ]
    for record in records:
        assert set(record) >= FIELDS
        tokens = record["n_prompt"] + record["n_gen"]
        assert len(record["samples_ns"]) == len(record["samples_ts"]) == 3
        assert record["samples_ts"] == pytest.approx([tokens * 1e9 / ns for ns in record["samples_ns"]])
        assert record["avg_ts"] == pytest.approx(statistics.mean(record["samples_ts"]))
        assert record["stddev_ts"] == pytest.approx(statistics.stdev(record["samples_ts"]))


def test_options_of_the_engine_show_in_the_record(tiny_gguf):
    words = ["-p", "8", "-n", "0", "-r", "1", "-t", "1", "-o", "json", "-ub", "4", "-ct", "f32"]
    [record] = json.loads(halfbyte("bench", "speed", tiny_gguf, *words).stdout)
    assert (record["n_ubatch"], record["type_k"], record["type_v"]) == (4, "f32", "f32")


def test_csv_has_a_row_for_each_test(tiny_gguf):
    done = halfbyte("bench", "speed", tiny_gguf, "-p", "0", "-n", "4,8", "-r", "1", "-t", "1", "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["n_gen"] for row in rows] == ["4", "8"]
    assert set(rows[0]) >= FIELDS


def test_bytes_read_count_each_weight_once_a_pass_and_the_keys_and_values(tiny_gguf):
    with LLM(tiny_gguf, context=64, ubatch=8) as llm:
        engine = llm.engine
        kv = 2 * 2 * 2 * 2 * 16  # keys and values, bytes of F16, layers, KV heads, head's elements
        assert engine.cache_type == "f16"
        assert speed.bytes_read(engine, speed.Test(0, 3, 10)) == 3 * engine.bytes_per_token + kv * (11 + 12 + 13)
        assert speed.bytes_read(engine, speed.Test(20, 0, 0)) == 3 * engine.bytes_per_token + kv * (8 + 16 + 20)
        assert engine.bytes_per_token >= 0.9 * llm.model.size_bytes / 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-p", "many"], "-p is 'many'"),
        (["-d", "-1"], "-d"),
        (["-r", "0"], "-r is 0"),
        (["-o", "sql"], "sql"),
        (["-ub", "0"], "ubatch"),
        (["-ct", "q5_0"], "cache_type"),
    ],
)
def test_mistakes_are_one_line(tiny_gguf, words, part):
    assert_clean_error(halfbyte("bench", "speed", tiny_gguf, *words), 2, part)


def test_bench_without_its_measurement_is_told():
    for words in ([], ["sped", "m"], ["m", "speed"]):
        assert_clean_error(halfbyte("bench", *words), 2, "halfbyte bench speed MODEL, halfbyte bench accuracy MODEL, ")


@pytest.mark.parametrize(
    ("n", "size", "count"),
    [
        (1023, "1023 B", "1.02 K"),
        (1024, "1.00 KiB", "1.02 K"),
        (763_000_000, "727.65 MiB", "763.00 M"),
        (7, "7 B", "7"),
    ],
)
def test_sizes_are_binary_and_counts_decimal(n, size, count):
    assert report.size_text(n) == size
    assert report.count_text(n) == count


def test_json_stays_strict():
    text = report.json_text({"a": float("nan"), "b": [float("-inf"), 1.5], "c": "\x1b"})
    assert json.loads(text) == {"a": "nan", "b": ["-inf", 1.5], "c": "\x1b"}
    assert "\x1b" not in text


def test_speed_of_an_encoder(tmp_path, capsys):
    """Of whole texts of the length asked for."""
    file = gguf_of(tmp_path, "bert", pooling="mean_tokens")
    words = ["-p", "16,64", "-n", 0, "-r", 2, "-t", 1, "-o", "json"]
    code, out, _ = run_command(capsys, "bench", "speed", file, *words)
    found = json.loads(out)
    assert (code, [record["n_prompt"] for record in found]) == (0, [16, 64])
    for record in found:
        assert len(record["samples_ts"]) == 2
        assert record["samples_ts"] == pytest.approx([record["n_prompt"] * 1e9 / ns for ns in record["samples_ns"]])
