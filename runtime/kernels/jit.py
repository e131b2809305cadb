"""From emitted kernels to callable addresses.  Enters: `Kernel`s (an emitting function and its parameters); leaves: the
address of each, compiled for the host's target or loaded from the cache.

The cache folder's name is a digest of every source file of this folder, LLVM's and llvmlite's version, and the CPU's
name and features, so an edit anywhere or another machine compiles anew, and a warm start compiles nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from ..machine import default_threads
from .emit import Emitter
from .object_cache import ObjectCache
from .target import Target
from .targets import host_target
from .values import I64

if TYPE_CHECKING:
    from .helpers import Helper

_COMPILERS = 2  # threads
_LONGEST = ("matmul", "attention")  # emitters of kernels that take half a second; begun last, one core would end late
_WORTH_A_HELPER = 6  # kernels, a second's work: a helper starts within half of one

Progress = Callable[[int, int], None]  # (kernels compiled, kernels to compile)


@dataclass(frozen=True)
class Kernel:
    """A function `void(int64 x n_args)` that `emit(emitter, *params)` writes.

    Program steps have four arguments: address of the argument record, thread, threads, address of ticket counters.
    All that a step does must be drawn from those (tickets.py): any of the threads may be missing (sync.py).
    """

    emit: Callable[..., None]
    params: tuple[Any, ...] = ()
    n_args: int = 4

    @property
    def name(self) -> str:
        """A name that is unique within one version of the sources: usable as a symbol and a file name."""
        text = "_".join(str(p) for p in (self.emit.__name__, *self.params))
        return "hb_" + "".join(c if c.isalnum() else f"{ord(c):x}" if c in "-()" else "_" for c in text)


def emit_ir(kernel: Kernel, target: Target) -> str:
    """Return the LLVM IR of `kernel` for `target`, before optimisation."""
    module = ir.Module(name=kernel.name, context=ir.Context())
    module.triple = target.triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * kernel.n_args), kernel.name)
    function.attributes.add("nounwind")
    emitter = Emitter(function, target)
    kernel.emit(emitter, *kernel.params)
    emitter.finish()
    return str(module)


def _machine(target: Target) -> llvm.TargetMachine:
    _initialize(target.triple == llvm.get_process_triple())
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


@functools.cache
def _initialize(native: bool) -> None:
    """Prepare LLVM to make code for this machine, or to show that for others."""
    if native:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()


def optimized(kernel: Kernel, target: Target) -> tuple[Any, llvm.TargetMachine]:
    """Return the optimised LLVM module of `kernel` and the machine that makes code of it.

    Loops are neither unrolled nor vectorised here: the kernels say both themselves.
    """
    machine = _machine(target)
    module = llvm.parse_assembly(emit_ir(kernel, target), context=llvm.create_context())
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = False
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return module, machine


def assembly(kernel: Kernel, target: Target | None = None) -> str:
    """Return the assembly of `kernel`, for people and for tests; comments say what is a loop and what a spill."""
    module, machine = optimized(kernel, target or host_target())
    machine.set_asm_verbosity(True)
    return machine.emit_assembly(module)


def object_code(kernel: Kernel, target: Target) -> bytes:
    """Return the object code of `kernel` for `target`."""
    module, machine = optimized(kernel, target)
    code: bytes = machine.emit_object(module)
    return code


@functools.cache
def object_cache(target: Target) -> ObjectCache:
    """Return the cache of this version of the kernels on this CPU."""
    return ObjectCache(cache_version(target))


@functools.cache
def cache_version(target: Target) -> str:
    """Return the name of this version of the kernels on this CPU."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    versions = (llvmlite.__version__, llvm.llvm_version_info, target.triple)
    digest.update(repr((versions, target.name, target.cpu, target.features)).encode())
    return f"{target.name}-{digest.hexdigest()[:20]}"


class Library:
    """Kernels in memory, by `Kernel`.  Code stays loaded for as long as the library, or a function of it, lives."""

    def __init__(self, target: Target | None = None):
        self.target = target or host_target()
        self._addresses: dict[Kernel, int] = {}
        self._engines: list[Any] = []

    def missing(self, kernels: Iterable[Kernel]) -> list[Kernel]:
        """Return those of `kernels` that are neither loaded nor cached."""
        cache = object_cache(self.target)
        return [k for k in dict.fromkeys(kernels) if k not in self._addresses and not cache.has(k.name)]

    def load(self, kernels: Iterable[Kernel], progress: Progress | None = None) -> None:
        """Make every one of `kernels` callable: from memory, from the cache, or compiled now."""
        wanted = [k for k in dict.fromkeys(kernels) if k not in self._addresses]
        if not wanted:
            return
        cache = object_cache(self.target)
        objects = cache.read(k.name for k in wanted)
        absent = [k for k in wanted if k.name not in objects]
        if absent:
            self._compile_into(objects, absent, progress)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(self.target))
        for kernel in wanted:
            engine.add_object_file(llvm.ObjectFileRef.from_data(objects[kernel.name]))
        engine.finalize_object()
        self._engines.append(engine)
        for kernel in wanted:
            self._addresses[kernel] = engine.get_function_address(kernel.name)

    def _compile_into(self, objects: dict[str, bytes], absent: list[Kernel], progress: Progress | None) -> None:
        """Add the object code of `absent` to `objects`, and to the cache."""
        cache = object_cache(self.target)
        if progress:
            progress(0, len(absent))
        with contextlib.closing(self._compile(absent)) as compiled:
            for done, (name, code) in enumerate(compiled, 1):
                objects[name] = code
                cache.write(name, code)
                if progress:
                    progress(done, len(absent))

    def _compile(self, kernels: list[Kernel]) -> Generator[tuple[str, bytes], None, None]:
        """Yield name and object code of each of `kernels`, those that take longest first.

        Two threads: llvmlite lets one call at a time into LLVM, without the interpreter lock, and the other thread
        writes the next kernel meanwhile, a fifth of the work.  Where there are many kernels, helpers beside them.
        """
        from concurrent.futures import ThreadPoolExecutor  # a warm start needs it not

        kernels = sorted(kernels, key=lambda kernel: kernel.emit.__name__ not in _LONGEST)
        helpers = _start_helpers(self.target, len(kernels))
        idle = [*helpers]

        def code_of(kernel: Kernel) -> bytes:
            try:
                helper = idle.pop()
            except IndexError:
                return object_code(kernel, self.target)
            code = helper.compile(kernel)
            if code is None:
                return object_code(kernel, self.target)
            idle.append(helper)
            return code

        pool = ThreadPoolExecutor(_COMPILERS + len(helpers))
        try:
            for kernel, code in zip(kernels, pool.map(code_of, kernels), strict=True):
                yield kernel.name, code
        finally:
            for helper in helpers:
                helper.close()
            pool.shutdown(cancel_futures=True)

    def address(self, kernel: Kernel) -> int:
        """Return the address of `kernel`, loading it first if need be."""
        if kernel not in self._addresses:
            self.load([kernel])
        return self._addresses[kernel]

    def function(self, kernel: Kernel) -> Callable[..., None]:
        """Return `kernel` as a Python callable; the interpreter lock is released while it runs."""
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * kernel.n_args)(self.address(kernel))
        function.library = self  # type: ignore[attr-defined]  # who can still call it keeps its code
        return function


def _start_helpers(target: Target, n_kernels: int) -> list[Helper]:
    """Return processes that compile beside this one: one a further core, where there is enough to do for each."""
    from .helpers import Helper

    helpers: list[Helper] = []
    with contextlib.suppress(OSError):  # there is no interpreter, or no room for another process
        for _ in range(min(default_threads() - 1, n_kernels // _WORTH_A_HELPER)):
            helpers.append(Helper(target, cache_version(target)))
    return helpers


@functools.cache
def host_library() -> Library:
    """The one library of this process for the host's target."""
    return Library()
