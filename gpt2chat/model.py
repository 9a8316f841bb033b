"""GPT-2: sizes, key/value cache and network, in one sitting.

Shapes: B batch, T tokens of this call, S tokens seen so far (cached ones included), C = n_embd, H heads,
D = C / H, L layers, V = vocab_size. Parameter names are the released ones, so that loading is a copy;
linear weights are stored (out, in), the transpose of the released (in, out).
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2chat.errors import ConfigError, ContextError


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2. Raises ConfigError for shapes that cannot be built."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_ctx: int = 1024
    vocab_size: int = 50257
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.0
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        for field in ("n_layer", "n_head", "n_embd", "n_ctx", "vocab_size"):
            value = getattr(self, field)
            if type(value) is not int or not 0 < value <= 1 << 20:
                raise ConfigError(f"{field}: expected a whole number from 1 to {1 << 20}, got {value!r}")
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd: expected a multiple of n_head ({self.n_head}), got {self.n_embd}")
        for field in ("dropout", "layer_norm_epsilon"):
            if type(getattr(self, field)) not in (int, float):
                raise ConfigError(f"{field}: expected a number, got {getattr(self, field)!r}")
        if type(self.tie_word_embeddings) is not bool:
            raise ConfigError(f"tie_word_embeddings: expected true or false, got {self.tie_word_embeddings!r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: expected 0 <= dropout < 1, got {self.dropout!r}")
        if not 0 < self.layer_norm_epsilon < 1:
            raise ConfigError(f"layer_norm_epsilon: expected a small positive number, got {self.layer_norm_epsilon!r}")

    def to_dict(self) -> dict[str, int | float]:
        """Return plain numbers for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> GPT2Config:
        """Rebuild a config from `to_dict`; raises ConfigError for unknown or missing fields."""
        names = {field.name for field in fields(cls)}
        data = {"tie_word_embeddings": True, **data}  # older files do not say so
        if set(data) != names:
            raise ConfigError(f"model config: expected the fields {sorted(names)}, got {sorted(data)}")
        if not all(type(value) in (int, float, bool) for value in data.values()):
            raise ConfigError(f"model config: expected numbers, got {dict(data)!r}")
        return cls(**data)  # type: ignore[arg-type]


def parameter_count(config: GPT2Config) -> int:
    """Return the number of weights."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def weight_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights by name, in the order of the state dict, without building the network."""
    c = config.n_embd
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, c), "wpe.weight": (config.n_ctx, c)}
    layer: dict[str, tuple[int, ...]] = {
        "ln_1": (c,),
        "attn.c_attn": (3 * c, c),
        "attn.c_proj": (c, c),
        "ln_2": (c,),
        "mlp.c_fc": (4 * c, c),
        "mlp.c_proj": (c, 4 * c),
    }
    parts = {f"h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in layer.items()} | {"ln_f": (c,)}
    for name, shape in parts.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes if config.tie_word_embeddings else {**shapes, "lm_head.weight": (config.vocab_size, c)}


MODEL_SIZES = {
    "gpt2-small (124M)": GPT2Config(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium (355M)": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large (774M)": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl (1558M)": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}


class KVCache:
    """Keys and values of the tokens seen so far; owned by whoever decodes.

    `keys[l]` and `values[l]` are (B, H, n_ctx, D), allocated once. The model sets `length` after a whole forward
    pass, so a pass that raises leaves the cache as it was.
    """

    def __init__(
        self,
        config: GPT2Config,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, config.n_head, config.n_ctx, config.n_embd // config.n_head)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layer)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layer)]
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) behind the cached tokens; return all keys and values so far, (B, H, S, D)."""
        keys, values, end = self.keys[layer], self.values[layer], self.length + k.size(2)
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None, causal: bool) -> Tensor:
        """Mix what earlier tokens say into each: (B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, T, D)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, H, S, D)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers around GPT-2's tanh form of GELU."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself: (B, T, C) -> (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None, causal: bool) -> Tensor:
        """Add both to the residual stream: (B, T, C) -> (B, T, C)."""
        x = x + self.drop(self.attn(self.ln_1(x), layer, cache, mask, causal))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT2(nn.Module):
    """The network: ids -> hidden states, and hidden states -> logits, through the embedding unless it is untied."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        if not config.tie_word_embeddings:  # as in models of LLMs-from-scratch
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def init_weights(self, seed: int = 0) -> GPT2:
        """Draw fresh weights as GPT-2 was initialised; equal seeds give equal weights."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, float("ln_" in name and name.endswith("weight")))
            else:  # residual projections are scaled down so that depth does not grow the variance
                scale = 1 / math.sqrt(2 * self.config.n_layer) if "c_proj" in name else 1.0
                nn.init.normal_(parameter, std=0.02 * scale, generator=generator)
        return self

    @classmethod
    def empty(cls, config: GPT2Config) -> GPT2:
        """Build the network without memory for its weights; `load_state_dict(..., assign=True)` brings them."""
        with torch.device("meta"):
            return cls(config)

    def hidden_states(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Run the trunk: (B, T) -> (B, T, C).

        With a cache, `ids` follow the cached tokens. `positions` (B, T) and `mask` (B, 1, T, T), True where a token
        may look, serve rows that hold several documents. Raises ContextError past `n_ctx`.
        """
        past, T = cache.length if cache is not None else 0, ids.size(1)
        if past + T > self.config.n_ctx:
            raise ContextError(f"expected at most {self.config.n_ctx} tokens, got {past + T}")
        if positions is None:
            positions = torch.arange(past, past + T, device=ids.device)
        causal = mask is None and past == 0
        if mask is None and past and T > 1:  # row t sees the cached tokens and the new ones up to itself
            mask = torch.ones(T, past + T, dtype=torch.bool, device=ids.device).tril(past)
        x = self.drop(self.wte(ids) + self.wpe(positions))  # (B, T, C)
        for layer, block in enumerate(self.h):
            x = block(x, layer, cache, mask, causal)
        if cache is not None:
            cache.length = past + T
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary: (..., C) -> (..., V)."""
        return F.linear(hidden, self.head)

    @property
    def head(self) -> Tensor:
        """What scores the vocabulary, (V, C): the embedding, unless it is untied."""
        return (self.wte if self.config.tie_word_embeddings else self.lm_head).weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.wte.weight.dtype
