"""SD 1.5's VAE, at any width: picture in [-1, 1] to the moments of its latent, and latent to picture.

Submodules carry diffusers' names. Every group norm's epsilon is 1e-6 here, unlike the UNet's.
"""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dragsa.config import VAEConfig
from dragsa.kernels import attend

DOWN = 8  # a latent cell is 8×8 pixels


def norm(groups: int, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


class ResBlock(nn.Module):
    """Two convolutions and a residual."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = norm(groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """One head of self-attention over all cells, and a residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = norm(groups, width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")
        tokens = self.to_out[0](attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))
        return x + rearrange(tokens, "b 1 (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2), padded on the right and below only."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """ResBlocks, then the change of resolution, if there is one; every list under its published name."""

    def __init__(self, **lists: list[nn.Module]) -> None:
        super().__init__()
        for name, modules in lists.items():
            if modules:
                self.add_module(name, nn.ModuleList(modules))

    def forward(self, x: Tensor) -> Tensor:
        for modules in self.children():
            for module in cast(nn.ModuleList, modules):
                x = module(x)
        return x


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(width, width, groups), ResBlock(width, width, groups)])
        self.attentions = nn.ModuleList([Attention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Four levels of two ResBlocks, each but the last followed by a halving."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        c = widths[0]
        for level, width in enumerate(widths):
            resnets: list[nn.Module] = [ResBlock(c, width, groups), ResBlock(width, width, groups)]
            self.down_blocks.append(Stage(resnets=resnets, downsamplers=[Downsample(width)] if level < 3 else []))
            c = width
        self.mid_block = Middle(c, groups)
        self.conv_norm_out = norm(groups, c)
        self.conv_out = nn.Conv2d(c, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2·4, H/8, W/8)."""
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Four levels of three ResBlocks, from the widest up, each but the last followed by a doubling."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], config.groups
        c = widths[0]
        self.conv_in = nn.Conv2d(config.latent_channels, c, 3, padding=1)
        self.mid_block = Middle(c, groups)
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            resnets: list[nn.Module] = [ResBlock(c if layer == 0 else width, width, groups) for layer in range(3)]
            self.up_blocks.append(Stage(resnets=resnets, upsamplers=[Upsample(width)] if level < 3 else []))
            c = width
        self.conv_norm_out = norm(groups, c)
        self.conv_out = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, 8h, 8w)."""
        x = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """Encoder and decoder with the 1×1 convolutions between them and the latent."""

    def __init__(self, config: VAEConfig = VAEConfig()) -> None:  # noqa: B008 (a frozen value)
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def encode_moments(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1], H and W multiples of 8 -> mean and log-variance, each (B, 4, H/8, W/8), unscaled."""
        mean, logvar = self.quant_conv(self.encoder(picture.to(self.dtype))).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, picture: Tensor) -> Tensor:
        """The latent z_0: the posterior's mean times the scaling factor, float32.

        (B, 3, H, W) in [-1, 1], H and W multiples of 8 -> (B, 4, H/8, W/8). Raises ValueError for other shapes.
        """
        if picture.ndim != 4 or picture.shape[1] != 3 or picture.shape[2] % DOWN or picture.shape[3] % DOWN:
            came = tuple(picture.shape)
            raise ValueError(f"a picture must be (B, 3, H, W) with H and W multiples of {DOWN}, came {came}")
        return self.encode_moments(picture)[0].float() * self.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """z_0, scaled (B, 4, h, w) -> picture (B, 3, 8h, 8w), float32, about [-1, 1] and not clamped."""
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"a latent must be (B, {self.config.latent_channels}, h, w), came {tuple(z.shape)}")
        z = (z / self.config.scaling_factor).to(self.dtype)
        return self.decoder(self.post_quant_conv(z)).float()
