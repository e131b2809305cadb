"""Kernels as Python functions that emit LLVM IR.  Enters: shapes and types; leaves: addresses of compiled functions.

`emit.py` is the vocabulary, `targets.py` the instruction sets, `jit.py` the compiler and its cache; the other files are
the kernels.  The only folder that imports llvmlite.
"""
