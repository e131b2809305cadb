"""`halfbyte bench accuracy`: every figure beside a slow twin in float64, and what is refused."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accuracy_files
import numpy as np
import oracle
import pytest
from accuracy_files import CHUNKS, N_CTX, TEXT
from gguf_models import rewritten

from halfbyte import LLM
from halfbyte.bench import accuracy as bench
from halfbyte.bench.logits_file import LogitsReader
from halfbyte.errors import ContextLengthError, ModelFileError, OutputExistsError, UnsupportedError, UsageError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return accuracy_files.build(tmp_path_factory.mktemp("accuracy"))


@pytest.fixture(scope="module")
def exact(files: dict[str, Path]) -> Iterator[LLM]:
    with LLM(files["spm f32"], threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def coarse(files: dict[str, Path]) -> Iterator[LLM]:
    with LLM(files["spm q4_0"], threads=1) as llm:
        yield llm


# ---------------------------------------------------------------------------------------------------------------------
# the twin: the definitions, one number at a time


def chunks_of(llm: LLM, n_ctx: int = N_CTX, n_chunks: int = CHUNKS) -> list[list[int]]:
    ids = llm.tokenize(TEXT)
    return [ids[i * n_ctx : (i + 1) * n_ctx] for i in range(n_chunks)]


def evaluated(llm: LLM, chunk: list[int]) -> list[int]:
    """What the model is given: BOS in the place of the first token, where the vocabulary adds it."""
    return [llm.tokenizer.bos_id, *chunk[1:]] if llm.tokenizer.add_bos else chunk


def scored(llm: LLM, n_ctx: int = N_CTX, n_chunks: int = CHUNKS) -> list[tuple[np.ndarray, int]]:
    """(logits, the token that follows) of each scored position."""
    found = []
    for chunk in chunks_of(llm, n_ctx, n_chunks):
        logits = llm.logits(evaluated(llm, chunk)).astype(np.float64)
        found += [(logits[j], chunk[j + 1]) for j in range(n_ctx // 2, n_ctx - 1)]
    return found


def log_p(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


def as_kept(logits: np.ndarray) -> np.ndarray:
    """ln p as a file of logits keeps it: 65536 steps from the largest down to 16 below."""
    low = max(logits.min(), logits.max() - 16)
    scale = (logits.max() - low) / 65535
    codes = np.rint((np.maximum(logits, low) - low) / scale)
    return scale * codes + low - logits.max() - math.log(np.exp(logits - logits.max()).sum())


def twin(model: LLM, reference: LLM) -> list[dict[str, float]]:
    """What each position gives."""
    found = []
    for (logits, token), (base_logits, _) in zip(scored(model), scored(reference), strict=True):
        lp, base = log_p(logits), as_kept(base_logits)
        found.append({
            "nll": -lp[token],
            "base_nll": -base[token],
            "kl": sum(math.exp(b) * (b - q) for b, q in zip(base, lp, strict=True) if b > -16),
            "delta_p": math.exp(lp[token]) - math.exp(base[token]),
            "same_top": lp.argmax() == base.argmax(),
        })  # fmt: skip
    return found


def error_of(values: list[float]) -> float:
    n = len(values)
    return math.sqrt((math.fsum(x * x for x in values) / n - (math.fsum(values) / n) ** 2) / (n - 1))


def at_percent(values: list[float], percent: float) -> float:
    place = percent / 100 * (len(values) - 1)
    ordered = [*sorted(values), 0.0]
    return ordered[int(place)] + (place - int(place)) * (ordered[int(place) + 1] - ordered[int(place)])


# ---------------------------------------------------------------------------------------------------------------------
# perplexity


@pytest.mark.parametrize("n_ctx", [N_CTX, 33, 200])
def test_perplexity_is_the_twins(coarse: LLM, n_ctx: int) -> None:
    found = bench.measure_accuracy(coarse, TEXT, n_ctx=n_ctx, n_chunks=3)
    nll = [-log_p(logits)[token] for logits, token in scored(coarse, n_ctx, 3)]
    assert (found.n_ctx, found.n_chunks, found.tokens) == (n_ctx, 3, 3 * n_ctx)
    assert found.n_scored == len(nll) == 3 * (n_ctx - 1 - n_ctx // 2)
    assert found.perplexity == pytest.approx(math.exp(statistics.mean(nll)), rel=1e-6)
    assert found.perplexity_error == pytest.approx(found.perplexity * error_of(nll), rel=1e-5)
    assert found.divergence is None


@pytest.mark.parametrize("source", ["spm", "gpt-2"])
def test_perplexity_of_the_obvious_model(files: dict[str, Path], source: str) -> None:
    """Without the engine: the float64 forward pass, with and without BOS in the place of a chunk's first token."""
    with LLM(files[f"{source} f32"], threads=1) as llm:
        assert llm.tokenizer.add_bos == (source == "spm")
        found = bench.measure_accuracy(llm, TEXT, n_ctx=40, n_chunks=4)
        nll = []
        for chunk in chunks_of(llm, 40, 4):
            logits = oracle.llama_logits(files[source], evaluated(llm, chunk))
            nll += [-log_p(logits[j])[chunk[j + 1]] for j in range(20, 39)]
    assert found.perplexity == pytest.approx(math.exp(statistics.mean(nll)), rel=2e-4)


def test_a_512_token_chunk_scores_255_positions(no_template_gguf: Path) -> None:
    with LLM(no_template_gguf, threads=1, context=512) as llm:
        found = bench.measure_accuracy(llm, TEXT + TEXT, n_chunks=2)
    assert (found.n_ctx, found.n_scored) == (512, 2 * 255)


# ---------------------------------------------------------------------------------------------------------------------
# text


def test_chunks_are_the_text_tokenized_once(exact: LLM) -> None:
    ids = exact.tokenize(TEXT)
    assert ids[0] == exact.tokenizer.bos_id
    assert len(ids) % N_CTX
    found = bench.text_chunks(exact.tokenizer, TEXT, N_CTX)
    assert found.dtype == np.int32
    assert found.shape == (len(ids) // N_CTX, N_CTX)
    assert found.ravel().tolist() == ids[: found.size]
    np.testing.assert_array_equal(bench.text_chunks(exact.tokenizer, TEXT, N_CTX, 2), found[:2])
    np.testing.assert_array_equal(bench.text_chunks(exact.tokenizer, TEXT, N_CTX, 10**9), found)
    special = bench.text_chunks(exact.tokenizer, "</s>" * 40, 8, 1)
    assert exact.tokenizer.eos_id not in special


def test_one_line_feed_at_the_end_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "text"
    for raw, text in ((b"a\n\n", "a\n"), (b"a\\n\r\n", "a\\n\r"), (b"", ""), (b"\n", ""), ("é".encode(), "é")):
        file.write_bytes(raw)
        assert bench.read_text(file)[0] == text
    file.write_bytes(b"abc")
    assert bench.read_text(file)[1] == "ba7816bf8f01"  # SHA-256 of "abc", FIPS 180


def test_what_cannot_be_measured_is_refused(exact: LLM, files: dict[str, Path], tmp_path: Path) -> None:
    n = len(exact.tokenize(TEXT))
    assert len(bench.text_chunks(exact.tokenizer, TEXT, n // 2)) == 2
    with pytest.raises(UsageError, match=rf"the text has {n} tokens; a context of {n // 2 + 1} needs {n // 2 * 2 + 2}"):
        bench.text_chunks(exact.tokenizer, TEXT, n // 2 + 1)
    with pytest.raises(ContextLengthError, match=r"chunks of 300 tokens .* context of 256"):
        bench.measure_accuracy(exact, TEXT, n_ctx=300)
    for n_ctx in (2, 0, -1):
        with pytest.raises(UsageError, match=f"a context of {n_ctx} tokens .* 3 or more"):
            bench.text_chunks(exact.tokenizer, TEXT, n_ctx)
    with pytest.raises(UsageError, match="0 chunks"):
        bench.text_chunks(exact.tokenizer, TEXT, N_CTX, 0)
    with pytest.raises(UsageError, match=r"4 chunks of 48 tokens have 92 positions to score; .* 100 are needed"):
        bench.measure_accuracy(exact, TEXT, n_ctx=N_CTX, n_chunks=4, reference=files["spm f32"])
    adds = rewritten(
        files["spm f32"], tmp_path / "eos.gguf", lambda m: m.update({"tokenizer.ggml.add_eos_token": ("bool", True)})
    )
    with LLM(adds, threads=1) as llm, pytest.raises(UnsupportedError, match=r"eos\.gguf.*add_eos_token.*false"):
        bench.measure_accuracy(llm, TEXT, n_ctx=N_CTX)


def test_a_model_that_gives_nan_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        shape, kind, _ = tensors["output.weight"]
        tensors["output.weight"] = shape, kind, np.full(shape, np.nan, np.float32).view(np.uint8).ravel()

    spoiled = rewritten(files["spm f32"], tmp_path / "nan.gguf", tensors=spoil)
    with LLM(spoiled, threads=1) as llm, pytest.raises(ModelFileError, match=r"nan\.gguf:? gives logits .* in chunk 0"):
        bench.measure_accuracy(llm, TEXT, n_ctx=N_CTX, save_logits=tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# ---------------------------------------------------------------------------------------------------------------------
# divergence


def test_divergence_is_the_twins(exact: LLM, coarse: LLM, files: dict[str, Path]) -> None:
    found = bench.measure_accuracy(coarse, TEXT, n_ctx=N_CTX, n_chunks=CHUNKS, reference=files["spm f32"])
    positions = twin(coarse, exact)
    nll, base_nll, kl, delta_p, same = ([float(p[k]) for p in positions] for k in positions[0])
    n = len(nll)
    got = found.divergence
    assert got is not None
    assert n == found.n_scored == CHUNKS * 23
    own, base = math.exp(statistics.mean(nll)), math.exp(statistics.mean(base_nll))
    near = {"rel": 2e-4, "abs": 2e-6}
    assert tuple(got.base_perplexity) == pytest.approx((base, base * error_of(base_nll)), **near)
    assert got.correlation == pytest.approx(statistics.correlation(nll, base_nll), **near)

    # llama-perplexity's way to the errors: variances and the covariance of the means
    va, vb = error_of(nll) ** 2, error_of(base_nll) ** 2
    products = math.fsum(a * b for a, b in zip(nll, base_nll, strict=True)) / n
    covariance = (products - statistics.mean(nll) * statistics.mean(base_nll)) / (n - 1)
    ratio_error = math.sqrt(va + vb - 2 * covariance)
    assert tuple(got.log_ratio) == pytest.approx((math.log(own / base), ratio_error), **near)
    assert tuple(got.ratio) == pytest.approx((own / base, own / base * ratio_error), **near)
    difference_error = math.sqrt(own**2 * va + base**2 * vb - 2 * own * base * covariance)
    assert tuple(got.difference) == pytest.approx((own - base, difference_error), **near)

    assert tuple(got.kl) == pytest.approx((statistics.mean(kl), error_of(kl)), **near)
    assert list(got.kl_percentiles) == [100, 99.9, 99, 95, 90, 50, 10, 5, 1, 0.1, 0]
    assert got.kl_percentiles == pytest.approx({p: at_percent(kl, p) for p in got.kl_percentiles}, **near)
    assert tuple(got.delta_p) == pytest.approx((statistics.mean(delta_p), error_of(delta_p)), **near)
    assert list(got.delta_p_percentiles) == [100, 99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1, 0]
    assert got.delta_p_percentiles == pytest.approx(
        {p: at_percent(delta_p, p) for p in got.delta_p_percentiles}, **near
    )
    rms = math.sqrt(statistics.mean(d * d for d in delta_p))
    assert tuple(got.rms_delta_p) == pytest.approx((rms, 0.5 / rms * error_of([d * d for d in delta_p])), **near)
    share = statistics.mean(same)
    assert tuple(got.same_top) == pytest.approx((share, math.sqrt(share * (1 - share) / (n - 1))))
    assert 0.3 < share < 1
    assert got.kl.value > 1e-3


def test_a_model_is_no_way_from_itself(exact: LLM, files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "logits"
    alone = bench.measure_accuracy(exact, TEXT, n_ctx=N_CTX, n_chunks=CHUNKS, save_logits=file)
    for reference in (file, files["spm f32"]):
        found = bench.measure_accuracy(exact, TEXT, n_ctx=N_CTX, n_chunks=CHUNKS, reference=reference)
        got = found.divergence
        assert got is not None
        assert found.perplexity == alone.perplexity
        assert abs(got.kl.value) < 1e-5  # what 16 bits leave of it
        assert got.kl_percentiles[100] < 2e-4
        assert tuple(got.same_top) == (1, 0)
        assert got.rms_delta_p.value < 1e-5
        assert got.base_perplexity.value < found.perplexity  # tokens more than 16 below the likeliest count as 16
        assert 0.95 < got.correlation < 1


def test_a_file_of_logits_and_the_model_it_is_of_say_the_same(
    exact: LLM, coarse: LLM, files: dict[str, Path], tmp_path: Path
) -> None:
    """And the file decides how many chunks there are; --chunks may take fewer."""
    file = tmp_path / "logits"
    bench.measure_accuracy(exact, TEXT, n_ctx=N_CTX, n_chunks=CHUNKS, save_logits=file)
    one = bench.measure_accuracy(coarse, TEXT, n_ctx=N_CTX, reference=file)
    two = bench.measure_accuracy(coarse, TEXT, n_ctx=N_CTX, n_chunks=CHUNKS, reference=files["spm f32"])
    assert one == two
    assert bench.measure_accuracy(coarse, TEXT, n_ctx=N_CTX, n_chunks=5, reference=file).n_chunks == 5
    with LogitsReader(file) as reader:
        assert reader.tokens.tolist() == chunks_of(exact)  # as tokenized, without BOS put in


def test_logits_in_slices_are_the_same(
    exact: LLM, coarse: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a large vocabulary takes them: three positions at a time."""
    found = []
    for size, name in ((bench._SLICE, "whole"), (3 * coarse.model.n_vocab, "sliced")):
        monkeypatch.setattr(bench, "_SLICE", size)
        arguments: dict[str, Any] = {"n_ctx": N_CTX, "n_chunks": CHUNKS}
        bench.measure_accuracy(exact, TEXT, save_logits=tmp_path / name, **arguments)
        found.append(bench.measure_accuracy(coarse, TEXT, reference=tmp_path / name, **arguments))
    assert found[0] == found[1]
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "sliced").read_bytes()


def test_progress_tells_chunks_perplexity_and_the_disk(
    coarse: LLM, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    heard: list[tuple[str, int, int, str]] = []

    def hear(what: str, done: int, total: int, note: str = "") -> None:
        heard.append((what, done, total, note))
        if what.startswith("running the reference"):
            assert [file.suffix for file in tmp_path.rglob("*.part")] == [".part"]

    found = bench.measure_accuracy(
        coarse, TEXT, n_ctx=N_CTX, n_chunks=CHUNKS, reference=files["spm q8_0"], progress=hear
    )
    assert not list(tmp_path.iterdir())
    measuring = [(done, total, note) for what, done, total, note in heard if what == "measuring"]
    assert [m[:2] for m in measuring] == [(i, CHUNKS) for i in range(CHUNKS + 1)]
    running = [done for what, done, _, _ in heard if what.startswith("running the reference")]
    assert running == list(range(CHUNKS + 1))
    assert measuring[-1][2] == f"chunk 6 of 6, perplexity {found.perplexity:.4f}"
    on_disk = 20 + 4 * CHUNKS * N_CTX + 2 * found.n_scored * (4 + coarse.model.n_vocab)
    assert f"running the reference ({on_disk / 1024:.2f} KiB on disk)" in {what for what, *_ in heard}


def test_references_of_other_tokens_are_refused(
    exact: LLM, coarse: LLM, files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "logits"
    bench.measure_accuracy(exact, TEXT, n_ctx=N_CTX, n_chunks=CHUNKS, save_logits=file)

    def measure(text: str = TEXT, n_ctx: int = N_CTX, reference: Path = file, **options: Any) -> None:
        bench.measure_accuracy(coarse, text, n_ctx=n_ctx, reference=reference, **options)

    with pytest.raises(UsageError, match="has chunks of 48 tokens, and this measurement chunks of 50 tokens"):
        measure(n_ctx=50)
    with pytest.raises(UsageError, match="other-logits: is of another text: token 0 of chunk 0 is 5 and not 1"):
        raw = bytearray(file.read_bytes())
        measure(reference=_copy(tmp_path / "other-logits", raw[:20] + b"\5\0\0\0" + raw[24:]))
    with pytest.raises(UsageError, match=r"logits: is of another text: token \d+ of chunk \d"):
        measure(text=TEXT[:400] + "x" + TEXT[400:])
    with pytest.raises(UsageError, match=r"the reference has a vocabulary of \d+ tokens, and the model 420"):
        measure(reference=files["gpt-2 f32"])

    def rename(entries: dict[str, Any]) -> None:
        kind, tokens = entries["tokenizer.ggml.tokens"]
        entries["tokenizer.ggml.tokens"] = kind, np.array([*list(tokens)[:-1], "another"], object)

    renamed = rewritten(files["spm f32"], tmp_path / "renamed.gguf", rename)
    with pytest.raises(UsageError, match=r"renamed\.gguf: token 419 of the reference is 'another', and the model's '"):
        measure(reference=renamed)
    no_bos = rewritten(
        files["spm f32"], tmp_path / "bos.gguf", lambda m: m.update({"tokenizer.ggml.add_bos_token": ("bool", False)})
    )
    with pytest.raises(UsageError, match=r"bos\.gguf: the reference cuts the text into other tokens"):
        measure(reference=no_bos)
    with pytest.raises(OutputExistsError):
        measure(save_logits=file)


def _copy(path: Path, raw: bytes | bytearray) -> Path:
    path.write_bytes(raw)
    return path
