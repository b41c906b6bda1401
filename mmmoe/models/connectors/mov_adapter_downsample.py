"""From a grid of tokens to a smaller one: the adapter's residual stages, and the glance that routing takes."""

from __future__ import annotations

import math
from functools import partial

from einops import rearrange
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torch.nn import functional as F


def downsampler(channels: int, token_grid: tuple[int, int]) -> nn.Sequential:
    """Returns two stages of one RegNet bottleneck (1 x 1, depth-wise 3 x 3, squeeze-excite, 1 x 1) with a mean between.

    The last norm of each starts at zero: at first the stages are the identity.
    """
    stage = partial(RegStage, 1, channels, channels, stride=1, dilation=1)
    stages = [stage(linear_out=True, act_layer=nn.SiLU, norm_layer=LayerNorm2d) for _ in range(2)]
    for each in stages:
        each.b1.zero_init_last()
    return nn.Sequential(stages[0], nn.AdaptiveAvgPool2d(token_grid), stages[1])


def glance(tokens_IMD: Tensor, grid: tuple[int, int], routing_tokens: int) -> Tensor:
    """Returns the fewer tokens (I, routing_tokens, D), a square of means, by which the language model chooses experts.

    Raises:
        ValueError: Their number is no square.
    """
    side = math.isqrt(routing_tokens)
    if side * side != routing_tokens or side == 0:
        raise ValueError(f"routing_tokens is {routing_tokens}, no square number; 144 is 12 x 12")
    tokens_IDHW = rearrange(tokens_IMD, "i (h w) d -> i d h w", h=grid[0], w=grid[1])
    return rearrange(F.adaptive_avg_pool2d(tokens_IDHW, side), "i d h w -> i (h w) d")
