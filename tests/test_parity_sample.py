"""The sample model against transformers: its files' logits, its token ids, and the network that trains it."""

import dataclasses
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from tokenizers import Tokenizer

from halfbyte import LLM
from halfbyte.convert.sample_model import EVALUATION_TEXT, SAMPLE, sample_gguf

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="the extra parity is not installed")
transformers = pytest.importorskip("transformers", reason="the extra parity is not installed")

TOKENS = 512


@pytest.fixture(scope="module")
def text() -> str:
    return EVALUATION_TEXT.read_text("utf-8")


def hugging_face_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """Logits of transformers in float32 with its plain attention, float32 [len(ids), vocab]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_logits_of_the_f16_file(text: str) -> None:
    """Over the whole context.  The f16 weights are the checkpoint's; keys and values in f16 are the rest of the gap."""
    with LLM(sample_gguf("f16"), cache_type="f32") as exact, LLM(sample_gguf("f16")) as llm:
        ids = llm.tokenize(text)[:TOKENS]
        assert len(ids) == TOKENS
        want = hugging_face_logits(SAMPLE, ids)
        error, rounded = (np.abs(model.logits(ids) - want).max() for model in (exact, llm))
    print(f"largest difference of logits up to {np.abs(want).max():.0f}: {error:.1e}; with an f16 cache {rounded:.1e}")
    assert error < 1e-3
    assert rounded < 5e-2


def test_token_ids(text: str) -> None:
    source = transformers.AutoTokenizer.from_pretrained(SAMPLE, local_files_only=True)
    with LLM(sample_gguf("f16")) as llm:
        assert llm.tokenize(text) == source.encode(text)
        messages = [{"role": "user", "content": "What is halfbyte?"}]
        want = source.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        rendered = llm.chat_template().render(messages)
        assert llm.tokenize(rendered, add_special=False, parse_special=True) == want


def test_the_training_network_is_the_checkpoint_it_saves(tmp_path: Path) -> None:
    """Its loss is that of transformers' logits, up to the rounding to bf16 in training and in the file."""
    from network import Network, Shape, save_checkpoint

    torch.manual_seed(1)
    shape = Shape(vocab=256, hidden=64, ffn=96, layers=2, heads=4, kv_heads=2, head_dim=16, context=32)
    network = Network(shape)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4).add_(torch.randn_like(parameter), alpha=0.05)  # far from the start, where all is alike
    save_checkpoint(network, tmp_path)
    ids = np.random.default_rng(2).integers(0, 256, 33)
    logits = torch.from_numpy(hugging_face_logits(tmp_path, ids[:-1].tolist()))
    rows = torch.from_numpy(ids)[None]
    want = torch.nn.functional.cross_entropy(logits, rows[0, 1:]).item()
    with torch.no_grad():
        loss = network(rows[:, :-1], rows[:, 1:]).item()
    print(f"loss {loss:.4f}, from the checkpoint {want:.4f}")
    assert loss == pytest.approx(want, rel=5e-3)


def test_a_short_training_run(tmp_path: Path) -> None:
    """Learns, writes a checkpoint that converts, and gives equal losses for equal seeds."""
    from corpus import documents
    from network import Shape, save_checkpoint
    from tokenizer import save_tokenizer, train_tokenizer
    from train import Settings, read_losses, train, write_losses

    from halfbyte import convert_checkpoint

    shape = Shape(hidden=64, ffn=64, layers=1, heads=2, kv_heads=1, head_dim=32, context=64)
    settings = Settings(steps=40, rows=4, rate=1e-2, weight_decay=0.05, seed=3, device="cpu", compiled=False)

    def run() -> list[tuple[int, float, float]]:
        random = Random(settings.seed)
        tokenizer = train_tokenizer(documents.document(random) for _ in range(500))
        network, losses = train(settings, shape, tokenizer, random)
        save_tokenizer(tokenizer, tmp_path, shape.context)
        save_checkpoint(network, tmp_path)
        return losses

    losses = run()
    assert [step for step, _, _ in losses] == [20, 40]
    assert losses[1][2] < losses[0][2] < np.log(2048) + 0.5
    assert run() == losses
    on = dataclasses.replace(settings, steps=20, rate=1e-3, start=tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert train(on, shape, tokenizer, Random(4))[1][0][2] < losses[1][2]
    write_losses(losses, tmp_path)
    assert [step for step, _, _ in read_losses(tmp_path)] == [20, 40]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 2048
    convert_checkpoint(tmp_path, tmp_path / "m.gguf", "f16")
    with LLM(tmp_path / "m.gguf") as llm:
        assert llm.generate("Once", max_tokens=4, temperature=0).text
