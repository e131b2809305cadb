"""Conversions in a process of their own: memory, a kill, a full disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

CONVERT = """
import json, sys
from halfbyte import convert_checkpoint
report = convert_checkpoint(sys.argv[1], sys.argv[2], type=sys.argv[3])
print(json.dumps(report.peak_growth))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through Linux' /proc")
def test_memory_grows_by_far_less_than_the_largest_tensor(tmp_path: Path) -> None:
    """The bar is 4 x the largest tensor in float32 + 200 MB; here the embedding alone is 268 MB as float32."""
    folder = tiny.build_sparse(tmp_path / "m", rows=65536, columns=1024)
    command = [sys.executable, "-c", CONVERT, str(folder), str(tmp_path / "m.gguf"), "q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    growth = int(done.stdout)
    largest = 65536 * 1024 * 4
    assert growth <= 4 * largest + 200e6
    assert growth <= largest, f"grew by {growth / 1e6:.0f} MB: one more copy of the tensor than there should be"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system cannot kill a process at once")
def test_kill_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    folder, out = tiny.build_sparse(tmp_path / "m", rows=65536, columns=1024), tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen([sys.executable, "-c", CONVERT, str(folder), str(out / "m.gguf"), "q4_0"])
    deadline = time.monotonic() + 30
    while not any(part.stat().st_size > 1 << 20 for part in out.glob("*.part")):
        assert process.poll() is None, "the conversion ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "m.gguf").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit on file sizes")
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    folder, out = tiny.build(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
    program = limit + "from halfbyte.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "convert", folder, out / "m.gguf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert list(out.iterdir()) == []


@pytest.mark.parity
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through Linux' /proc")
def test_memory_of_torch_files(tmp_path: Path) -> None:
    """The same bar for .bin, whose map of 268 MB (four tensors) must not stay resident."""
    torch = pytest.importorskip("torch", reason="reading .bin needs torch")
    folder = tiny.build_sparse(tmp_path / "m", rows=32768, columns=1024)
    shapes = tiny.shapes(tiny.Tiny(vocab=32768, hidden=1024, heads=16, kv_heads=1, layers=1, ffn=32768, tied=True))
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 32768}
    tiny.write_json(folder / "config.json", config)
    (folder / "model.safetensors").unlink()
    torch.save({n: torch.ones(s, dtype=torch.bfloat16) for n, s in shapes.items()}, folder / "pytorch_model.bin")
    program = "import torch\n" + CONVERT
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "m.gguf"), "q4_0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 4 * 32768 * 1024 * 4 + 200e6
    assert int(done.stdout) <= 320e6
