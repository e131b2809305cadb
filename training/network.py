"""The sample model's network in torch.  Enters: token ids; leaves: the loss, or a checkpoint in Hugging Face layout.

A Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embedding.  Parameters have the names of
`transformers`' LlamaForCausalLM, whose logits they give (tests/test_parity_sample.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; every width of a matrix's rows is a multiple of 256, so that all block formats apply."""

    vocab: int = 2048
    hidden: int = 256
    ffn: int = 512
    layers: int = 6
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 64
    context: int = 512
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5


class Attention(nn.Module):
    """Grouped-query attention; the products are written out: compiled for a CPU, twice as fast as torch's fused one."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x: [rows, tokens, hidden]; cos, sin: [tokens, head_dim / 2]; mask: [tokens, tokens], added to the scores."""
        rows, tokens, _ = x.shape
        q, k, v = (
            projection(x).view(rows, tokens, -1, self.shape.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        groups = self.shape.heads // self.shape.kv_heads
        k, v = _rotated(k, cos, sin).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = _rotated(q, cos, sin) @ k.transpose(-1, -2) * self.shape.head_dim**-0.5 + mask
        mixed = scores.softmax(-1).to(v.dtype) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions over the halves of a head (arXiv:2104.09864, in the pairing of Hugging Face's Llama)."""
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.rms_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.rms_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Network(nn.Module):
    """The whole model; `forward` returns the mean cross entropy over the targets that are not -100."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.rms_eps)
        positions = torch.arange(shape.context).float()
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(positions, frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        future = torch.full((shape.context, shape.context), float("-inf")).triu(1)
        self.register_buffer("mask", future, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.layers) ** 0.5 if into_residual else 0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids, targets: int64 [rows, context]."""
        x = self.embed_tokens(ids)
        cos, sin, mask = (table.to(torch.bfloat16) for table in (self.cos, self.sin, self.mask))
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        logits = functional.linear(self.norm(x), self.embed_tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def load_checkpoint(network: Network, folder: Path) -> None:
    """Put the weights of `save_checkpoint` into a network of the same shape."""
    tensors = load_file(folder / "model.safetensors")
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})


def save_checkpoint(network: Network, folder: Path) -> None:
    """Write model.safetensors (bf16), config.json and generation_config.json."""
    shape = network.shape
    tensors = {
        f"model.{name}": parameter.detach().to("cpu", torch.bfloat16).contiguous()
        for name, parameter in network.named_parameters()
    }
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes for the owner only, and a wheel keeps that
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": shape.rms_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 4,
        "torch_dtype": "bfloat16",
    }
    # A model of this size knows its answers or it does not: a low temperature keeps to them.
    generation = {"bos_token_id": 0, "eos_token_id": 4, "do_sample": True, "temperature": 0.2, "top_k": 20}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
