"""The engine's logits: near the float64 oracle, and the same bits however the work is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import tiny
from gguf_models import MATRICES, SEARCHED, TYPES, VARIATIONS, Models, Tensors, integers, logits, opened, rewritten

from halfbyte.errors import UsageError
from halfbyte.runtime.engine import engine as engine_module
from halfbyte.runtime.engine.batch import N_OUTPUT_ITEMS, N_OUTPUTS, Part
from halfbyte.runtime.engine.engine import Engine
from halfbyte.runtime.engine.threads import ThreadPool
from halfbyte.runtime.kernels.jit import Library
from halfbyte.runtime.kernels.targets import make_target, runnable

RUNNABLE = runnable()
LONG = 100  # tokens: more than a page of 64 and three tiles of 32


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def tokens(n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, 400, n).tolist()


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the difference over that of `want`, each row around its own mean."""
    spread = want - want.mean(axis=1, keepdims=True)
    return float(np.sqrt(((got - want) ** 2).mean() / (spread**2).mean()))


# ---------------------------------------------------------------------------------------------------------------------
# against the oracle


@pytest.mark.parametrize("name", VARIATIONS)
def test_f32_equals_the_oracle(models: Models, name: str) -> None:
    fields, ids = VARIATIONS[name], tokens(LONG)
    with opened(models.file("f32", **fields), threads=2) as engine:
        got = logits(engine, ids)
    want = models.logits("f32", ids, **fields)
    error = np.abs(got - want).max()
    print(f"{name}: {error:.1e} of logits up to {np.abs(want).max():.0f}")
    assert error < 1e-4


def short_prompts(engine: Engine) -> tuple[list[list[int]], list[np.ndarray]]:
    """16 prompts of 8 tokens, and their logits."""
    prompts, sequence = [tokens(8, seed) for seed in range(16)], engine.new_sequence()
    found = []
    for ids in prompts:
        sequence.truncate(0)
        found.append(logits(engine, ids, sequence))
    return prompts, found


def assert_exact(engine: Engine, models: Models, types: str | dict[str, str], **fields: Any) -> None:
    """The logits are those of the oracle that rounds activations to 8 bits as the engine does.

    Where an activation lies on the border of two codes, float32 may round it to the other one, and all that follows
    in that sequence differs: then most rows are equal, not all.
    """
    prompts, found = short_prompts(engine)
    got, want = (np.concatenate(rows) for rows in (found, [models.logits(types, p, True, **fields) for p in prompts]))
    exact = np.abs(got - want).max(axis=1) < 1e-4
    plain = np.concatenate([models.logits(types, p, **fields) for p in prompts])
    some = integers(types) if isinstance(types, dict) else types in TYPES[3:]
    print(f"{types} {fields}: {exact.mean():.0%} exact, {relative_error(got, plain):.2%} from unrounded activations")
    assert exact.mean() > 0.75 if some else exact.all()


@pytest.mark.parametrize("type", TYPES)
def test_types_equal_the_oracle_on_the_same_weights(models: Models, type: str) -> None:
    for fields in ({}, {"attention_bias": True, "ffn": 172}, {"hidden": 80, "heads": 5, "kv_heads": 1, "tied": True}):
        with opened(models.file(type, **fields), cache_type="f32") as engine:
            assert_exact(engine, models, type, **fields)


@pytest.mark.parametrize("type", SEARCHED)
def test_k_and_codebook_types_equal_the_oracle(models: Models, type: str) -> None:
    """Alone, and as files mix them: more bits for values and what leaves a layer, so that one input has two readers."""
    finer = dict.fromkeys(["v_proj", "down_proj", "lm_head"], "q6_k")
    for types in (dict.fromkeys(MATRICES, type), dict.fromkeys(MATRICES, type) | finer):
        fields = {"hidden": 256, "ffn": 256, "layers": 1}
        with opened(models.mixed(types, **fields), threads=2, cache_type="f32") as engine:
            assert_exact(engine, models, types, **fields)


@pytest.mark.parametrize("seed", range(6))
def test_a_type_for_each_matrix(models: Models, seed: int) -> None:
    """One layer's matrices read the same activations in different forms."""
    choice = np.random.default_rng(seed).choice(TYPES if seed else TYPES[3:], len(MATRICES))
    types = dict(zip(MATRICES, choice.tolist(), strict=True))
    with opened(models.mixed(types), threads=2, cache_type="f32") as engine:
        assert_exact(engine, models, types)


@pytest.mark.parametrize("target", RUNNABLE)
def test_every_instruction_set(models: Models, target: str) -> None:
    library, ids = Library(make_target(target)), tokens(LONG)
    uneven = {"hidden": 35, "heads": 5, "kv_heads": 1, "head_dim": 6, "ffn": 51, "attention_bias": True}
    with opened(models.file("f32", **uneven), library) as engine:
        assert np.abs(logits(engine, ids) - models.logits("f32", ids, **uneven)).max() < 1e-4
    for type in TYPES:
        with opened(models.file(type), library, cache_type="f32") as engine:
            assert_exact(engine, models, type)


def test_scores_of_hundreds(models: Models, tmp_path: Path) -> None:
    """Sharp attention: scores far above and far below zero neither overflow nor leave a row without weight."""

    def sharpen(tensors: Tensors) -> None:
        for name, (shape, kind, data) in tensors.items():
            if name.endswith(("attn_q.weight", "attn_k.weight")):
                tensors[name] = (shape, kind, data.view(np.float32) * np.float32(16))

    spec, ids = tiny.Tiny(layers=1), tokens(LONG)
    file = rewritten(models.file("f32", layers=1), tmp_path / "m.gguf", tensors=sharpen)
    sharp = {
        n: w * (16 if n.endswith(("q_proj.weight", "k_proj.weight")) else 1) for n, w in tiny.weights(spec).items()
    }
    tiny.write_weights(tiny.build(tmp_path / "checkpoint", spec), spec, sharp)
    with opened(file) as engine:
        error = np.abs(logits(engine, ids) - oracle.llama_logits(tmp_path / "checkpoint", ids)).max()
    print(f"largest difference {error:.1e}")
    assert error < 1e-2


def test_float16_cache_rounds_keys_and_values_only(models: Models) -> None:
    ids = tokens(LONG)
    with opened(models.file("f32")) as full, opened(models.file("f32"), cache_type="f16") as half:
        assert (full.cache_type, half.cache_type) == ("f32", "f16")
        first, second = logits(full, ids), logits(half, ids)
    np.testing.assert_array_less(0, np.abs(first - second).max())
    error = relative_error(second, first)
    print(f"float16 cache: relative error {error:.1e}, largest difference {np.abs(first - second).max():.1e}")
    assert error < 1e-3
    with opened(models.file("f16")) as engine:
        assert engine.cache_type == "f16"


def test_quantized_caches_are_small_and_near(models: Models) -> None:
    """Against F16: 34/64 and 18/64 of the memory, and logits that differ by the rounding of 8 and 4 bits.

    Activations keep their digits: codes that fall to the other side would differ by as much as 8 bits in the cache do.
    """
    ids = tokens(LONG)
    found, sizes = {}, {}
    for kind in ("f16", "q8_0", "q4_0"):
        with opened(models.file("q4_0", head_dim=32), cache_type=kind, activations="f32") as engine:
            found[kind], sizes[kind] = logits(engine, ids), engine._pages.page_bytes
    assert [sizes[kind] / sizes["f16"] for kind in ("q8_0", "q4_0")] == [34 / 64, 18 / 64]
    errors = [relative_error(found[kind], found["f16"]) for kind in ("q8_0", "q4_0")]
    print(f"relative error of q8_0 {errors[0]:.1e}, of q4_0 {errors[1]:.1e}")
    assert 0 < errors[0] < 1e-2 < errors[1] < 0.2


def test_blocks_want_heads_of_a_multiple_of_8(models: Models) -> None:
    message = "cache_type is 'q8_0'; for this model's heads of 6 it must be one of f16, f32"
    with pytest.raises(UsageError, match=message), opened(models.file("f16", head_dim=6), cache_type="q8_0"):
        pass
    with opened(models.file("f16", head_dim=24), cache_type="q8_0") as engine:
        logits(engine, tokens(70))


@pytest.mark.parametrize(
    ("types", "expected"), [({}, "f32"), ({"q_proj": "q8_0"}, "f32+int8"), (dict.fromkeys(MATRICES, "q4_0"), "int8")]
)
def test_the_precision_of_activations_is_told(models: Models, types: dict[str, str], expected: str) -> None:
    with opened(models.mixed(types)) as engine:
        assert engine.activation_type == expected


# ---------------------------------------------------------------------------------------------------------------------
# the same bits


class Shared:
    """Makes every step run on all threads, and counts the steps that did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.steps = 0
        monkeypatch.setattr(engine_module, "SHARED_WORK", 0)
        run = ThreadPool.run

        def counted(pool: ThreadPool, program: np.ndarray, alone: bool = False) -> None:
            self.steps += not alone and pool.threads > 1
            run(pool, program, alone)

        monkeypatch.setattr(ThreadPool, "run", counted)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Shared:
    return Shared(monkeypatch)


@pytest.mark.parametrize("type", TYPES)
def test_split_at_every_point(models: Models, type: str, shared: Shared) -> None:
    """A prompt in two parts, on one and two threads, gives the logits of its tokens one by one."""
    ids = tokens(70)
    with opened(models.file(type)) as engine:
        one_by_one = logits(engine, ids, at_once=1)
    assert shared.steps == 0
    for threads in (1, 2, 3):
        with opened(models.file(type), threads=threads) as engine:
            sequence = engine.new_sequence()
            for cut in range(1, len(ids)) if threads < 3 else (9, 65):
                sequence.truncate(0)
                for first, end in ((0, cut), (cut, len(ids))):
                    n = min(end - first, engine.max_outputs)
                    found = engine.step([Part(sequence, ids[first:end], n)])
                    np.testing.assert_array_equal(found, one_by_one[end - n : end])
        assert shared.steps >= (0 if threads == 1 else 2)


@pytest.mark.parametrize("name", VARIATIONS)
def test_prefill_equals_decode_in_every_variation(models: Models, name: str, shared: Shared) -> None:
    file, ids = models.file("q4_0", **VARIATIONS[name]), tokens(LONG)
    with opened(file) as one, opened(file, threads=2) as two:
        np.testing.assert_array_equal(logits(two, ids), logits(one, ids, at_once=1))
    assert shared.steps


def assert_batch_equals_each_alone(file: Path, **options: Any) -> None:
    """Four sequences of different lengths: prompts in one step, then tokens of all, then decoding beside a prompt."""
    prompts = [tokens(n, seed=n) for n in (1, 7, 33, 70)]
    rest = [tokens(12, seed=100 + n) for n in range(4)]
    with opened(file, context=512, **options) as engine:
        alone = [logits(engine, a + b, at_once=1) for a, b in zip(prompts, rest, strict=True)]
    with opened(file, context=512, **options) as engine:
        sequences = [engine.new_sequence() for _ in prompts]
        found = engine.step([Part(s, p) for s, p in zip(sequences, prompts, strict=True)])
        np.testing.assert_array_equal(found, [a[len(p) - 1] for a, p in zip(alone, prompts, strict=True)])
        for i in range(10):
            found = engine.step([Part(s, r[i : i + 1]) for s, r in zip(sequences, rest, strict=True)])
            np.testing.assert_array_equal(found, [a[len(p) + i] for a, p in zip(alone, prompts, strict=True)])
        sequences[0].truncate(0)
        mixed = [
            Part(sequences[1], rest[1][10:11]),
            Part(sequences[0], prompts[0] + rest[0], outputs=3),
            Part(sequences[2], rest[2][10:12], outputs=0),
            Part(sequences[3], rest[3][10:12], outputs=2),
        ]
        want = np.concatenate([alone[1][17:18], alone[0][-3:], alone[3][80:82]])
        np.testing.assert_array_equal(engine.step(mixed), want)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_batch_equals_each_alone(models: Models, type: str, threads: int, shared: Shared) -> None:
    assert_batch_equals_each_alone(models.file(type), threads=threads)


def test_the_last_layer_works_for_logits_only(models: Models) -> None:
    """Rows that give some come first; after the last keys and values are stored, nothing is done for the others."""
    with opened(models.file("q4_0")) as engine:
        sequences = [engine.new_sequence() for _ in range(3)]
        parts = zip(sequences, ([5, 6, 7, 8, 9], [1, 2, 3], [4]), (0, 2, 1), strict=True)
        engine.step([Part(*part) for part in parts])
        inputs, calls = engine._inputs, engine._builder._calls
        assert inputs.tokens[:9].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 1]
        assert inputs.positions[:9].tolist() == [1, 2, 0, 0, 1, 2, 3, 4, 0]
        n_rows, n_outputs, n_items, n_output_items = inputs.counts
        assert (n_rows, n_outputs) == (9, 3)
        assert [row < 3 for row in inputs.items[:n_items, 0]] == [i < n_output_items for i in range(n_items)]
        stored = [i for i, (kernel, _) in enumerate(calls) if kernel.name.startswith("hb_rope_store")]
        counted = {int(record[0]) - int(inputs.counts.ctypes.data) for _, record in calls[stored[-1] + 1 :]}
        assert counted == {8 * N_OUTPUTS, 8 * N_OUTPUT_ITEMS}


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_mixed_k_types_give_the_same_bits(models: Models, activations: str, shared: Shared) -> None:
    """As files mix them, with a float and a codebook type beside them: on 1 to 3 threads, in any ubatch or batch."""
    types = dict.fromkeys(MATRICES, "q4_k") | dict.fromkeys(["v_proj", "down_proj", "lm_head"], "q6_k")
    types |= {"k_proj": "f16", "o_proj": "iq4_xs", "up_proj": "q5_k", "gate_proj": "q2_k"}
    file, ids = models.mixed(types, hidden=256, ffn=256, layers=2), tokens(LONG)
    with opened(file, activations=activations) as engine:
        one_by_one = logits(engine, ids, at_once=1)
    for threads in (1, 2, 3):
        for ubatch in (1, 5, 32, 512):
            with opened(file, threads=threads, ubatch=ubatch, activations=activations) as engine:
                found = logits(engine, ids, at_once=min(ubatch, 64))
                np.testing.assert_array_equal(found, one_by_one)
                np.testing.assert_array_equal(engine.feed(engine.new_sequence(), ids), one_by_one[-1])
        assert_batch_equals_each_alone(file, threads=threads, activations=activations)
    assert shared.steps


def test_ubatch_makes_no_difference(models: Models) -> None:
    ids, found = tokens(LONG), []
    for ubatch in (1, 7, 64, 512):
        with opened(models.file("q8_0"), ubatch=ubatch) as engine:
            assert engine.n_ubatch == min(ubatch, 256)
            found.append(engine.feed(engine.new_sequence(), ids).copy())
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_a_context_of_many_pages(models: Models, shared: Shared) -> None:
    """Positions far beyond the first page; the pages of two sequences interleave."""
    a, b = tokens(1000, seed=2), tokens(1000, seed=3)
    fields = {"context": 2048, "layers": 1}
    with opened(models.file("f32", **fields), threads=2) as engine:
        first, second = engine.new_sequence(), engine.new_sequence()
        for i in range(0, 1000, 40):
            engine.step([Part(first, a[i : i + 40]), Part(second, b[i : i + 40])])
        got = engine.step([Part(first, [7]), Part(second, [8])])
        for ids, row in ((a, got[0]), (b, got[1])):
            want = models.logits("f32", [*ids, 7 if ids is a else 8], **fields)[-1]
            assert np.abs(row - want).max() < 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# steps that cannot be


def test_a_step_beyond_its_buffers_is_refused(models: Models) -> None:
    with opened(models.file("q8_0"), ubatch=80) as engine:
        sequence = engine.new_sequence()
        for part, message in (
            (Part(sequence, tokens(81)), "81 rows and 1 outputs; allowed are 80 and 64"),
            (Part(sequence, tokens(70), outputs=65), "70 rows and 65 outputs; allowed are 80 and 64"),
            (Part(sequence, [1], outputs=2), "2 outputs of 1 tokens"),
            (Part(sequence, [1, 420]), "not all of the 420"),
            (Part(sequence, [-1]), "not all of the 420"),
        ):
            with pytest.raises(ValueError, match=message):
                engine.step([part])
            assert len(sequence) == 0
        assert np.isfinite(engine.step([Part(sequence, tokens(64), outputs=64)])).all()


def halfbyte_threads() -> list[str]:
    import threading

    return [t.name for t in threading.enumerate() if t.name.startswith("halfbyte-")]


def test_threads_end_with_the_engine(models: Models) -> None:
    """Closed, forgotten or failed: no thread stays behind with an address of freed memory."""
    import gc

    from halfbyte.quant.gguf_reader import open_gguf
    from halfbyte.runtime.options import RuntimeOptions

    with open_gguf(models.file("q8_0")) as file:
        engine = Engine(file, RuntimeOptions(threads=3))
        assert halfbyte_threads() == ["halfbyte-1", "halfbyte-2"]
        engine.close()
        assert halfbyte_threads() == []
        with pytest.raises(UsageError, match="closed"):
            engine.step([Part(engine.new_sequence(), [1])])
        engine.close()
        forgotten = Engine(file, RuntimeOptions(threads=3))
        assert len(halfbyte_threads()) == 2
        del forgotten
        gc.collect()
        assert halfbyte_threads() == []
