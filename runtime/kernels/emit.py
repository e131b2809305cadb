"""SIMD vocabulary over llvmlite: enters a Python function that computes with `Value`s, leaves an LLVM function.

A kernel is written once, as Python that runs while the code is emitted: Python loops unroll, `Emitter.loop` emits a
loop, vector width and tile height are ordinary arguments.  Addresses are 64-bit integers in bytes.  All integers are
signed unless a method says otherwise.  `Target` (target.py) supplies what differs between instruction sets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from .values import F16, F32, I8, I32, I64, POINTER, Stored, Value, Variable, is_float, vec

if TYPE_CHECKING:
    from .target import Target

CACHE_LINE = 64  # bytes that memory gives at once; where they are more, some lines are asked for twice


class Emitter:
    """Emits one function for one target."""

    def __init__(self, function: Any, target: Target):
        self.function, self.target = function, target
        self.module = function.module
        entry = function.append_basic_block("entry")
        self._allocas = ir.IRBuilder(entry)
        start = function.append_basic_block("start")
        self._entry_end = self._allocas.branch(start)
        self.b = ir.IRBuilder(start)
        self.args = [Value(self, a) for a in function.args]

    # -- constants and memory -------------------------------------------------------------------------------------

    def const(self, ty: Any, number: Any) -> Value:
        """A constant; a vector type makes a splat of one number or takes a list."""
        if isinstance(ty, ir.VectorType) and not isinstance(number, (list, tuple)):
            number = [number] * ty.count
        element = getattr(ty, "element", ty)
        if is_float(element):  # exact: through the bits of a float32
            fix = lambda x: struct.unpack("<f", struct.pack("<f", x))[0]  # noqa: E731
            number = [fix(x) for x in number] if isinstance(number, (list, tuple)) else fix(number)
        return Value(self, ir.Constant(ty, list(number) if isinstance(number, (list, tuple)) else number))

    def like(self, model: Value, x: Any) -> Value:
        """`x` itself when it is a Value, otherwise a constant of `model`'s type."""
        return x if isinstance(x, Value) else self.const(model.type, x)

    def i64(self, number: int) -> Value:
        return self.const(I64, number)

    def zero(self, ty: Any) -> Value:
        return Value(self, ir.Constant(ty, None) if isinstance(ty, ir.VectorType) else ir.Constant(ty, 0))

    def _pointer(self, address: Value) -> Any:
        return self.b.inttoptr(address.ir, POINTER)

    def load(self, address: Value, ty: Any) -> Value:
        """Read a `ty` from any byte address."""
        return Value(self, self.b.load(self._pointer(address), align=1, typ=ty))

    def store(self, value: Value, address: Value) -> None:
        """Write `value` to any byte address."""
        self.b.store(value.ir, self._pointer(address), align=1)

    def broadcast(self, address: Value, element: Any, n: int) -> Value:
        """Read one element and copy it to `n` lanes."""
        return self.load(address, element).splat(n)

    def repeated_bytes(self, address: Value, count: int, n: int) -> Value:
        """Read `count` bytes and repeat them to a vector of `n`."""
        element = ir.IntType(8 * count)
        return self.broadcast(address, element, n // count).view(vec(I8, n))

    def alloca(self, ty: Any, count: int = 1, align: int = 64) -> Any:
        """A stack slot that lives as long as the call."""
        self._allocas.position_before(self._entry_end)
        slot = self._allocas.alloca(ty, size=ir.Constant(I32, count))
        slot.align = align
        return slot

    def scratch(self, nbytes: int) -> Value:
        """Address of `nbytes` of stack memory, aligned to 64 bytes."""
        return Value(self, self.b.ptrtoint(self.alloca(I8, nbytes), I64))

    def var(self, initial: Value) -> Variable:
        return Variable(self, initial)

    def stored(self, initial: list[Value]) -> list[Stored]:
        """Locals in memory, of one type of 4-byte elements."""
        places = self.unset(initial[0].type, len(initial))
        for place, value in zip(places, initial, strict=True):
            place.set(value)
        return places

    def unset(self, ty: Any, count: int) -> list[Stored]:
        """Such locals that hold nothing yet."""
        size = 4 * getattr(ty, "count", 1)
        base = self.var(self.opaque(self.scratch(size * count)))
        return [Stored(base, size * i, ty) for i in range(count)]

    def opaque(self, x: Value) -> Value:
        """The int64 `x`, of which LLVM forgets how it was computed."""
        same = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
        return Value(self, self.b.call(same, [x.ir]))

    def settle(self, lists: Iterable[list[Value]], addresses: Sequence[Variable] = ()) -> None:
        """Compute all vectors in these lists, of one type, before what needs one of them or one of these addresses.

        LLVM may take a sum of row after row where the source takes all rows of one step after the other, and then the
        operands of all steps wait on the stack.  More vectors than there are registers settle in turns; on a CPU whose
        registers have no letter here, nothing happens.
        """
        lists, letter = list(lists), self.target.vector_letter
        if letter is None:
            return
        places = [(of_list, i) for of_list in lists for i in range(len(of_list))]
        limit = self.target.registers - 4  # some hold what else is in use
        for first in range(0, len(places), limit):
            some = places[first : first + limit]
            constraints = [letter] * len(some) + ["r"] * len(addresses)
            if len(constraints) < 2:
                continue
            values = [of_list[i].ir for of_list, i in some] + [address.value.ir for address in addresses]
            kind = ir.FunctionType(ir.LiteralStructType([v.type for v in values]), [v.type for v in values])
            same = ",".join([*(f"={c}" for c in constraints), *map(str, range(len(values)))])
            settled = self.b.call(ir.InlineAsm(kind, "", same), values)
            taken = (Value(self, self.b.extract_value(settled, i)) for i in range(len(values)))
            for of_list, i in some:
                of_list[i] = next(taken)
            for address in addresses:
                address.set(next(taken))

    def copy(self, source: Value, target: Value, ty: Any) -> None:
        """Copy one `ty` from address to address."""
        self.store(self.load(source, ty), target)

    def atomic_add(self, address: Value, amount: Value) -> Value:
        """Add to the integer at `address`; return what it was before.  Acquires and releases."""
        return Value(self, self.b.atomic_rmw("add", self._pointer(address), amount.ir, "acq_rel"))

    def compare_exchange(self, address: Value, expected: Value, new: Value) -> tuple[Value, Value]:
        """Set the integer at `address` to `new` if it is `expected`; return what it was and whether that was so.

        Acquires and releases, and is in one order with all such exchanges and fences.
        """
        pair = self.b.cmpxchg(self._pointer(address), expected.ir, new.ir, "seq_cst", "seq_cst")
        return Value(self, self.b.extract_value(pair, 0)), Value(self, self.b.extract_value(pair, 1))

    def atomic_load(self, address: Value, ty: Any) -> Value:
        return Value(self, self.b.load_atomic(self._pointer(address), "acquire", ty.width // 8, typ=ty))

    def atomic_store(self, value: Value, address: Value) -> None:
        pointer = self.b.inttoptr(address.ir, value.type.as_pointer())  # store_atomic wants to know what it points to
        self.b.store_atomic(value.ir, pointer, "release", value.type.width // 8)

    def prefetch(self, address: Value, nbytes: int = 1, write: bool = False) -> None:
        """Ask for the cache lines of `nbytes` from `address` on, which need not be valid; write: to own them."""
        ty = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
        known = self.module.globals.get("llvm.prefetch.p0") or ir.Function(self.module, ty, "llvm.prefetch.p0")
        for at in range(0, nbytes, CACHE_LINE):
            place = self._pointer(address + at if at else address)
            self.b.call(known, [place, ir.Constant(I32, int(write)), ir.Constant(I32, 3), ir.Constant(I32, 1)])

    def fence(self) -> None:
        """No memory access moves across this point, in either direction."""
        self.b.fence("seq_cst")

    # -- control --------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, start: Any, stop: Any, step: Any = 1) -> Iterator[Value]:
        """`for i in range(start, stop, step)` with int64 `i`; `step` is positive."""
        stop = stop if isinstance(stop, Value) else self.i64(stop)
        i = self.var(start if isinstance(start, Value) else self.i64(start))
        head, body, done = (self.function.append_basic_block(n) for n in ("head", "body", "done"))
        self.b.branch(head)
        self.b.position_at_end(head)
        now = i.value
        self.b.cbranch((now < stop).ir, body, done)
        self.b.position_at_end(body)
        yield now
        i.set(now + step)
        self.b.branch(head)
        self.b.position_at_end(done)

    @contextmanager
    def repeat_while(self) -> Iterator[Any]:
        """A loop whose body calls the yielded function with a condition: the loop ends where that is false."""
        body, done = (self.function.append_basic_block(n) for n in ("repeat", "done"))
        self.b.branch(body)
        self.b.position_at_end(body)

        def go_on_if(condition: Value) -> None:
            rest = self.function.append_basic_block("rest")
            self.b.cbranch(condition.ir, rest, done)
            self.b.position_at_end(rest)

        yield go_on_if
        self.b.branch(body)
        self.b.position_at_end(done)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """`if condition:`"""
        then, done = (self.function.append_basic_block(n) for n in ("then", "done"))
        self.b.cbranch(condition.ir, then, done)
        self.b.position_at_end(then)
        yield
        self.b.branch(done)
        self.b.position_at_end(done)

    def select(self, condition: Value, yes: Any, no: Any) -> Value:
        yes, no = (yes, self.like(yes, no)) if isinstance(yes, Value) else (self.like(no, yes), no)
        return Value(self, self.b.select(condition.ir, yes.ir, no.ir))

    def finish(self) -> None:
        self.b.ret_void()

    # -- calls and arithmetic -------------------------------------------------------------------------------------

    def call(self, name: str, result: Any, args: list[Value]) -> Value:
        """Call a function or LLVM intrinsic by name, declaring it on first use."""
        known = self.module.globals.get(name)
        if known is None:
            known = ir.Function(self.module, ir.FunctionType(result, [a.type for a in args]), name)
        return Value(self, self.b.call(known, [a.ir for a in args]))

    def call_address(self, address: Value, args: list[Value]) -> None:
        """Call a function `void(args...)` by its address."""
        ty = ir.FunctionType(ir.VoidType(), [a.type for a in args])
        pointer = self.b.inttoptr(address.ir, ty.as_pointer())
        self.b.call(pointer, [a.ir for a in args])

    def _overloaded(self, name: str, *args: Value) -> Value:
        ty = args[0].type
        element = getattr(ty, "element", ty)
        suffix = {F32: "f32", F16: "f16"}.get(element) or f"i{element.width}"
        prefix = f"v{ty.count}" if isinstance(ty, ir.VectorType) else ""
        return self.call(f"llvm.{name}.{prefix}{suffix}", ty, list(args))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, with one rounding where the CPU has the instruction."""
        return self._overloaded("fmuladd", a, b, c)

    def sqrt(self, x: Value) -> Value:
        return self._overloaded("sqrt", x)

    def round(self, x: Value) -> Value:
        """The nearest whole number, ties to even, as a float."""
        return self._overloaded("rint", x)

    def max(self, a: Value, b: Any) -> Value:
        """The larger of two numbers; `b` when one is NaN."""
        b = self.like(a, b)
        return self.select(a > b, a, b)

    def min(self, a: Value, b: Any) -> Value:
        """The smaller of two numbers; `b` when one is NaN."""
        b = self.like(a, b)
        return self.select(a < b, a, b)

    def reduce(self, x: Value, op: Any) -> Value:
        """Combine the elements of a vector in halves: a fixed order, the same for every batch and thread."""
        while x.lanes > 1:
            half = x.lanes // 2
            x = op(x.pick(list(range(half))), x.pick(list(range(half, 2 * half)))) if half > 1 else op(x[0], x[1])
        return x

    def any(self, x: Value) -> Value:
        """Whether any element of a vector of comparisons is true."""
        return x.view(ir.IntType(x.lanes)).differs(0)

    def sum(self, x: Value) -> Value:
        return self.reduce(x, lambda a, b: a + b)

    def largest(self, x: Value) -> Value:
        return self.reduce(x, self.max)

    def largest_magnitude(self, x: Value) -> Value:
        """The largest |element| of a float32 vector; NaN when it has one, as its bits are the largest integer."""
        return self.largest(x.view(vec(I32, x.lanes)) & 0x7FFFFFFF).view(F32)

    def exp(self, x: Value) -> Value:
        """e**x for float32, relative error below 2e-7; results under 2**-126 become 0, NaN stays.

        x = n*ln2 + r with |r| <= ln2/2 (Cody and Waite's two-part ln2), then a degree-6 Taylor-like polynomial of r,
        then n added to the exponent bits.
        """
        ty = x.type
        x_in = self.min(self.const(ty, 88.72283), self.max(self.const(ty, -87.33654), x))  # in this order NaN passes
        n = self.round(x_in * 1.4426950408889634)
        r = self.fma(n, self.const(ty, -0.693359375), x_in)
        r = self.fma(n, self.const(ty, 2.12194440e-4), r)
        p = self.const(ty, 1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = self.fma(p, r, self.const(ty, c))
        p = self.fma(p, r * r, r + 1.0)
        scale = ((n.to(I32) + 127) << 23).view(ty)
        return self.select(x < -87.33654, self.const(ty, 0.0), p * scale)
