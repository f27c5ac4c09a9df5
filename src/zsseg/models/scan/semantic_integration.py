"""The semantic integration module: CLIP's features of the whole picture calibrate proposal embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build_low_frequency_gains(size: int, sigma: float) -> Tensor:
    """What each frequency of a square grid is multiplied by: 1 − exp(−((y − c)² + (x − c)²) / (2σ²)).

    c = ⌊size / 2⌋. The spectrum is not shifted, so index 0 is the mean and indices near c are the highest
    frequencies: those are damped, the lowest are kept.

    Args:
        size: G, cells a side.
        sigma: σ in cells; the larger, the more is damped.

    Returns:
        (G, G) float32 in [0, 1).

    Reference:
        SCAN, Sec. 3.2 (arXiv:2312.04089).
    """
    offsets = (torch.arange(size) - size // 2).double() ** 2
    gains = 1 - torch.exp(-(offsets[:, None] + offsets[None]) / (2 * sigma**2))
    return gains.float()


class LowFrequencyEnhancement(nn.Module):
    """Damps the high frequencies of CLIP's tokens and mixes channels in the spectrum; a residual branch.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2 * channels, 2 * channels, kernel_size=1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, kernel_size=1)

    def forward(self, features: Tensor, sigma: float) -> Tensor:
        """(B, C, G, G) features → the same shape in float32 or more, whatever autocast says: FFTs need it."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            gains = build_low_frequency_gains(features.shape[-1], sigma).to(features.device)
            spectrum = torch.fft.fft2(features) * gains
            # (B, 2C, G, G)
            parts = torch.cat([spectrum.real, spectrum.imag], dim=1).to(self.conv1.weight.dtype)
            real, imaginary = self.conv2(F.relu(self.conv1(parts))).to(features.dtype).chunk(2, dim=1)
            return features + torch.fft.ifft2(torch.complex(real, imaginary)).real


class TokenProjection(nn.Module):
    """Two linear layers without an activation between: C → D → D."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, out_dim)
        self.fc2 = nn.Linear(out_dim, out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) → (..., D)."""
        return self.fc2(self.fc1(tokens))


class SemanticIntegration(nn.Module):
    """Proposal embeddings look at CLIP's tokens, take its view of the picture, and are refined one by one.

    Args:
        token_dim: C, width of CLIP's vision tower.
        embed_dim: D, width of the joint space.
        sigmas: σ of the low-frequency enhancement, one a level.
        has_low_frequency_enhancement: whether the tokens are enhanced first.
        num_steps: cross-attentions.
        num_heads: of these and of the layers after them.
        num_encoder_layers: layers after them.
        feedforward_dim: their hidden width.
        dropout: in those layers, in training.

    Reference:
        SCAN, Sec. 3.2 (arXiv:2312.04089).
    """

    def __init__(
        self,
        token_dim: int,
        embed_dim: int,
        *,
        sigmas: Sequence[float],
        has_low_frequency_enhancement: bool = True,
        num_steps: int = 5,
        num_heads: int = 8,
        num_encoder_layers: int = 5,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.sigmas = tuple(sigmas)
        # One module for all levels.
        self.lfe = LowFrequencyEnhancement(token_dim) if has_low_frequency_enhancement else None
        self.token_proj = TokenProjection(token_dim, embed_dim)
        self.cross_attn = nn.ModuleList(
            nn.MultiheadAttention(embed_dim, num_heads, batch_first=True) for _ in range(num_steps)
        )
        # None after the last step.
        self.cross_norm = nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(num_steps - 1))
        # A vector of one, as is the temperature of the shifted tower: FSDP shards no single numbers.
        self.cls_scale = nn.Parameter(torch.tensor([0.1]))
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                embed_dim, num_heads, dim_feedforward=feedforward_dim, dropout=dropout, batch_first=True
            ),
            num_encoder_layers,
            enable_nested_tensor=False,
        )

    def forward(self, proposal_embeds: Tensor, tokens: Sequence[Tensor], image_embeds: Tensor) -> Tensor:
        """Calibrate proposal embeddings.

        Args:
            proposal_embeds: (B, Q, D).
            tokens: per level (B, C, G, G) of the frozen CLIP.
            image_embeds: (B, D), the frozen CLIP's of the whole picture, any norm.

        Returns:
            (B, Q, D).
        """
        memory = self.build_memory(tokens)
        for step, attention in enumerate(self.cross_attn):
            attended, _ = attention(proposal_embeds, memory, memory, need_weights=False)
            proposal_embeds = proposal_embeds + attended
            if step < len(self.cross_norm):
                proposal_embeds = self.cross_norm[step](proposal_embeds)
        context = F.normalize(image_embeds, dim=-1)[:, None].to(proposal_embeds.dtype)
        proposal_embeds = proposal_embeds + self.cls_scale * context
        # Sequences of length 1: attention over one key is that key, so these are layers of each query by
        # itself. Queries never mix here.
        batch_size, num_queries, _ = proposal_embeds.shape
        refined: Tensor = self.encoder(proposal_embeds.flatten(0, 1)[:, None])
        return refined[:, 0].view(batch_size, num_queries, -1)

    def build_memory(self, tokens: Sequence[Tensor]) -> Tensor:
        """Per level (B, C, G, G) → (B, levels · G², D), what the proposal embeddings look at."""
        if self.lfe is not None:
            tokens = [self.lfe(level, sigma) for level, sigma in zip(tokens, self.sigmas, strict=True)]
        flat = torch.cat([level.flatten(2) for level in tokens], dim=2).transpose(1, 2)
        return self.token_proj(flat.to(self.token_proj.fc1.weight.dtype))
