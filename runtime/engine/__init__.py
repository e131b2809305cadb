"""Running a model's program.  Enters: a table of kernel calls and a batch of tokens; leaves: logits.

Threads, buffers and the paged KV cache live here; nothing here knows an architecture or an instruction set.
"""
