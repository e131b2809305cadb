"""Bytes: the GGUF container, block formats, and how weights are rounded into them."""
