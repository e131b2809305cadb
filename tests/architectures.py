"""The tables of architectures that are tested, and what is made of a row: a tiny random checkpoint, and the logits that
transformers computes for it.

A row, one for each architecture or several where it has branches, stands in architecture_rows/.  Its golden files,
tests/golden/archs/NAME.json and NAME.npy, hold config.json, names and shapes of the tensors, token ids and logits, so
that only the parity test needs transformers.  It writes them anew where HALFBYTE_WRITE_GOLDEN is set:

    HALFBYTE_WRITE_GOLDEN=1 python -m pytest -m parity tests/test_architectures_parity.py -k NAME
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from architecture_rows import embedders, encoders, experts, gemma_phi, gpt, llama
from architecture_rows.row import GOLDEN, VOCAB, Row

ROWS = (*llama.ROWS, *experts.ROWS, *gemma_phi.ROWS, *gpt.ROWS)
ENCODERS = encoders.ROWS
EMBEDDERS = embedders.ROWS

__all__ = [
    "BY_NAME", "EMBEDDERS", "ENCODERS", "GOLDEN", "ROWS", "VOCAB", "Row", "build", "ids", "weights", "write_checkpoint",
]  # fmt: skip
DOCUMENT = Path(__file__).parent.parent / "docs" / "architectures.md"

BY_NAME = {row.name: row for row in (*ROWS, *ENCODERS, *EMBEDDERS)}


def ids(row: Row) -> list[int]:
    """Return the prompt's token ids: plain tokens, no special ones."""
    return np.random.RandomState(zlib.crc32(row.name.encode())).randint(3, VOCAB, row.length).tolist()


def weights(row: Row, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Return float32 tensors, each from its name and shape alone.

    Matrices are N(0, 1 / columns) and those of a row for each token N(0, 1/16), so that logits have a deviation near
    2; vectors named weight lie around `center`, all others around 0.  A bias that is forgotten shows.
    """
    found = {}
    for name, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(f"{row.name} {name}".encode())).standard_normal(shape)
        if len(shape) < 2:
            value = 0.2 * noise + (row.center if name.endswith("weight") else 0.0)
        else:
            value = noise * (0.25 if VOCAB in shape[:1] else shape[-1] ** -0.5)
        found[name] = value.astype(np.float32)
    return found


def build(folder: Path, row: Row, **config: Any) -> Path:
    """Write the row's checkpoint from its golden file; `config`: further keys of config.json."""
    write_checkpoint(folder, row, row.golden["config"] | config, row.golden["tensors"])
    return folder


def write_checkpoint(folder: Path, row: Row, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """Write config.json, random tensors of these shapes, and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_json(folder / "config.json", config)
    tiny.write_tokenizer(folder, tiny.Tiny(chat_template=None))
    tiny.write_safetensors(folder / "model.safetensors", weights(row, shapes), "f32")


_HEAD = (
    "| class in config.json | general.architecture | variations | converts | equals `transformers` | runs llama.cpp's "
    "file with the same tokens | llama.cpp runs ours |\n|---|---|---|---|---|---|---|"
)


def document() -> str:
    """Return docs/architectures.md: what the tables say of each class."""
    lines = [
        "# Architectures", "",
        "Generated from `tests/architecture_rows` by `HALFBYTE_WRITE_GOLDEN=1 pytest tests/test_architectures.py`.",
        "Each variation is a tiny random checkpoint. It is converted, and its logits in F32 lie within 0.001 of those",
        "of `transformers` (more where the row says so); the same tokens one by one give the same bits. llama.cpp",
        "loads our file in F32 and Q8_0, and picks the same tokens wherever the choice is not closer than rounding; a",
        "file that its own quantizer wrote runs here in the same way. Where llama.cpp computes something else, its",
        "quantizer's file gives here what our own Q8_0 gives, bit for bit.", "", _HEAD, *_described(ROWS), "",
        "Encoders: the rows of the last layer lie within 0.001 of the last hidden state of `transformers`, and texts",
        "in one step give the same bits as each alone. llama.cpp loads our file in F32 and F16, and the cosine of its",
        "embeddings and ours is above 0.9999; of its quantizer's Q8_0 above 0.999.", "", _HEAD, *_described(ENCODERS),
        "", "Decoders that embed texts, whose checkpoints have no matrix for logits: compared in the same way, and",
        "pooled as the files of sentence-transformers beside them say.", "", _HEAD, *_described(EMBEDDERS), "",
        "How positions are rotated: [rotary-positions.md](rotary-positions.md).",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _described(table: tuple[Row, ...]) -> list[str]:
    """Return a line for each class of models in `table`."""
    from halfbyte.convert.archs import supported_architectures

    lines = []
    for cls, architecture in supported_architectures().items():
        rows = [row for row in table if row.class_name == cls]
        if not rows:
            continue
        close = [f"{row.name} within {row.tolerance:g}" for row in rows if row.tolerance > 1e-3]
        peers = [f"not {row.name}: it {row.no_peer}" for row in rows if row.no_peer]
        files = [
            f"not {row.name}: its quantizer {row.no_file}" if row.no_file else f"{row.name} with ours"
            for row in rows
            if row.no_peer
        ]
        cells = [f"`{cls}`", f"`{architecture}`", ", ".join(row.name for row in rows), "yes"]
        cells += ["; ".join(["yes", *found]) for found in (close, files, peers)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
