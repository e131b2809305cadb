"""What LLVM made of a kernel.  Enters: verbose assembly of x86 or ARM; leaves: instructions, the loops that hold them,
spills and calls.

Loops and spills are not guessed: LLVM notes both in its comments, where each basic block says which loop it is in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_START = re.compile(r"(?:[#;/]+ %|\.?L|%)?(BB\d+_\d+|bb\.\d+):")  # of a basic block
_HEADER = re.compile(r"=>\s*This (?:Inner )?Loop Header: Depth=")
_INSIDE = re.compile(r"(?:in Loop: Header=|Parent Loop )(BB\d+_\d+)")  # parents come outermost first
_COMMENT = re.compile(r"(?:^|\s)(?:#|//|;) ")  # an ARM constant is `#1`, without a space
_VECTOR = re.compile(r"%[xyz]mm\d|\b[qdvsbh]\d+\b")
_PREFIX = re.compile(r"^(\{\w+\}|lock|rep)\s+")
_LANES = re.compile(r"\.\d+[bhsd]$")  # of Apple's spelling: smmla.4s
_REGISTER = re.compile(r"(?:%[xyz]mm|\b[vqdsbh])(\d+)\b")  # of vectors; each number is one, whatever its width
_MOVE = re.compile(r"v?mov(ap[sd]|dq[au](\d+)?|up[sd])?|zip[12]|uzp[12]|trn[12]|ext|v?p?unpck\w+|v?p?shuf\w+|v?perm\w+")
_JUMP = re.compile(r"j[a-z]+|b|b\.[a-z]+|cbn?z|tbn?z")


@dataclass(frozen=True)
class Instruction:
    mnemonic: str
    operands: str
    note: str  # LLVM's comment

    @property
    def spills(self) -> bool:
        """Whether it moves a vector between a register and the place on the stack that LLVM had to give it."""
        return bool(re.search("Spill|Reload", self.note)) and bool(_VECTOR.search(self.operands))

    @property
    def writes(self) -> list[str]:
        """The numbers of the vector registers that it writes."""
        if re.match(r"st(r|ur|n?p|[1-4])|f?cmpe?$|v?u?comis|v?p?test", self.mnemonic) or not self.operands:
            return []
        fields = re.split(r",\s*(?![^(\[{]*[)\]}])", self.operands)
        if "%" in self.operands:  # AT&T's order: the target comes last
            return _REGISTER.findall(fields[-1]) if re.match("%", fields[-1]) else []
        return _REGISTER.findall(",".join(fields[: 2 if self.mnemonic == "ldp" else 1]))

    @property
    def vectors(self) -> list[str]:
        """The numbers of the vector registers that it names."""
        return _REGISTER.findall(self.operands)

    @property
    def moves(self) -> bool:
        """Whether it does no more than bring lanes of registers to other places."""
        return not re.search(r"\(|\[(x|sp)", self.operands) and bool(_MOVE.fullmatch(self.mnemonic))

    @property
    def calls(self) -> str | None:
        """The name of the function that it goes to, "a pointer" when that is a register's, None when to none."""
        if re.fullmatch("callq?|blr?", self.mnemonic):
            return "a pointer" if re.match(r"[*x]", self.operands) else self.operands.lstrip("_")
        leaves = _JUMP.fullmatch(self.mnemonic) and not re.search(r"L?BB\d+_\d+$|^\*", self.operands)
        return self.operands.split()[-1].lstrip("_") if leaves else None


@dataclass
class Loop:
    """A loop without those inside it.  order: its place among the loops of the source, whatever LLVM made of them."""

    header: str
    order: int
    parent: Loop | None
    instructions: list[Instruction] = field(default_factory=list)

    def matching(self, pattern: str) -> list[Instruction]:
        return [i for i in self.instructions if re.fullmatch(pattern, i.mnemonic)]

    @property
    def spills(self) -> list[Instruction]:
        """What it writes to the stack for want of registers."""
        return [i for i in self.instructions if i.spills and "Spill" in i.note]

    def makers(self, spill: Instruction) -> list[str]:
        """The mnemonics of what computed the vectors that `spill` writes, in this turn of the loop or the last one.

        Copies, lanes that change places, and what was spilled before lead to what they were made of.
        """
        at = next(k for k, i in enumerate(self.instructions) if i is spill)
        return [maker for number in spill.vectors for maker in self._makers(number, at, frozenset())]

    def _makers(self, number: str, at: int, seen: frozenset[int]) -> list[str]:
        """Of register `number` before instruction `at`; seen: instructions that led here."""
        before = [*range(at - 1, -1, -1), *range(len(self.instructions) - 1, at, -1)]
        for k in before:
            i = self.instructions[k]
            if number not in i.writes:
                continue
            if k in seen:
                return []
            if "Reload" in i.note and not i.note.count("Folded"):
                slot = re.search(r"-?\d*\(%\w+\)|\[sp[^\]]*\]", i.operands)
                stores = [
                    s for s, j in enumerate(self.instructions) if "Spill" in j.note and slot and slot[0] in j.operands
                ]
                return [m for s in stores for n in self.instructions[s].vectors for m in self._makers(n, s, seen | {k})]
            if not i.moves:
                return [i.mnemonic]
            return [m for n in set(i.vectors) for m in self._makers(n, k, seen | {k})]
        return []


@dataclass(frozen=True)
class Listing:
    """A function: all of its instructions, and its loops in the order of their headers."""

    instructions: list[Instruction]
    loops: list[Loop]

    @property
    def calls(self) -> set[str]:
        return {name for i in self.instructions if (name := i.calls)}


def read(text: str) -> Listing:
    """Take the assembly of one function apart."""
    blocks = [(start, "\n".join(notes), code) for start, notes, code in _blocks(text)]
    loops = {start: Loop(start, _order(notes), None) for start, notes, _ in blocks if _HEADER.search(notes)}
    for start, notes, code in blocks:
        around = [loops[name] for name in _INSIDE.findall(notes)]
        innermost = around[-1] if around else None
        if start in loops:
            loops[start].parent, innermost = innermost, loops[start]
        if innermost:
            innermost.instructions += code
    return Listing([i for _, _, code in blocks for i in code], list(loops.values()))


def _order(notes: str) -> int:
    """The number in the name that `Emitter.loop` gave a loop's first block, such as %body.12."""
    number = re.search(r"%body(?:\.(\d+))?", notes)
    return int(number[1] or 0) if number else 0


def _blocks(text: str) -> Iterator[tuple[str, list[str], list[Instruction]]]:
    """Yield each basic block: its name, LLVM's comments on it, its instructions."""
    name, notes, code = "", [], []
    for line in text.splitlines():
        if start := _START.match(line):
            yield name, notes, code
            name, notes, code = start[1], [], []
            line = line[start.end() :]
        words, *comment = _COMMENT.split(line, maxsplit=1)
        if not words.strip() and comment:
            notes.append(comment[0])
        elif words.startswith("\t") and words[1] not in ".#;/":
            mnemonic, _, operands = _PREFIX.sub("", words.strip()).partition("\t")
            code.append(Instruction(_LANES.sub("", mnemonic), operands, comment[0] if comment else ""))
    yield name, notes, code
