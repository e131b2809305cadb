"""Random models of published shapes, for speed and memory.  Enters: a shape; leaves: a GGUF file, or a checkpoint."""
