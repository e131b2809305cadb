"""GGUF to text.  Enters: a model file and a prompt; leaves: tokens and text, with their timings.

`llm.py` is the face; below it `models` (what an architecture computes), `engine` (when, and where in memory), `kernels`
(how), `tokenizer`, `templates` and `sampling` (from text and back).
"""
