"""Show the token ids of a text: MODEL TEXT.

One line a token, its id and what it adds to the text.  Without TEXT, or with "-", the text is read from standard input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import printable
from . import _options

if TYPE_CHECKING:
    from ..runtime.tokenizer import Tokenizer


def main(argv: list[str]) -> int:
    """Run `halfbyte tokenize`."""
    parser = _options.command_parser("tokenize", __doc__, "MODEL [TEXT]")
    _options.add_model(parser)
    parser.add_argument("--no-bos", action="store_true", help="do not add the special tokens that the model asks for")
    parser.add_argument("--parse-special", action="store_true", help="read <s> and the like in TEXT as special tokens")
    parser.add_argument("--json", action="store_true", help="print a JSON list of id and piece (bytes, if not UTF-8)")
    arguments = parser.parse_intermixed_args(argv)
    model, word = _options.model_and_word(arguments, "TEXT")
    text = _options.text_or_input(word, "TEXT")

    from ..runtime.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(text, add_special=not arguments.no_bos, parse_special=arguments.parse_special)
    pairs = [(token, _piece(tokenizer, token)) for token in ids]
    if arguments.json:
        from ..bench.report import json_text

        print(json_text([{"id": token, "piece": _text_or_bytes(piece)} for token, piece in pairs], indent=None))
    else:
        for token, piece in pairs:
            print(f"{token:6} -> '{printable(piece.decode('utf-8', 'backslashreplace'))}'")
    return 0


def _piece(tokenizer: Tokenizer, token: int) -> bytes:
    """Return what the token adds to the text, or the name of a token that adds nothing."""
    return tokenizer.token_bytes(token) or tokenizer.token_text(token).encode()


def _text_or_bytes(piece: bytes) -> str | list[int]:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
