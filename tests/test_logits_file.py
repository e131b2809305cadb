"""The file of a reference's predictions: byte by byte as llama-perplexity lays it out, and never trusted."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from halfbyte.bench.logits_file import LogitsReader, LogitsWriter, encode, file_bytes, is_logits_file
from halfbyte.errors import ModelFileError, OutputExistsError, UsageError

TOKENS = np.array([[1, 4, 2, 0, 3, 3], [2, 2, 0, 1, 4, 1]], np.int32)  # 2 chunks of 6: positions 3 and 4 are scored
N_VOCAB = 5
LOGITS = np.array(
    [[0, 1, 2, 3, 4], [10, -30, -6, -6.5, 9], [0.5, 0.5, 0.5, 0.5, 0.5], [-100, 7, -8, 2.25, 6.75]], np.float32
)


def by_hand(tokens: np.ndarray, logits: np.ndarray) -> bytes:
    """The file, value by value: header, tokens, and for each row scale, least ln p and the codes."""
    n_chunks, n_ctx = tokens.shape
    out = b"_logits_" + struct.pack("<3i", n_ctx, logits.shape[1], n_chunks)
    out += struct.pack(f"<{tokens.size}i", *tokens.ravel())
    for row in logits.tolist():
        top = max(row)
        low = max(min(row), top - 16)
        scale = (top - low) / 65535
        total = math.log(sum(math.exp(x - top) for x in row))
        out += struct.pack("<2f", scale, low - top - total)
        codes = [round((x - low) / scale) if x > low and scale else 0 for x in row]
        out += struct.pack(f"<{len(codes)}H", *codes) + b"\0\0" * (len(codes) % 2)
    return out


def written(path: Path, logits: np.ndarray = LOGITS) -> Path:
    with LogitsWriter(path, TOKENS, logits.shape[1]) as writer:
        for row in logits:
            writer.append(row[None])
    return path


@pytest.mark.parametrize("n_vocab", [5, 4])
def test_bytes_are_those_laid_out_by_hand(tmp_path: Path, n_vocab: int) -> None:
    logits = LOGITS[:, :n_vocab]
    tokens = TOKENS % n_vocab
    with LogitsWriter(tmp_path / "f", tokens, n_vocab) as writer:
        writer.append(logits[:3])
        writer.append(logits[3:])
    raw = (tmp_path / "f").read_bytes()
    assert len(raw) == file_bytes(2, 6, n_vocab) == 20 + 4 * 12 + 4 * (8 + 2 * (n_vocab + n_vocab % 2))
    expected = by_hand(tokens, logits)
    assert raw[:68] == expected[:68]
    places = 4 + n_vocab + n_vocab % 2
    ours, theirs = (np.frombuffer(b[68:], "<u2").reshape(4, places) for b in (raw, expected))
    np.testing.assert_array_equal(ours[:, 4:], theirs[:, 4:])
    heads = [np.ascontiguousarray(rows[:, :4]).view("<f4") for rows in (ours, theirs)]
    np.testing.assert_allclose(heads[0], heads[1], rtol=3e-7)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    logits = (8 * rng.standard_normal((4, 501))).astype(np.float32)
    file = written(tmp_path / "f", logits)
    assert is_logits_file(file)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    floor = exact.max(axis=1, keepdims=True) - 16
    assert (exact < floor).any()
    with LogitsReader(file) as reader:
        assert (reader.n_ctx, reader.n_vocab, reader.n_chunks) == (6, 501, 2)
        np.testing.assert_array_equal(reader.tokens, TOKENS)
        found = np.concatenate([reader.log_probabilities(i, slice(0, 2)) for i in range(2)])
        assert found.dtype == np.float32
        assert np.abs(found - np.maximum(exact, floor)).max() <= 0.5 * 16 / 65535 + 4e-6
        np.testing.assert_array_equal(reader.log_probabilities(1, slice(1, 2)), found[3:])


def test_equal_logits_have_the_scale_0() -> None:
    row = encode(np.full((1, 4), -7.5, np.float32))[0]
    assert row[4:].tolist() == [0] * 4
    np.testing.assert_allclose(row[:4].view("<f4"), [0, -math.log(4)], rtol=1e-6)


def test_nothing_is_replaced_and_nothing_unfinished_stays(tmp_path: Path) -> None:
    file = written(tmp_path / "f")
    with pytest.raises(OutputExistsError, match="f: exists already"):
        LogitsWriter(file, TOKENS, N_VOCAB)
    with pytest.raises(KeyboardInterrupt), LogitsWriter(tmp_path / "g", TOKENS, N_VOCAB) as writer:
        writer.append(LOGITS)
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="1 rows"), LogitsWriter(tmp_path / "g", TOKENS, N_VOCAB) as writer:
        writer.append(LOGITS[:3])
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(UsageError, match="absent"):
        LogitsWriter(tmp_path / "absent" / "f", TOKENS, N_VOCAB)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full: Linux has one")
def test_a_disk_that_fills_at_the_first_bytes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.open

    def full(path: Path, mode: str) -> object:
        whole(path, mode).close()
        return open("/dev/full", "wb")  # noqa: PTH123

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UsageError, match="cannot be written: No space left"):
        LogitsWriter(tmp_path / "logits", np.zeros((2, 1 << 16), np.int32), 16)  # more than is buffered
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_the_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    many = np.zeros((1 << 14, 4096), np.int32)
    with pytest.raises(UsageError, match=r"GiB of logits do not fit the disk, which has .*fewer chunks"):
        LogitsWriter(tmp_path / "f", many, 1 << 20)
    assert not list(tmp_path.iterdir())


def changed(at: int, code: str, value: float) -> bytes:
    raw = bytearray(by_hand(TOKENS, LOGITS))
    struct.pack_into("<" + code, raw, at, value)
    return bytes(raw)


FIRST_ROW, ROW = 68, 20


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "ends at byte 0; 20 are needed"),
        (by_hand(TOKENS, LOGITS)[:19], "ends at byte 19"),
        (changed(0, "H", 7), "begins with"),
        (changed(8, "i", 2), r"n_ctx at byte 8 \(0x8\): is 2; allowed are 3 to"),
        (changed(8, "i", -6), "n_ctx at byte 8 .*is -6"),
        (changed(8, "i", 7), "has 148 bytes; 2 chunks of 7 tokens"),
        (changed(12, "i", 0), "n_vocab at byte 12 .*is 0; allowed are 1"),
        (changed(12, "i", 2**31 - 1), "n_vocab"),
        (changed(16, "i", 0), "n_chunks at byte 16 .*is 0"),
        (changed(16, "i", 2**31 - 1), "has 148 bytes; 2147483647 chunks"),
        (by_hand(TOKENS, LOGITS)[:-1], "has 147 bytes"),
        (by_hand(TOKENS, LOGITS) + b"\0", "has 149 bytes; 2 chunks of 6 tokens and 5 words take 148"),
        (changed(20, "i", -1), r"token 0 at byte 20 \(0x14\): is -1; allowed are 0 to 4"),
        (changed(20 + 4 * 11, "i", 5), "token 11 at byte 64 .*is 5"),
    ],
)
def test_damaged_headers(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(ModelFileError, match=message) as raised:
        LogitsReader(tmp_path / "f")
    assert str(raised.value).startswith(str(tmp_path / "f"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, math.nan), (0, math.inf), (0, -1e-4), (0, 1.0),  # the scale
        (4, math.nan), (4, -math.inf), (4, 1000.0), (4, -1000.0), (4, 1.0),  # the least ln p
    ],
)  # fmt: skip
def test_rows_that_no_logits_give(tmp_path: Path, place: int, value: float) -> None:
    (tmp_path / "f").write_bytes(changed(FIRST_ROW + 3 * ROW + place, "f", value))
    with LogitsReader(tmp_path / "f") as reader:
        assert np.isfinite(reader.log_probabilities(1, slice(0, 1))).all()
        with pytest.raises(ModelFileError, match=r"row at byte 128 \(0x80\): log-probabilities from .* to ") as raised:
            reader.log_probabilities(1, slice(0, 2))
        assert "\n" not in str(raised.value)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    file = written(tmp_path / "f", np.zeros((4, 20001), np.float32))  # rows beyond what one read fetches
    with LogitsReader(file) as reader:
        with file.open("r+b") as again:
            again.truncate(file.stat().st_size - 1)
        with pytest.raises(ModelFileError, match="ends at byte"):
            reader.log_probabilities(1, slice(1, 2))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for what in (is_logits_file, LogitsReader):
        for path in (tmp_path / "absent", tmp_path):
            with pytest.raises(UsageError, match="cannot be read"):
                what(path)
    (tmp_path / "other").write_bytes(b"GGUF")
    assert not is_logits_file(tmp_path / "other")
