"""What fine-tuned models answer with: attention pooling over the features of one modality or several, a classifier.

H = heads, E = head width; see ``packing`` for the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onepeace_lightning.models.adapter import SECOND
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import ModelConfig, at_least, raise_all
from onepeace_lightning.models.layers import Linear, init_normal_
from onepeace_lightning.models.packing import Tokens


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
    """A pooling head.

    Attributes:
        outputs: numbers given per sample: classes, 4 for a box, 1 to score a choice.
        pooled: the modalities whose tokens are pooled, all in one attention.
        images: fused passes per sample whose pooled vectors are joined; 2 for tasks with two images.
        pooler: a linear layer and tanh before the classifier (visual question answering).
        expansion: the classifier's inner width as a multiple of the encoder's.
    """

    outputs: int
    pooled: tuple[str, ...]
    images: int = 1
    pooler: bool = False
    expansion: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "pooled", tuple(self.pooled))  # YAML and JSON have no tuples
        problems = at_least(self, outputs=1, expansion=1)
        if not self.pooled:
            problems.append("pooled names no modality")
        if self.images not in (1, 2):
            problems.append(f"images is {self.images}, must be 1 or 2")
        raise_all("pooling head", problems)


class AttentionPooling(nn.Module):
    """A learned query attends over all tokens but the CLS of each modality; its logits are not scaled."""

    def __init__(self, width: int, heads: int, init_std: float) -> None:
        super().__init__()
        self.init_std = init_std
        self.query = nn.Parameter(torch.empty(heads, width // heads))
        self.key = Linear(width, width, init_std, bias=False)
        self.value = Linear(width, width, init_std)
        self.out = Linear(width, width, init_std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the query."""
        init_normal_(self.query, self.init_std)

    def forward(self, features: Sequence[Tokens]) -> Tensor:
        """(B, D) from the features of some modalities, their CLS left out."""
        padded = [part.padded() for part in features]
        x_BLD = torch.cat([x[:, 1:] for x, _ in padded], 1)
        valid_BL = torch.cat([valid[:, 1:] for _, valid in padded], 1)
        k_BLHE, v_BLHE = (project(x_BLD).unflatten(-1, self.query.shape) for project in (self.key, self.value))
        logits_BLH = (k_BLHE * self.query).sum(-1).float().masked_fill(~valid_BL[..., None], -torch.inf)
        weights_BLH = logits_BLH.softmax(1).to(v_BLHE.dtype)
        return self.out((weights_BLH[..., None] * v_BLHE).sum(1).flatten(1))


class PoolingHead(nn.Module):
    """Attention pooling, LayerNorm, optional pooler, then Linear, LayerNorm, GELU, Linear."""

    def __init__(self, config: PoolingConfig, width: int, heads: int, init_std: float) -> None:
        super().__init__()
        self.config = config
        self.pooling = AttentionPooling(width, heads, init_std)
        self.norm = nn.LayerNorm(width)
        self.pooler = nn.Sequential(Linear(width, width, init_std), nn.Tanh()) if config.pooler else None
        inner = config.expansion * width
        self.classifier = nn.Sequential(
            Linear(config.images * width, inner, init_std),
            nn.LayerNorm(inner),
            nn.GELU(),
            Linear(inner, config.outputs, init_std),
        )

    def pool(self, features: Mapping[str, Tokens]) -> Tensor:
        """(B, D) one vector per sample from the features of the pooled modalities."""
        x_BD = self.norm(self.pooling([features[name] for name in self.config.pooled]))
        return x_BD if self.pooler is None else self.pooler(x_BD)

    def forward(self, *passes: Mapping[str, Tokens]) -> Tensor:
        """(B, outputs) from the features of each fused pass, in order, by modality."""
        return self.classifier(torch.cat([self.pool(features) for features in passes], -1))


def repeated(tokens: Tokens, times: int) -> Tokens:
    """Each sample's tokens so many times in a row."""
    x_BLD, _ = tokens.padded()
    return Tokens.of_padded(x_BLD.repeat_interleave(times, 0), [n for n in tokens.lengths for _ in range(times)])


class ClassifyModel(nn.Module):
    """Backbone and pooling head: what classification, question answering and grounding train.

    Args:
        config: sizes.
        head: what is pooled and given out.

    Raises:
        ValueError: where the model lacks a modality that is pooled.
    """

    def __init__(self, config: ModelConfig, head: PoolingConfig) -> None:
        super().__init__()
        if lacking := [name for name in head.pooled if name not in config.adapters]:
            raise ValueError(
                f"the head pools {', '.join(map(repr, lacking))}; the model has {', '.join(config.adapters)}"
            )
        self.config = config
        self.backbone = Backbone(config)
        self.head = PoolingHead(head, config.encoder.width, config.encoder.heads, config.encoder.init_std)

    def forward(self, inputs: Mapping[str, Any], choices: int = 1) -> Tensor:
        """(B·choices, outputs) logits.

        Args:
            inputs: each modality's raw input, seen together; ``second_`` before a modality's name is a sample's second
                item, which is seen with the same other inputs in its place.
            choices: rows of text for each sample of the other modalities, which is embedded once and seen with each.

        Raises:
            ValueError: where a second item is given to a head for one, or the other way round.
        """
        seconds = {name.removeprefix(SECOND): part for name, part in inputs.items() if name.startswith(SECOND)}
        if 1 + len(seconds) != self.head.config.images:
            raise ValueError(
                f"{1 + len(seconds)} item(s) of a modality per sample; this head is made for {self.head.config.images}"
            )
        backbone = self.backbone
        tokens = backbone.embed({name: part for name, part in inputs.items() if not name.startswith(SECOND)})
        if choices > 1:
            longest = max(len(part.lengths) for part in tokens.values())
            tokens = {
                name: part if len(part.lengths) == longest else repeated(part, choices) for name, part in tokens.items()
            }
        views = [backbone.view(tokens)]
        for name, second in seconds.items():
            adapter = backbone.adapter(name)
            views.append(backbone.view({**tokens, name: adapter.as_second(adapter.embed(second))}))
        return self.head(*backbone.encode(views))
