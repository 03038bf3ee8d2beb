"""What a teacher said, stored: tokens as a few bytes each, and the decoder that stands where its network stood.

A crop's code is one vector of int8: its class token's, then its patch tokens', row-major. Each kind of token has a
`LinearCode` of its own, fitted in `dinov2_zoo.targets.fit`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from dinov2_zoo.models.tokens import Tokens

LEVELS = 127
"""Largest code; the least is its opposite, so that 0 is the mean token."""


class LinearCode(nn.Module):
    """One kind of token as d numbers of 8 bits: token = mean + code @ read, and back by `write`.

    Args:
        mean: Of the tokens.
        write: From tokens less their mean to codes before rounding.
        read: Back; `read @ write` is the identity.
    """

    mean: Float[Tensor, " D"]
    write: Float[Tensor, "D d"]
    read: Float[Tensor, "d D"]

    def __init__(self, mean: Float[Tensor, " D"], write: Float[Tensor, "D d"], read: Float[Tensor, "d D"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("write", write)
        self.register_buffer("read", read)

    @property
    def width(self) -> int:
        """Bytes per token."""
        return self.read.shape[0]

    def encode(self, tokens: Float[Tensor, "*some D"]) -> Int8[Tensor, "*some d"]:
        """Nearest codes; what lies beyond the largest is cut off there."""
        with torch.autocast(tokens.device.type, enabled=False):
            codes = (tokens.to(self.write.dtype) - self.mean) @ self.write
        return codes.round_().clamp_(-LEVELS, LEVELS).to(torch.int8)

    def decode(self, codes: Int8[Tensor, "*some d"]) -> Float[Tensor, "*some D"]:
        """Tokens at the teacher's own scale."""
        with torch.autocast(codes.device.type, enabled=False):
            # One product over all rows: on CPUs a stack of many small ones takes longer.
            rows = torch.addmm(self.mean, codes.flatten(0, -2).to(self.read.dtype), self.read)
        return rows.unflatten(0, codes.shape[:-1])


class TokenCode(nn.Module):
    """The codes of class and patch tokens, and of both in one vector.

    Args:
        class_token: Of class tokens.
        patches: Of patch tokens.
    """

    def __init__(self, class_token: LinearCode, patches: LinearCode) -> None:
        super().__init__()
        self.class_token = class_token
        self.patches = patches

    def width(self, patches: int) -> int:
        """Bytes of a crop of so many patches."""
        return self.class_token.width + patches * self.patches.width

    def encode(self, tokens: Tokens) -> Int8[Tensor, "*images F"]:
        """Codes of some crops of one size."""
        codes = self.class_token.encode(tokens.class_token), self.patches.encode(tokens.patches).flatten(-2)
        return torch.cat(codes, dim=-1)

    def decode(self, codes: Int8[Tensor, "*images F"]) -> Tokens:
        """Tokens of some crops of one size."""
        of_class, of_patches = codes.split([self.class_token.width, codes.shape[-1] - self.class_token.width], dim=-1)
        patches = of_patches.unflatten(-1, (-1, self.patches.width))
        return Tokens(self.class_token.decode(of_class), self.patches.decode(patches))


class StoredBackbone(nn.Module):
    """A teacher's backbone that is not there: it is given codes in place of crops.

    Args:
        code: Of its tokens.
        patch_size: The network's, pixels.
        parameters: How many the network has.
        norms: `norms_fingerprint` of its weights, for heads that were made on it.
    """

    def __init__(self, code: TokenCode, *, patch_size: int, parameters: int, norms: str) -> None:
        super().__init__()
        self.code = code
        self.patch_size = patch_size
        self.parameters_stored = parameters
        self.norms = norms
        self.embed_dim = self.class_dim = len(code.patches.mean)

    def tokens(self, groups: Sequence[Int8[Tensor, "_ _"]], *_: object) -> list[Tokens]:
        """Tokens of groups of codes, [n, F] each; F follows from the crops' patches."""
        return [self.code.decode(codes) for codes in groups]
