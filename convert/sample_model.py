"""The checkpoint that ships with the package.  Enters: a type; leaves: its GGUF file, converted once into the cache.

The file lies under a digest of the checkpoint and of the converter's sources, so that neither a new checkpoint nor a
new version of halfbyte meets an old conversion.  Its own digest lies beside it, as `sha256sum -c` reads it.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path

from ..cache import cache_folder
from ..errors import HalfbyteWarning
from ..quant.tensor_stream import Progress
from .conversion import DEFAULT_TYPE, convert_checkpoint

SAMPLE = Path(__file__).parent / "sample"
"""The checkpoint's folder, with what it is measured on."""
EVALUATION_TEXT = SAMPLE / "evaluation.txt"
QUESTIONS = SAMPLE / "questions.jsonl"

_SOURCES = Path(__file__).parent.parent


def sample_gguf(type: str = DEFAULT_TYPE, progress: Progress | None = None) -> Path:
    """Return the sample model as a GGUF file of `type`, in the cache folder."""
    return cached_conversion(SAMPLE, type, progress)


def cached_conversion(checkpoint: Path, type: str, progress: Progress | None = None) -> Path:
    """Return `checkpoint`, a Hugging Face folder, as a GGUF file of `type` in the cache folder.

    An earlier conversion is used when its bytes are those that were written; a damaged one is made anew, with a
    HalfbyteWarning.  Several processes may do this at once.  progress: as for `convert_checkpoint`, not called when
    nothing has to be converted.  Raises what `convert_checkpoint` raises.
    """
    target = cache_folder("models", conversion_key(checkpoint)) / f"{checkpoint.name}-{type.upper()}.gguf"
    damage = _damage(target)
    if damage is None:
        return target
    if target.exists():
        warnings.warn(f"{target}: {damage}; it is converted anew", HalfbyteWarning, stacklevel=2)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        convert_checkpoint(checkpoint, made, type, progress=progress)
        listed = made.with_name(_digest_file(target).name)
        listed.write_text(_digest_line(made), "utf-8")
        try:
            # The digest goes first: who finds the model finds its digest.
            listed.replace(_digest_file(target))
            made.replace(target)
        except OSError:
            if _damage(target) is not None:  # else another process was faster and runs it, which Windows guards
                raise
    return target


def conversion_key(checkpoint: Path) -> str:
    """Return 16 hexadecimal digits that change with any file of the folder `checkpoint`, and with the converter."""
    digest = hashlib.sha256()
    sources = [file for part in ("convert", "quant") for file in (_SOURCES / part).rglob("*.py")]
    for file in (*sorted(sources), *sorted(file for file in checkpoint.iterdir() if file.is_file())):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _damage(target: Path) -> str | None:
    """Return what is wrong with a conversion, None when its bytes are those that were written."""
    if not target.exists():
        return "is not there"
    try:
        return None if _digest_file(target).read_bytes() == _digest_line(target).encode() else "is damaged"
    except FileNotFoundError:
        return "has no digest beside it"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _digest_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _digest_line(file: Path) -> str:
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
