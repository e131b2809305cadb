"""What kernels compute with.  Enters: LLVM values; leaves: `Value`s with Python's operators, and mutable locals.

The `Emitter` (emit.py) makes them, and they add their instructions to what it emits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir

if TYPE_CHECKING:
    from .emit import Emitter

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
POINTER = ir.PointerType()


def vec(element: ir.Type, n: int) -> ir.Type:
    """Return the vector type <n x element>, or `element` itself for n = 1."""
    return ir.VectorType(element, n) if n > 1 else element


def is_float(ty: ir.Type) -> bool:
    return isinstance(getattr(ty, "element", ty), (ir.FloatType, ir.HalfType))


class Value:
    """An LLVM value with Python's operators.  Python numbers become constants of the other operand's type."""

    __slots__ = ("e", "ir")

    def __init__(self, e: Emitter, value: Any):
        self.e, self.ir = e, value

    @property
    def type(self) -> Any:
        return self.ir.type

    @property
    def lanes(self) -> int:
        """Number of vector elements (1 for a scalar)."""
        return getattr(self.ir.type, "count", 1)

    def _binary(self, other: Any, int_op: str, float_op: str | None = None, swap: bool = False) -> Value:
        a, b = self.ir, self.e.like(self, other).ir
        op = float_op if is_float(a.type) else int_op
        assert op is not None, f"{int_op} has no float form"
        if swap:
            a, b = b, a
        return Value(self.e, getattr(self.e.b, op)(a, b))

    def __add__(self, o: Any) -> Value:
        return self._binary(o, "add", "fadd")

    __radd__ = __add__

    def __sub__(self, o: Any) -> Value:
        return self._binary(o, "sub", "fsub")

    def __rsub__(self, o: Any) -> Value:
        return self._binary(o, "sub", "fsub", swap=True)

    def __mul__(self, o: Any) -> Value:
        return self._binary(o, "mul", "fmul")

    __rmul__ = __mul__

    def __truediv__(self, o: Any) -> Value:
        return self._binary(o, "", "fdiv")

    def __rtruediv__(self, o: Any) -> Value:
        return self._binary(o, "", "fdiv", swap=True)

    def __floordiv__(self, o: Any) -> Value:
        """Division of non-negative integers."""
        return self._binary(o, "udiv")

    def __mod__(self, o: Any) -> Value:
        """Remainder of non-negative integers."""
        return self._binary(o, "urem")

    def __and__(self, o: Any) -> Value:
        return self._binary(o, "and_")

    def __or__(self, o: Any) -> Value:
        return self._binary(o, "or_")

    def __xor__(self, o: Any) -> Value:
        return self._binary(o, "xor")

    def __lshift__(self, o: Any) -> Value:
        return self._binary(o, "shl")

    def __rshift__(self, o: Any) -> Value:
        """Logical shift: zeros enter from the left."""
        return self._binary(o, "lshr")

    def __neg__(self) -> Value:
        return Value(self.e, self.e.b.fneg(self.ir) if is_float(self.type) else self.e.b.neg(self.ir))

    def _compare(self, op: str, other: Any) -> Value:
        b, o = self.e.b, self.e.like(self, other).ir
        if is_float(self.type):
            return Value(self.e, b.fcmp_ordered(op, self.ir, o))
        return Value(self.e, b.icmp_signed(op, self.ir, o))

    def __lt__(self, o: Any) -> Value:
        return self._compare("<", o)

    def __le__(self, o: Any) -> Value:
        return self._compare("<=", o)

    def __gt__(self, o: Any) -> Value:
        return self._compare(">", o)

    def __ge__(self, o: Any) -> Value:
        return self._compare(">=", o)

    def equals(self, o: Any) -> Value:
        return self._compare("==", o)

    def differs(self, o: Any) -> Value:
        return self._compare("!=", o)

    # -- changes of type ------------------------------------------------------------------------------------------

    def to(self, element: Any) -> Value:
        """Convert each element to `element` by value: sign-extends, truncates, rounds (float to int: toward zero)."""
        want = vec(element, self.lanes)
        b, have = self.e.b, getattr(self.type, "element", self.type)
        if have == element:
            return self
        if is_float(have) and is_float(element):
            if element == F16:
                return self.e.target.to_half(self)
            return self.e.target.from_half(self)
        if is_float(have):
            return Value(self.e, b.fptosi(self.ir, want))
        if is_float(element):
            return Value(self.e, b.sitofp(self.ir, want))
        return Value(self.e, b.sext(self.ir, want) if element.width > have.width else b.trunc(self.ir, want))

    def zext(self, element: Any) -> Value:
        """Widen each integer element with zeros."""
        return Value(self.e, self.e.b.zext(self.ir, vec(element, self.lanes)))

    def view(self, ty: Any) -> Value:
        """The same bits as type `ty`."""
        return Value(self.e, self.e.b.bitcast(self.ir, ty))

    def splat(self, n: int) -> Value:
        """A vector of `n` copies of this scalar."""
        if n == 1:
            return self
        undefined = ir.Constant(vec(self.type, n), ir.Undefined)
        one = self.e.b.insert_element(undefined, self.ir, ir.Constant(I32, 0))
        return Value(self.e, self.e.b.shuffle_vector(one, undefined, ir.Constant(vec(I32, n), [0] * n)))

    def pick(self, indices: list[int], other: Value | None = None) -> Value:
        """The elements `indices` of this vector (and, from `lanes` on, of `other`) as a new vector."""
        if len(indices) == 1:
            return self[indices[0]]
        second = other.ir if other is not None else ir.Constant(self.type, ir.Undefined)
        mask = ir.Constant(vec(I32, len(indices)), indices)
        return Value(self.e, self.e.b.shuffle_vector(self.ir, second, mask))

    def __getitem__(self, index: int) -> Value:
        return Value(self.e, self.e.b.extract_element(self.ir, ir.Constant(I32, index)))


class Variable:
    """A mutable local: `.value` reads it, `.set` writes it (LLVM keeps it in a register)."""

    def __init__(self, e: Emitter, initial: Value):
        self.e, self._type = e, initial.type
        self._slot = e.alloca(initial.type)
        self.set(initial)

    @property
    def value(self) -> Value:
        return Value(self.e, self.e.b.load(self._slot, typ=self._type))

    def set(self, value: Value) -> None:
        self.e.b.store(value.ir, self._slot)

    def more(self, initial: list[Value]) -> list[Variable]:
        """Locals of the same kind."""
        return [Variable(self.e, value) for value in initial]


class Stored:
    """A mutable local that stays in memory, for registers are needed elsewhere (`Emitter.stored`)."""

    def __init__(self, base: Variable, offset: int, ty: Any):
        self._base, self._offset, self._type = base, offset, ty

    @property
    def value(self) -> Value:
        return self._base.e.load(self._base.value + self._offset, self._type)

    def set(self, value: Value) -> None:
        base = self._base.value
        value.e.store(value, base + self._offset)
        self._base.set(value.e.opaque(base))  # LLVM shall not find a register for what was just written

    def more(self, initial: list[Value]) -> list[Stored]:
        """Locals of the same kind."""
        return self._base.e.stored(initial)


Local = Variable | Stored
