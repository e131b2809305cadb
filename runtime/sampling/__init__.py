"""From logits to a token: the options (`params`), the samplers in order (`chain`), and both together (`sampler`)."""

from .params import SamplingParams
from .sampler import NonFiniteLogitsError, Sampler

__all__ = ["NonFiniteLogitsError", "Sampler", "SamplingParams"]
