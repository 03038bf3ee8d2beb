"""One pre-norm transformer block: x += ls1(attn(norm1 x)); x += ls2(mlp(norm2 x))."""

from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerScale
from torch import Tensor, nn

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.models.attention import Attention
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.models.stochastic_depth import Subset, subset_residual

LayerNorm = partial(nn.LayerNorm, eps=1e-6)  # official: 1e-6 everywhere


class FeedForward(nn.Module):
    """GELU MLP; or SwiGLU: silu(first half) * second half of one packed projection (timm's parameter names)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.ffn == "swiglu"
        self.fc1 = nn.Linear(config.embed_dim, (2 if self.gated else 1) * config.ffn_hidden)
        self.fc2 = nn.Linear(config.ffn_hidden, config.embed_dim)

    def hidden(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... H"]:
        """Activations of the hidden units: what the second layer reads."""
        inner = self.fc1(x)
        if not self.gated:
            return F.gelu(inner)
        gate, value = inner.chunk(2, dim=-1)
        return F.silu(gate) * value

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Both layers, token by token."""
        return self.fc2(self.hidden(x))


class Block(nn.Module):
    """Attention and feed-forward, each with LayerScale. It is also the unit that is sharded and compiled.

    In pretraining each of the two runs on a subset of the sequences (`stochastic_depth.py`); in distillation on all.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, config.num_heads)
        self.ls1 = LayerScale(dim, config.layer_scale)
        self.norm2 = LayerNorm(dim)
        self.mlp = FeedForward(config)
        self.ls2 = LayerScale(dim, config.layer_scale)

    def attention(self, x: Float[Tensor, "total D"], packing: Packing) -> Float[Tensor, "total D"]:
        """First residual branch."""
        return self.ls1(self.attn(self.norm1(x), packing))

    def feed_forward(self, x: Float[Tensor, "total D"], packing: Packing) -> Float[Tensor, "total D"]:
        """Second residual branch."""
        return self.ls2(self.mlp(self.norm2(x)))

    def forward(
        self, x: Float[Tensor, "total D"], packing: Packing, subsets: tuple[Subset, Subset] | None = None
    ) -> Float[Tensor, "total D"]:
        """Transform a packed row of tokens; with subsets, some sequences skip a branch."""
        if subsets is None:
            x = x + self.attention(x, packing)
            return x + self.feed_forward(x, packing)
        x = subset_residual(x, self.attention, packing, subsets[0])
        return subset_residual(x, self.feed_forward, packing, subsets[1])
