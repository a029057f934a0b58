"""The denoising decoder: from the visible tokens' features to those of the hidden ones (paper section 3.3)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from onepeace_lightning.models.config import AdapterConfig, ModelConfig
from onepeace_lightning.models.encoder import Encoder
from onepeace_lightning.models.inputs import TokenMask, locate
from onepeace_lightning.models.layers import Linear, PerModality, gather_rows, init_normal_, scatter_rows
from onepeace_lightning.models.packing import Tokens, View, to_device


class DecoderInput(nn.Module):
    """One modality's way into the decoder: projection, mask token, learned absolute positions."""

    def __init__(
        self, width: int, decoder_width: int, init_std: float, *, positions: int, adapter: AdapterConfig
    ) -> None:
        super().__init__()
        self.init_std = init_std
        self.project = Linear(width, decoder_width, init_std)
        self.mask_token = nn.Parameter(torch.empty(decoder_width))
        self.positions = nn.Parameter(torch.empty(positions, decoder_width))
        self.adapter = adapter
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw mask token and positions."""
        init_normal_(self.mask_token, self.init_std)
        init_normal_(self.positions, self.init_std)

    def no_weight_decay(self) -> set[str]:
        """The bias and the positions, unless the modality says otherwise; the mask token decays as published."""
        return {"project.bias"} if self.adapter.decoder_positions_decay else {"project.bias", "positions"}

    def forward(self, visible: Tokens, mask: TokenMask) -> Tokens:
        """Put the tokens that a mask leaves visible back among mask tokens.

        Raises:
            ValueError: for more positions than the decoder knows.
        """
        positions = self.adapter.decoder_positions(self.positions)
        if (longest := max(mask.lengths)) > len(positions):
            raise ValueError(f"{longest} positions; the decoder has {len(positions)}: shorten the input")
        x_TD = self.project(visible.values_TD)
        _, positions_T = locate(mask.lengths)
        filled_TD = torch.where(
            mask.is_hidden_T[:, None],
            self.mask_token.to(x_TD.dtype),
            scatter_rows(x_TD, mask.visible_N, len(positions_T)),
        )
        return Tokens(filled_TD + positions[to_device(positions_T, x_TD.device)], positions_T, mask.lengths)


class Denoiser(nn.Module):
    """Projections in and out per modality around a few blocks without relative bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, decoder = config.encoder.width, config.decoder.transformer
        self.inputs = PerModality()
        for name, adapter in config.adapters.items():
            rows = config.decoder.positions.get(name) or adapter.decoder_rows()
            self.inputs[name] = DecoderInput(width, decoder.width, decoder.init_std, positions=rows, adapter=adapter)
        self.decoder = Encoder(decoder, tuple(config.adapters))
        self.outputs = PerModality({name: Linear(decoder.width, width, decoder.init_std) for name in config.adapters})

    def forward(self, students: Sequence[View], masks: Sequence[Mapping[str, TokenMask]]) -> list[dict[str, Tensor]]:
        """Predict the features of the hidden tokens of all views in one pass.

        Args:
            students: features of the visible tokens, one entry per view.
            masks: for each view and modality, which tokens were hidden.

        Returns:
            For each view and modality, (M, D) features of the hidden tokens, sample by sample in order of position.
        """
        views = [
            {name: self.inputs[name](tokens, mask[name]) for name, tokens in student.items()}
            for student, mask in zip(students, masks, strict=True)
        ]
        decoded = self.decoder(views)
        return [
            {name: self.outputs[name](gather_rows(part.values_TD, mask[name].hidden_M)) for name, part in view.items()}
            for view, mask in zip(decoded, masks, strict=True)
        ]
