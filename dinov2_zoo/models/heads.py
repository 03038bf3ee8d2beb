"""What sits on a backbone during training only: heads with prototypes, and the projector into a teacher's space."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn

from dinov2_zoo.config import HeadConfig
from dinov2_zoo.models.tokens import Tokens


class PrototypeHead(nn.Module):
    """Tokens to unit vectors that meet K weight-normed prototypes (official `dino_head.py`, with its parameter names).

    The product of the two, [tokens, K], is left to the losses: at K = 131,072 it should never exist as a whole.

    Args:
        dim: Width of the tokens.
        config: Prototypes K, hidden width, bottleneck width.
    """

    def __init__(self, dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.last_layer = Prototypes(config)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... d"]:
        """Unit vectors of the bottleneck, in fp32 or better."""
        return F.normalize(at_least_fp32(self.mlp(x)), dim=-1)

    @property
    def count(self) -> int:
        """Number of prototypes K."""
        return len(self.last_layer.weight_g)

    @property
    def width(self) -> int:
        """Width of the bottleneck d."""
        return self.last_layer.weight_v.shape[1]

    def prototypes(self) -> Float[Tensor, "K d"]:
        """The prototypes; logits are `head(x) @ head.prototypes().T`."""
        return self.last_layer()


class Prototypes(nn.Module):
    """Weight-normed prototypes: weight_g * weight_v / |weight_v|, lengths [K, 1] and directions [K, d]."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(config.prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        # Only the direction counts: torch's own initialisation of a linear layer, which the official code has here.
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self) -> Float[Tensor, "K d"]:
        """The prototypes."""
        return self.weight_g * F.normalize(self.weight_v, dim=-1)


class ProjectorMLP(nn.Module):
    """Two layers with GELU between, twice as wide as its output.

    Args:
        dim: Width of the input.
        out: Width of the output.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * out)
        self.fc2 = nn.Linear(2 * out, out)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D_out"]:
        """Each token through both layers."""
        return self.fc2(F.gelu(self.fc1(x)))

    @torch.no_grad()
    def become_linear(self, weight: Float[Tensor, "D_out D"], bias: Float[Tensor, " D_out"]) -> None:
        """Compute exactly u = weight x + bias, as GELU(u) - GELU(-u) = u; every layer learns from the first step."""
        self.fc1.weight.copy_(torch.cat([weight, -weight]))
        self.fc1.bias.copy_(torch.cat([bias, -bias]))
        identity = torch.eye(len(bias), device=bias.device)
        self.fc2.weight.copy_(torch.cat([identity, -identity], dim=1))
        self.fc2.bias.zero_()


class FeatureProjector(nn.Module):
    """Two maps from a student's class and patch tokens into its teacher's (standardised) space.

    Args:
        class_dim: Width of the student's class token.
        patch_dim: Width of the student's patch tokens.
        teacher_dim: Width of the teacher's patch tokens.
        kind: Linear maps, or MLPs of two layers.
        teacher_class_dim: Width of the teacher's class token; default: the same.
    """

    def __init__(
        self,
        class_dim: int,
        patch_dim: int,
        teacher_dim: int,
        kind: Literal["linear", "mlp"] = "linear",
        *,
        teacher_class_dim: int | None = None,
    ) -> None:
        super().__init__()
        layer = nn.Linear if kind == "linear" else ProjectorMLP
        self.class_token = layer(class_dim, teacher_class_dim or teacher_dim)
        self.patches = layer(patch_dim, teacher_dim)

    def forward(self, tokens: Tokens) -> Tokens:
        """Each kind of token through its own map."""
        return Tokens(self.class_token(tokens.class_token), self.patches(tokens.patches))


def at_least_fp32(x: Tensor) -> Tensor:
    """Leave half precision behind: what follows divides by small temperatures or sums over many tokens."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
