"""One row of the tables of architectures: a tiny variation of a model, and what its golden files hold."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden" / "archs"
VOCAB = 420  # ids of tiny's SentencePiece tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One tested variation of an architecture.

    name       of the golden files
    cls        Hugging Face's class of models, in config.json too unless `edits` say otherwise
    config     keywords of its configuration, over SIZES
    edits      keys of config.json set after transformers wrote it, None removes: the layout of older files, as read
               by transformers and by the converter alike
    center     around which vectors named weight lie: 1, or 0 for norms that add 1 themselves
    length     tokens of the prompt
    context    positions that the engines have room for; 0: the model's own
    tolerance  of logits beside transformers, absolute
    stepwise   transformers is fed one token at a time: its dynamic rope is another when it sees more at once
    no_peer    why llama.cpp computes something else; empty where it is compared
    no_file    why llama.cpp's quantizer writes no file of it
    attention  transformers' implementation of it
    sizes      what `config` is over
    """

    name: str
    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    edits: dict[str, Any] = field(default_factory=dict)
    center: float = 1.0
    length: int = 20
    context: int = 0
    stepwise: bool = False
    tolerance: float = 1e-3
    no_peer: str = ""
    no_file: str = ""
    attention: str = "eager"
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)

    @property
    def class_name(self) -> str:
        """What config.json has under "architectures"."""
        return self.edits.get("architectures", [self.cls])[0]

    @cached_property
    def golden(self) -> dict[str, Any]:
        """config, tensors (name -> shape) and ids."""
        return json.loads((GOLDEN / f"{self.name}.json").read_text(encoding="utf-8"))

    @property
    def logits(self) -> np.ndarray:
        """What transformers computes, float32 [length, vocab]; of an encoder the last hidden state [length, hidden]."""
        return np.load(GOLDEN / f"{self.name}.npy")


# Rope kinds that several families are tested with.
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10000.0}
NO_DYNAMIC = "rotates plainly beyond the context that dynamic rope scaling begins at"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
