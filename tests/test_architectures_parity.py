"""The golden logits of every architecture, computed again by transformers.  HALFBYTE_WRITE_GOLDEN writes them anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from architectures import BY_NAME, EMBEDDERS, ENCODERS, GOLDEN, Row, ids, write_checkpoint
from safetensors import safe_open

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def transformers() -> Any:
    torch = pytest.importorskip("torch", reason="the extra parity is not installed")
    torch.set_num_threads(1)
    return pytest.importorskip("transformers", reason="the extra parity is not installed")


def described(transformers: Any, folder: Path, row: Row) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Return config.json and the tensors' shapes as transformers writes them for the row."""
    model_class = getattr(transformers, row.cls)
    model_class(model_class.config_class(**(row.sizes | row.config))).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | row.edits
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    return {key: value for key, value in config.items() if value is not None or row.config.get(key, "") is None}, shapes


def computed(transformers: Any, folder: Path, row: Row) -> np.ndarray:
    """Return transformers' logits in float32 with the attention of the row, float32 [length, vocab].

    Of what embeds texts the last hidden state, float32 [length, hidden].
    """
    import torch

    model, loading = getattr(transformers, row.cls).from_pretrained(
        folder, dtype=torch.float32, attn_implementation=row.attention, local_files_only=True, output_loading_info=True
    )
    assert not any(loading.values()), loading
    with torch.inference_mode():
        if row in (*ENCODERS, *EMBEDDERS):
            return model.base_model(torch.tensor([ids(row)])).last_hidden_state[0].numpy()
        if not row.stepwise:
            return model(torch.tensor([ids(row)])).logits[0].numpy()
        cache, rows = None, []
        for token in ids(row):
            found = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            rows.append(found.logits[0, 0].numpy())
        return np.stack(rows)


@pytest.mark.parametrize("row", BY_NAME.values(), ids=lambda row: row.name)
def test_golden_logits(transformers: Any, tmp_path: Path, row: Row) -> None:
    config, shapes = described(transformers, tmp_path / "empty", row)
    write_checkpoint(tmp_path / "checkpoint", row, config, shapes)
    logits = computed(transformers, tmp_path / "checkpoint", row)
    assert 0.3 < logits.std() < 20, f"logits with a deviation of {logits.std()} show little"
    assert len(set(logits.argmax(axis=1).tolist())) > 3
    if os.environ.get("HALFBYTE_WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        tiny.write_json(GOLDEN / f"{row.name}.json", {"config": config, "tensors": shapes, "ids": ids(row)})
        np.save(GOLDEN / f"{row.name}.npy", logits)
    assert row.golden["ids"] == ids(row)
    assert row.golden["tensors"] == shapes
    np.testing.assert_allclose(logits, row.logits, rtol=0, atol=1e-4)
