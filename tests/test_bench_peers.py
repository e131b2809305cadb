"""`halfbyte bench peers`: the arithmetic of its figures, its processes, and the command on a tiny model."""

import itertools
import json
import math
import os
import signal

import architectures
import pytest
from command_line import assert_clean_error, halfbyte
from gguf_models import opened

from halfbyte import convert_checkpoint
from halfbyte.bench.peers.base import Files
from halfbyte.bench.peers.comparison import Comparison, known_peers
from halfbyte.bench.peers.engines import ENGINES, PEERS
from halfbyte.bench.peers.figures import ModelSizes, Spread, failures, machine_limits, ratio, read_sizes, rows, spread
from halfbyte.bench.peers.ours import Halfbyte
from halfbyte.bench.peers.processes import PeerFailedError, Process
from halfbyte.bench.peers.table import record, text
from halfbyte.bench.peers.turns import PEAK, Case, Series, cases, order_of_starts
from halfbyte.bench.picture import draw_ratios
from halfbyte.errors import ContextLengthError, UnsupportedError
from halfbyte.quant.gguf_reader import open_gguf

SIZES = ModelSizes(layer_weights=1000, output_weights=200, matrix_bytes=675, position=8)
FACTS = {"weight_bytes": None, "cache_bytes": 2}
LIMITS = [{"read": 2e6, "operations": 1e9}, {"read": 1e6, "operations": 3e9}, {"read": 4e6, "operations": 2e9}]


WAYS = ("halfbyte", "llama.cpp", "llama.cpp, no repack")


def speed(engine, case, values, failed=None, facts=FACTS):
    return Series(2, case.name, engine, list(values), failed, case, LIMITS, facts)


# ---------------------------------------------------------------------------------------------------------------------
# what is measured


def test_every_size_at_every_depth_and_batches_at_the_smallest():
    names = [case.name for case in cases([128, 512], [64], [1024, 0], [1, 4])]
    assert names == ["pp128", "pp512", "tg64", "pp128 @ d1024", "pp512 @ d1024", "tg64 @ d1024", "tg64 x 4"]
    assert [case.name for case in cases([0], [8], [16], [2])] == ["tg8 @ d16 x 2"]
    assert [case.name for case in cases([8], [0], [0], [1, 4])] == ["pp8"]
    assert cases([0], [0], [0], [1]) == []
    assert Case(0, 64, 0, 4).tokens == 256


def test_each_of_three_engines_starts_behind_each_other_as_often():
    """All of them once a turn, and in two turns, which then begin anew, each pair of neighbours once."""
    turns = [order_of_starts(WAYS, turn) for turn in range(3)]
    assert all(sorted(turn) == sorted(WAYS) for turn in turns)
    line = [*turns[0], *turns[1], turns[2][0]]
    assert len(set(itertools.pairwise(line))) == 6
    assert [order_of_starts(WAYS[:n], 1) for n in (1, 2)] == [[WAYS[0]], list(WAYS[:2])]


# ---------------------------------------------------------------------------------------------------------------------
# figures


def test_spread_and_ratio_are_those_of_medians_and_of_turns():
    assert spread([3.0, 1.0, 7.0]) == Spread(3.0, 1.0, 7.0)
    assert ratio([10, 30, 20], [5, 10, 20]) == Spread(2.0, 1.0, 3.0)
    assert ratio([10, 30], [5]) == Spread(4.0, 2.0, 2.0), "the peer failed in the second turn"


def test_generation_is_part_of_the_bandwidth():
    """8 tokens behind 100 read, on average, 104.5 positions of 16 bytes each and all weights."""
    case = Case(0, 8, 100)
    assert SIZES.bytes_per_token(case, None, 2) == 675 + 16 * 104.5
    assert SIZES.bytes_per_token(case, 2, 2) == 2400 + 16 * 104.5
    assert SIZES.bytes_per_token(Case(0, 8, 100, 4), None, 2) == 675 / 4 + 16 * 104.5
    [row] = rows([speed("halfbyte", case, [300.0, 400.0, 500.0])], SIZES)
    assert row.results["halfbyte"].of_limit == pytest.approx(400 * (675 + 16 * 104.5) / 2e6)


def test_prompts_are_part_of_the_integer_peak():
    case = Case(50, 0, 0)
    assert SIZES.operations_per_token(case) == 2 * (1000 + 200 / 50)
    [row] = rows([speed("halfbyte", case, [1e4, 3e4, 2e4])], SIZES)
    assert row.results["halfbyte"].of_limit == pytest.approx(2e4 * 2008 / 2e9)


def two_ways(case, plain, other):
    return [speed(n, case, v) for n, v in zip(WAYS, ([30, 10, 20], [plain] * 3, [other] * 3), strict=True)]


def starts(ours, plain, other):
    return [Series(2, "load", n, v) for n, v in zip(WAYS, (ours, plain, other), strict=True)]


def test_the_best_way_of_a_peer_counts_for_each_speed():
    case = Case(0, 8, 0)
    found = [
        speed("halfbyte", case, [30, 10, 20]),
        speed("llama.cpp", case, [10, 10, 10]),
        speed("llama.cpp, no repack", case, [5, 40, 30]),
    ]
    [generated] = rows(found, SIZES)
    assert generated.results["llama.cpp"].engine == "llama.cpp, no repack"
    assert generated.results["llama.cpp"].ratio == Spread(20 / 30, 10 / 40, 30 / 5)
    alone = rows([*two_ways(case, 10, 20), *two_ways(Case(8, 0, 0), 20, 10)], SIZES)
    assert [row.results["llama.cpp"].engine for row in alone] == ["llama.cpp, no repack", "llama.cpp"]


def test_loading_is_that_of_the_way_that_is_fastest_over_all_speeds():
    load = starts([1.0, 1.0], [2.0, 3.0], [0.4, 0.5])
    prompt, generated = Case(8, 0, 0), Case(0, 8, 0)
    failed = speed("llama.cpp", generated, [90], "died of SIGSEGV")
    for speeds, expected in (
        ([*two_ways(prompt, 30, 10), *two_ways(generated, 10, 29)], "llama.cpp"),
        ([*two_ways(prompt, 30, 10), *two_ways(generated, 10, 31)], "llama.cpp, no repack"),
        ([*two_ways(prompt, 30, 10), *two_ways(generated, 10, 1)[::2], failed], "llama.cpp, no repack"),
        ([], "llama.cpp, no repack"),  # the soonest
    ):
        [row] = [row for row in rows([*load, *speeds], SIZES) if row.figure == "load"]
        assert row.results["llama.cpp"].engine == expected
    [row, *_] = rows([*load, *two_ways(prompt, 30, 10)], SIZES)
    assert row.results["llama.cpp"].value == Spread(2.5, 2.0, 3.0)
    assert row.results["llama.cpp"].of_limit is None
    assert row.results["llama.cpp"].ratio == Spread(0.4, 1 / 3, 0.5)
    load[1].failed = "died of SIGSEGV"
    [row, *_] = rows([*load, *two_ways(prompt, 30, 10)], SIZES)
    assert row.results["llama.cpp"].engine == "llama.cpp, no repack"


def test_a_way_that_failed_leaves_its_place_to_the_other():
    case, other = Case(0, 8, 0), Case(0, 16, 0)
    found = [
        series
        for c in (case, other)
        for series in (
            speed("halfbyte", c, [20, 20]),
            speed("llama.cpp", c, [90], "died of SIGSEGV"),
            speed("llama.cpp, no repack", c, [10, 10]),
        )
    ]
    assert [row.results["llama.cpp"].ratio for row in rows(found, SIZES)] == [Spread(2, 2, 2)] * 2
    [failure] = failures(found)
    assert (failure.engine, failure.figure, failure.reason) == ("llama.cpp", "tg8", "died of SIGSEGV")


def test_a_peer_that_failed_has_no_figures_and_the_others_have():
    case = Case(0, 8, 0)
    ways = [speed(name, case, [], "no memory") for name in ("llama.cpp", "llama.cpp, no repack")]
    [row] = rows([speed("halfbyte", case, [20, 20]), *ways], SIZES)
    assert (row.results["llama.cpp"].value, row.results["llama.cpp"].ratio) == (None, None)
    assert row.results["halfbyte"].value == Spread(20, 20, 20)
    [row] = rows([speed("halfbyte", case, [], "no memory"), speed("llama.cpp", case, [5, 5])], SIZES)
    assert row.results["llama.cpp"].ratio is None
    assert row.results["llama.cpp"].value == Spread(5, 5, 5)


def test_limits_of_the_machine_are_told_for_each_number_of_threads():
    [found] = machine_limits([speed("halfbyte", Case(0, 8, 0), [1]), speed("llama.cpp", Case(0, 8, 0), [1])])
    assert (found.threads, found.read, found.operations) == (2, Spread(2e6, 1e6, 4e6), Spread(2e9, 1e9, 3e9))


def test_sizes_are_those_of_the_matrices_that_are_multiplied(tiny_gguf):
    sizes = read_sizes(tiny_gguf)
    with open_gguf(tiny_gguf) as file:
        matrices = [view for name, view in file.tensors.items() if len(view.shape) == 2 and name != "token_embd.weight"]
        output = file.tensors["output.weight"]
        assert sizes.matrix_bytes == sum(view.nbytes for view in matrices)
        assert sizes.output_weights == output.shape[0] * output.shape[1]
        assert sizes.layer_weights * 34 // 32 == sizes.matrix_bytes - output.nbytes
    assert sizes.position == 2 * 2 * 2 * 16  # keys and values, layers, KV heads, head's elements


def test_of_experts_those_are_read_that_tokens_go_to(tmp_path):
    """A token goes to two of five: one reads them, of two tokens the second mostly reads some others."""
    source = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME["mixtral"])
    path = convert_checkpoint(source, tmp_path / "m.gguf", "q8_0").path
    sizes = read_sizes(path)
    with open_gguf(path) as file, opened(path) as engine:
        experts = [view for name, view in file.tensors.items() if "_exps." in name]
        assert (sizes.expert_weights, sizes.used) == (sum(math.prod(view.shape) for view in experts), 2 / 5)
        assert sizes.expert_bytes == sum(view.nbytes for view in experts)
        # The engine's panels are padded to whole vectors.
        assert sizes.bytes_per_token(Case(0, 1, -1), None, 2) == pytest.approx(engine.bytes_per_token, rel=0.1)
    one, two = (sizes.bytes_per_token(Case(0, 1, -1, batch), None, 2) * batch for batch in (1, 2))
    assert two - one == pytest.approx((1 - 0.6**2 - 0.4) * sizes.expert_bytes)
    assert sizes.operations_per_token(Case(10**9, 0, 0)) == pytest.approx(
        2 * (sizes.layer_weights + 0.4 * sizes.expert_weights)
    )


# ---------------------------------------------------------------------------------------------------------------------
# table and picture


@pytest.fixture
def comparison():
    pp, tg = Case(128, 0, 0), Case(0, 64, 0, 4)
    found = [
        Series(2, "load", "halfbyte", [0.25]),
        Series(2, "load", "llama.cpp", [0.5]),
        speed("halfbyte", pp, [200.0, 220.0, 210.0]),
        speed("llama.cpp", pp, [100.0, 105.0, 101.0]),
        speed("halfbyte", tg, [20.0, 22.0, 21.0]),
        speed("llama.cpp", tg, [10.0], "died of SIGSEGV | here"),
        Series(2, PEAK, "halfbyte", [3 << 20]),
        Series(2, PEAK, "llama.cpp", [6 << 20]),
    ]
    return Comparison(
        model={"file": "m.gguf", "type": "Q4_0", "parameters": 10**9, "bytes": 1 << 30},
        machine={"cpu": "a CPU", "instruction_set": "avx2", "usable_cores": 2},
        versions={"halfbyte": "1.0", "llama.cpp": "0.3"},
        missing={"transformers": "not installed (pip install torch transformers)"},
        limits=machine_limits(found),
        rows=rows(found, SIZES),
        failures=failures(found),
    )


def test_the_table_has_a_row_a_figure_and_says_what_failed_and_what_is_missing(comparison):
    lines = text(comparison).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert ["2", "load, s", "0.25", "", "0.50", "", "0.50 (0.50 to 0.50)"] in cells
    assert ["2", "pp128, t/s", "210.0", "0 %", "101.0", "0 %", "2.08 (2.00 to 2.10)"] in cells
    assert ["2", "tg64 x 4, t/s", "21.0", "1 %", "none", "", ""] in cells
    assert ["2", "peak memory, MiB", "3", "", "6", "", "0.50 (0.50 to 0.50)"] in cells
    assert ["llama.cpp", "2", "tg64 x 4", "died of SIGSEGV / here"] in cells
    assert "Not compared: transformers: not installed (pip install torch transformers)." in lines
    assert "m.gguf: 1.00 B Q4_0, 1.00 GiB" in lines[0]


def test_the_record_is_json_with_every_turn(comparison):
    found = json.loads(json.dumps(record(comparison)))
    load, prompt, generated, peak = found["figures"]
    assert (load["unit"], prompt["unit"], peak["unit"]) == ("s", "tokens/s", "bytes")
    assert prompt["results"]["halfbyte"]["samples"] == [200.0, 220.0, 210.0]
    assert prompt["results"]["llama.cpp"]["ratio"]["middle"] == pytest.approx(210 / 101)
    assert generated["case"] == {"n_prompt": 0, "n_gen": 64, "n_depth": 0, "batch": 4}
    assert generated["results"]["llama.cpp"]["value"] is None
    assert [failure["engine"] for failure in found["failures"]] == ["llama.cpp"]


def test_the_picture_is_a_png_with_a_panel_for_each_number_of_threads(comparison):
    def size(png):
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        return tuple(int.from_bytes(png[start : start + 4], "big") for start in (16, 20))

    one, two = size(draw_ratios([comparison])), size(draw_ratios([comparison, comparison]))
    assert one[0] > 800 < two[0] - one[0] + 800
    assert one[1] == two[1]


# ---------------------------------------------------------------------------------------------------------------------
# engines and processes


def test_halfbyte_feeds_and_forgets_several_sequences(tiny_gguf):
    peer = Halfbyte.load(Files(tiny_gguf, None), threads=1, context=64, sequences=2)
    try:
        peer.feed([1] * 60, [2] * 60)
        with pytest.raises(ContextLengthError):
            peer.feed([3] * 5, [4] * 5)
        peer.truncate(30)
        peer.feed([3] * 34, [4] * 34)
        with pytest.raises(ContextLengthError):
            peer.feed([5])
        peer.truncate(0)
        peer.feed([5] * 64)
    finally:
        peer.close()


def test_a_process_loads_measures_and_tells_its_memory(tiny_gguf):
    with Process() as process:
        request = {"engine": "halfbyte", "model": str(tiny_gguf), "checkpoint": None, "threads": 1}
        loaded = process.ask("load", **request, context=160, sequences=2)
        assert 0 < loaded["load"] < loaded["first_token"]
        assert (loaded["weight_bytes"], loaded["cache_bytes"]) == (None, 2)
        for n_prompt, n_gen, n_depth in ((16, 0, 0), (0, 4, 32), (0, 4, 0), (8, 0, 64)):
            sizes = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": n_depth, "sequences": 2}
            assert process.ask("measure", **sizes, warm=False)["rate"] > 1
        assert 1 << 24 < loaded["resident"] <= process.ask("memory")["peak"]


def test_a_process_says_why_it_fails_and_goes_on(tmp_path):
    with Process() as process:
        with pytest.raises(PeerFailedError, match=r"UsageError: .*absent\.gguf: cannot be opened"):
            process.ask(
                "load", engine="halfbyte", model=str(tmp_path / "absent.gguf"), checkpoint=None, threads=1, context=8,
                sequences=1,
            )  # fmt: skip
        assert process.ask("memory")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_crashes_is_told_by_its_signal():
    with Process() as process:
        assert process.ask("memory")
        os.kill(process.pid, signal.SIGSEGV)
        with pytest.raises(PeerFailedError, match="died of SIGSEGV"):
            process.ask("memory")


def test_every_engine_says_how_to_get_it():
    for name, engine in ENGINES.items():
        assert name == "halfbyte" or engine.install.startswith("pip install ")
    assert known_peers([]) == list(PEERS)
    assert known_peers(["transformers", "llama.cpp", "transformers"]) == ["transformers", "llama.cpp"]
    with pytest.raises(
        UnsupportedError, match=r"'gpt' is not supported; supported: llama\.cpp, openvino-genai, transformers"
    ):
        known_peers(["gpt"])


# ---------------------------------------------------------------------------------------------------------------------
# the command


def test_the_command_measures_halfbyte_and_names_what_a_peer_needs(tiny_gguf, tmp_path):
    words = ["-p", "16", "-n", "4", "-d", "0,32", "--batch", "1,2", "-t", "1", "-r", "1", "--peers", "transformers"]
    done = halfbyte("bench", "peers", tiny_gguf, *words, "-o", "json", "--picture", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    figures = [figure["figure"] for figure in found["figures"]]
    assert figures[:3] == ["load", "first token", "memory when loaded"]
    assert figures[3:] == ["pp16", "tg4", "pp16 @ d32", "tg4 @ d32", "peak memory", "tg4 x 2"]
    for figure in found["figures"]:
        ours = figure["results"]["halfbyte"]
        assert len(ours["samples"]) == 1
        assert ours["value"]["low"] > 0
        assert (ours["of_limit"] is not None) == (figure["case"] is not None)
    assert (set(found["missing"]), list(found["versions"])) == ({"transformers"}, ["halfbyte"])
    assert found["limits"][0]["threads"] == 1
    assert found["failures"] == []
    assert found["model"]["type"] == "Q8_0"
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ([], 2, "MODEL"),
        (["absent.gguf"], 2, "absent.gguf"),
        (["not.gguf"], 3, "not.gguf"),
        (["m.gguf", "-p", "0", "-n", "0"], 2, "nothing to measure"),
        (["m.gguf", "-d", "deep"], 2, "-d is 'deep'"),
        (["m.gguf", "--batch", "0"], 2, "--batch is '0'; allowed: numbers from 1"),
        (["m.gguf", "-t", "-2"], 2, "-t is '-2'"),
        (["m.gguf", "-r", "0"], 2, "-r is 0"),
        (["m.gguf", "--peers", "gpt"], 3, "llama.cpp, openvino-genai, transformers"),
        (["m.gguf", "--checkpoint", "nowhere"], 2, "config.json"),
        (["m.gguf", "--checkpoint", "other"], 2, "is not the model of"),
        (["m.gguf", "--picture", "nowhere/p.png"], 2, "no such folder"),
        (["m.gguf", "-o", "csv"], 2, "csv"),
    ],
)
def test_mistakes_are_one_line(tiny_gguf, tmp_path, words, code, part):
    (tmp_path / "m.gguf").write_bytes(tiny_gguf.read_bytes())
    (tmp_path / "not.gguf").write_bytes(b"no model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"hidden_size": 1}')
    assert_clean_error(halfbyte("bench", "peers", *words, cwd=tmp_path), code, part)


@pytest.mark.peers
def test_llama_cpp_beside_halfbyte(tiny_gguf):
    """Both run on the model; every figure has a ratio, of one way of llama.cpp at least."""
    pytest.importorskip("llama_cpp", reason="the extra peers is not installed")
    words = ["-p", "16", "-n", "4", "-d", "0,32", "--batch", "1,2", "-t", "2", "-r", "2", "--peers", "llama.cpp"]
    done = halfbyte("bench", "peers", tiny_gguf, *words, "-o", "json", timeout=600)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    assert list(found["versions"]) == ["halfbyte", "llama.cpp"]
    assert {failure["engine"] for failure in found["failures"]} <= {"llama.cpp"}  # builds die of AMX (llamacpp.py)
    for figure in found["figures"]:
        theirs = figure["results"]["llama.cpp"]
        assert theirs["ratio"]["low"] <= theirs["ratio"]["high"]
        assert theirs["engine"] in ("llama.cpp", "llama.cpp, no repack")


@pytest.mark.peers
def test_llama_cpp_feeds_and_forgets_several_sequences(tiny_gguf):
    """The logits after a row are the same whether others are fed beside it, and after a detour that was forgotten."""
    pytest.importorskip("llama_cpp", reason="the extra peers is not installed")
    import numpy as np

    from halfbyte.bench.peers.llamacpp import LlamaCpp

    first, second = [[5, 9, 33, 8], [7, 70, 21, 2]]
    alone = LlamaCpp(tiny_gguf, repack=False)
    alone.feed(second)
    expected = alone.logits()
    alone.feed([1, 2, 3])
    alone.truncate(2)
    alone.feed(second[2:])
    np.testing.assert_allclose(alone.logits(), expected, atol=1e-5)
    both = LlamaCpp(tiny_gguf, repack=False, sequences=2)
    both.feed(first[:3], second[:3])
    both.feed(first[3:], second[3:])
    np.testing.assert_allclose(both.logits(), expected, atol=1e-2)


@pytest.mark.parity
def test_transformers_beside_halfbyte(tmp_path):
    pytest.importorskip("torch", reason="the extra parity is not installed")
    pytest.importorskip("transformers", reason="the extra parity is not installed")
    import tiny

    from halfbyte import convert_checkpoint

    convert_checkpoint(tiny.build(tmp_path / "checkpoint"), tmp_path / "m.gguf", "q8_0")
    words = ["-p", "16", "-n", "4", "-d", "0,32", "--batch", "1,2", "-t", "1", "-r", "1", "--peers", "transformers"]
    done = halfbyte("bench", "peers", "m.gguf", *words, "--checkpoint", "checkpoint", "-o", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    assert found["failures"] == []
    for figure in found["figures"]:
        assert figure["results"]["transformers"]["ratio"]["middle"] > 0
