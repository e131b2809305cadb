"""Helpers of the converter's tests: convert, read the result with the gguf package, run a command, expect a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny

from halfbyte import cli, convert_checkpoint


def converted(folder: Path, type: str = "f32", **fields: Any) -> tuple[tiny.Tiny, Path]:
    """Build Tiny(**fields) under `folder`, convert it to one format, and return what it is and the file."""
    spec = tiny.Tiny(**fields)
    convert_checkpoint(tiny.build(folder / "checkpoint", spec), folder / "m.gguf", type=type, pure=True)
    return spec, folder / "m.gguf"


def metadata(file: Path) -> dict[str, Any]:
    """Return key -> value as the gguf package reads them, arrays as lists."""
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


def convert_folder(folder: Path) -> Path:
    """Convert `folder` into a file beside it and return the file."""
    out = folder.parent / f"{folder.name}.gguf"
    convert_checkpoint(folder, out, type="f16", force=True)
    return out


def tokenizer_keys(file: Path) -> dict[str, Any]:
    """Return the metadata under "tokenizer.", without that word."""
    found = metadata(file).items()
    return {key.removeprefix("tokenizer."): value for key, value in found if key.startswith("tokenizer.")}


def edit(file: Path, change: Callable[[Any], object]) -> None:
    """Apply `change` to the content of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refused(folder: Path, error: type[Exception], *said: str, **options: Any) -> None:
    """Assert that converting `folder` raises one clear line with these words and leaves nothing."""
    out = folder.parent / "out" / "m.gguf"
    out.parent.mkdir(exist_ok=True)
    with pytest.raises(error) as raised:
        convert_checkpoint(folder, out, **options)
    message = str(raised.value)
    for words in said:
        assert words in message
    assert "\n" not in message
    assert list(out.parent.iterdir()) == []


def run_command(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of `halfbyte ARGV`, run in this process."""
    code = cli.main([*map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def mistake(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> str:
    """Run a command that must fail with `code` and one line; return the line."""
    found, out, err = run_command(capsys, *argv)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err
