"""openvino-genai in the comparison computes what it is asked for: its tokens are the model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from gguf_models import opened

from halfbyte import convert_checkpoint
from halfbyte.bench.peers.base import Files
from halfbyte.bench.peers.engines import ENGINES
from halfbyte.runtime.engine.batch import Part

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    source = tiny.build(folder / "checkpoint", tokenizer="qwen2", hidden=128, ffn=256, layers=2)
    return convert_checkpoint(source, folder / "m.gguf", "f16").path


def greedy(model: Path, ids: list[int], n: int) -> list[int]:
    with opened(model) as engine:
        sequence, out = engine.new_sequence(), []
        while len(out) < n:
            [row] = engine.step([Part(sequence, out[-1:] or ids, outputs=1)])
            out.append(int(np.argmax(row)))
    return out


def test_its_tokens_are_those_of_the_model(model: Path) -> None:
    """Prompts of two sequences, tokens behind them, and a prompt behind a part of what was there."""
    random = np.random.default_rng(0)
    first, more = random.integers(3, 400, (2, 50)).tolist(), random.integers(3, 400, (2, 40)).tolist()
    peer = ENGINES["openvino-genai"].adapter_class().load(Files(model, None), threads=2, context=256, sequences=2)
    try:
        heads = []
        for rows, kept in ((first, 0), (more, 32), (more, 32)):
            peer.feed(*rows)
            for _ in range(8):
                peer.feed([0], [0])
            n = kept + len(rows[0])
            for held, row in zip(peer._held, rows, strict=True):
                assert held[kept + 1 : n].tolist() == row[1:]
                assert held[n:].tolist() == greedy(model, held[:n].tolist(), 9)
            heads.append(peer._held[0][kept])
            peer.truncate(32)
        assert heads[1] != heads[2], "the second time it would be the cache's"
        peer.truncate(0)
        peer.feed([7])  # one of them only, and then both
        assert peer._held[0][1:].tolist() == greedy(model, peer._held[0][:1].tolist(), 1)
        peer.feed(*more)
        assert [len(held) for held in peer._held] == [42, 41]
        for held in peer._held:
            assert held[-1:].tolist() == greedy(model, held[:-1].tolist(), 1)
    finally:
        peer.close()


def test_it_knows_its_vocabulary(model: Path) -> None:
    peer = ENGINES["openvino-genai"].adapter_class().load(Files(model, None), threads=1, context=64, sequences=1)
    with opened(model) as engine:
        assert peer.n_vocab == engine.model.n_vocab
    peer.close()
