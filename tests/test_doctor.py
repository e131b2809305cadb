"""`halfbyte doctor` on this machine, and the measurement behind it."""

import json
import os

from command_line import assert_clean_error, halfbyte

from halfbyte.bench.limits import read_bandwidth
from halfbyte.runtime.kernels.targets import TARGETS


def test_json_tells_machine_kernels_and_bandwidth(tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(1_000_000))
    record = json.loads(halfbyte("doctor", model, "--json").stdout)
    assert record["instruction_set"] in record["instruction_sets"]
    assert "portable" in record["instruction_sets"]
    assert set(record["instruction_sets"]) <= set(TARGETS)
    assert 1 <= record["default_threads"] <= record["logical_cores"] == os.cpu_count()
    assert 1e8 < record["read_bandwidth"] < 1e13
    [estimate] = record["expected_decode"]
    assert estimate == {"model_size": 1_000_000, "tokens_per_second": record["read_bandwidth"] / 1_000_000}


def test_text_names_the_forced_instruction_set_and_the_cache(tmp_path):
    environment = os.environ | {"HALFBYTE_ISA": "portable", "HALFBYTE_CACHE_DIR": str(tmp_path / "cache")}
    done = halfbyte("doctor", env=environment)
    assert done.returncode == 0, done.stderr
    assert "portable (named by HALFBYTE_ISA)" in done.stdout
    assert str(tmp_path / "cache") in done.stdout
    assert "GB/s" in done.stdout
    assert "1.00 GiB" in done.stdout


def test_mistakes_are_one_line(tmp_path):
    assert_clean_error(halfbyte("doctor", tmp_path / "absent"), 2, "absent")
    environment = os.environ | {"HALFBYTE_ISA": "z80"}
    assert_clean_error(halfbyte("doctor", env=environment), 3, "z80", "portable")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert_clean_error(halfbyte("doctor", env=os.environ | {"HALFBYTE_CACHE_DIR": str(open_to_all)}), 2, open_to_all)


def test_bandwidth_counts_the_bytes_that_were_read():
    """The rate of a small buffer is that of a cache: far above zero, far below absurd, for any number of threads."""
    for threads in (1, 2, 3):
        assert 1e8 < read_bandwidth(threads, buffer_bytes=1 << 24) < 1e13
