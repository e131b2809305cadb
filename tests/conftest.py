"""Models that several test files run: converted once a session from the checkpoints that tiny.py builds."""

import signal

import pytest
import tiny

from halfbyte import convert_checkpoint

# A shell that starts a script in the background lets it ignore Ctrl-C, and every process below it: tests send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """A tiny random Llama in Q8_0 with a ChatML template and a context of 256 tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    convert_checkpoint(tiny.build(folder / "checkpoint"), folder / "tiny.gguf", "q8_0")
    return folder / "tiny.gguf"


@pytest.fixture(scope="session")
def no_template_gguf(tmp_path_factory):
    """The same without a chat template, and with a context of 4096 tokens."""
    folder = tmp_path_factory.mktemp("plain")
    checkpoint = tiny.build(folder / "checkpoint", chat_template=None, context=4096)
    convert_checkpoint(checkpoint, folder / "plain.gguf", "q8_0")
    return folder / "plain.gguf"
