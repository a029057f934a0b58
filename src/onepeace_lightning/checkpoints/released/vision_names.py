"""Tensor names of the released vision files and of ``models.vision``, one table for both directions.

In a template, {i} and {j} are indices, {p} is weight or bias, {s} also a batch norm's running statistics.
"""

import re
from collections.abc import Mapping
from functools import cache

from torch import Tensor

_BLOCK = {
    "gamma_1": "gamma_1",
    "gamma_2": "gamma_2",
    "self_attn_layer_norm.{p}": "norm_attention.{p}",
    "final_layer_norm.{p}": "norm_ffn.{p}",
    "self_attn.q_proj.{p}": "attention.query.{p}",
    "self_attn.k_proj.{p}": "attention.key.{p}",
    "self_attn.v_proj.{p}": "attention.value.{p}",
    "self_attn.out_proj.{p}": "attention.out.{p}",
    "self_attn.ln.{p}": "attention.norm.{p}",
    "image_ffn.0.wi_0.{p}": "ffns.image.gate.{p}",
    "image_ffn.0.wi_1.{p}": "ffns.image.up.{p}",
    "image_ffn.2.{p}": "ffns.image.norm.{p}",
    "image_ffn.3.{p}": "ffns.image.down.{p}",
}
TRUNK = {
    "image_adapter.cls_embedding": "backbone.adapters.image.cls_token",
    "image_adapter.pos_embed": "backbone.adapters.image.positions",
    "image_adapter.embed_images.0.{p}": "backbone.adapters.image.stem.0.{p}",
    "image_adapter.embed_images.1.layer_norm.{p}": "backbone.adapters.image.stem.1.{p}",
    "image_adapter.embed_images.3.{p}": "backbone.adapters.image.stem.3.{p}",
    "image_adapter.embed_images.4.layer_norm.{p}": "backbone.adapters.image.stem.4.{p}",
    "image_adapter.embed_images.6.{p}": "backbone.adapters.image.stem.6.{p}",
    **{f"encoder.layers.{{i}}.{theirs}": f"backbone.encoder.blocks.{{i}}.{ours}" for theirs, ours in _BLOCK.items()},
}
_SHARED_TABLE = {"image_adapter.rel_pos_table.weight": "backbone.adapters.image.bias_tables.0"}
_TABLES = {"encoder.layers.{i}.rel_pos_table.weight": "backbone.adapters.image.bias_tables.{i}"}

IMAGENET = TRUNK | _SHARED_TABLE | {"fc_norm.{p}": "head.norm.{p}", "head.{p}": "head.classifier.{p}"}

_VIDEO = {
    "image_adapter.temporal_embedding": "frame_positions.table_TD",
    "encoder.image_layer_norm.{p}": "norm.{p}",
} | {
    f"encoder.layers.{{i}}.{theirs}.D_fc{number}.{{p}}": f"adapters.{{i}}.{ours}.{layer}.{{p}}"
    for theirs, ours in (("T_Adapter", "time"), ("S_Adapter", "space"), ("MLP_Adapter", "features"))
    for number, layer in ((1, "down"), (2, "up"))
}
VIDEO = {f"backbone.{theirs}": ours for theirs, ours in (TRUNK | _SHARED_TABLE | _VIDEO).items()} | {
    "cls_head.fc_cls.{p}": "head.1.{p}"
}

_DEFORMABLE = {
    "sampling_offsets.{p}": "offsets.{p}",
    "attention_weights.{p}": "weights.{p}",
    "value_proj.{p}": "value.{p}",
    "output_proj.{p}": "out.{p}",
}
_INJECTOR = {"gamma": "gamma", "query_norm.{p}": "norm_query.{p}", "feat_norm.{p}": "norm_values.{p}"} | {
    f"attn.{theirs}": f"attention.{ours}" for theirs, ours in _DEFORMABLE.items()
}
_EXTRACTOR = {name: ours for name, ours in _INJECTOR.items() if name != "gamma"} | {
    "ffn_norm.{p}": "norm_ffn.{p}",
    "ffn.fc1.{p}": "ffn.up.{p}",
    "ffn.dwconv.dwconv.{p}": "ffn.depthwise.{p}",
    "ffn.fc2.{p}": "ffn.down.{p}",
}
_DENSE_ADAPTER = {
    "level_embed": "levels.table",
    "up.{p}": "up.{p}",
    **{f"norm{i + 1}.{{s}}": f"norms.{i}.{{s}}" for i in range(4)},
    **{f"spm.stem.{3 * i}.{{p}}": f"spatial_prior.stem.{i}.0.{{p}}" for i in range(3)},
    **{f"spm.stem.{3 * i + 1}.{{s}}": f"spatial_prior.stem.{i}.1.{{s}}" for i in range(3)},
    **{f"spm.conv{i + 2}.{{j}}.{{s}}": f"spatial_prior.down.{i}.{{j}}.{{s}}" for i in range(3)},
    **{f"spm.fc{i + 1}.{{p}}": f"spatial_prior.project.{i}.{{p}}" for i in range(4)},
    **{
        f"interactions.{{i}}.injector.{theirs}": f"interactions.{{i}}.injector.{ours}"
        for theirs, ours in _INJECTOR.items()
    },
    **{
        f"interactions.{{i}}.{extractor}.{theirs}": f"interactions.{{i}}.extractors.{number}.{ours}"
        for extractor, number in (("extractor", 0), ("extra_extractors.0", 1), ("extra_extractors.1", 2))
        for theirs, ours in _EXTRACTOR.items()
    },
}
_PIXEL_DECODER = {
    "input_convs.{i}.conv.{p}": "inputs.{i}.0.{p}",
    "input_convs.{i}.gn.{p}": "inputs.{i}.1.{p}",
    "level_encoding.weight": "levels.table",
    "lateral_convs.0.conv.{p}": "lateral.0.{p}",
    "lateral_convs.0.gn.{p}": "lateral.1.{p}",
    "output_convs.0.conv.{p}": "output.0.{p}",
    "output_convs.0.gn.{p}": "output.1.{p}",
    "mask_feature.{p}": "pixels.{p}",
    "encoder.layers.{i}.norms.0.{p}": "layers.{i}.norm_attention.{p}",
    "encoder.layers.{i}.norms.1.{p}": "layers.{i}.norm_ffn.{p}",
    "encoder.layers.{i}.ffns.0.layers.0.0.{p}": "layers.{i}.ffn.0.{p}",
    "encoder.layers.{i}.ffns.0.layers.1.{p}": "layers.{i}.ffn.2.{p}",
    **{
        f"encoder.layers.{{i}}.attentions.0.{theirs}": f"layers.{{i}}.attention.{ours}"
        for theirs, ours in _DEFORMABLE.items()
    },
}
_MASK_DECODER = {
    "query_feat.weight": "queries.features",
    "query_embed.weight": "queries.positions",
    "level_embed.weight": "levels.table",
    "cls_embed.{p}": "to_classes.{p}",
    "mask_embed.{i}.{p}": "to_masks.{i}.{p}",
    "transformer_decoder.post_norm.{p}": "norm.{p}",
    "transformer_decoder.layers.{i}.norms.0.{p}": "layers.{i}.norm_cross.{p}",
    "transformer_decoder.layers.{i}.norms.1.{p}": "layers.{i}.norm_among.{p}",
    "transformer_decoder.layers.{i}.norms.2.{p}": "layers.{i}.norm_ffn.{p}",
    "transformer_decoder.layers.{i}.ffns.0.layers.0.0.{p}": "layers.{i}.ffn.0.{p}",
    "transformer_decoder.layers.{i}.ffns.0.layers.1.{p}": "layers.{i}.ffn.2.{p}",
    **{
        f"transformer_decoder.layers.{{i}}.attentions.{number}.attn.{theirs}": f"layers.{{i}}.{ours}"
        for number, name in ((0, "cross"), (1, "among"))
        for theirs, ours in (
            ("in_proj_weight", f"{name}.project.weight"),
            ("in_proj_bias", f"{name}.project.bias"),
            ("out_proj.{p}", f"{name}.out.{{p}}"),
        )
    },
}
SEGMENTATION = (
    {f"backbone.{theirs}": ours for theirs, ours in (TRUNK | _TABLES).items()}
    | {f"backbone.{theirs}": f"adapter.{ours}" for theirs, ours in _DENSE_ADAPTER.items()}
    | {f"decode_head.pixel_decoder.{theirs}": f"head.pixel_decoder.{ours}" for theirs, ours in _PIXEL_DECODER.items()}
    | {f"decode_head.{theirs}": f"head.mask_decoder.{ours}" for theirs, ours in _MASK_DECODER.items()}
)
_DETECTION_TRUNK = {
    name: ours
    for name, ours in TRUNK.items()
    if name != "image_adapter.cls_embedding"  # there is none
} | {
    "image_adapter.rel_pos_table.weight": "backbone.adapters.image.bias_table",
    "encoder.layers.{i}.self_attn.rel_pos_h": "backbone.encoder.blocks.{i}.attention.rel_pos_h",
    "encoder.layers.{i}.self_attn.rel_pos_w": "backbone.encoder.blocks.{i}.attention.rel_pos_w",
}
DETECTION = (
    {f"backbone.net.{theirs}": ours for theirs, ours in _DETECTION_TRUNK.items()}
    | {
        "backbone.simfp_{i}.{j}.{p}": "pyramid.p{i}.{j}.{p}",
        "backbone.simfp_{i}.{j}.norm.{p}": "pyramid.p{i}.{j}.norm.{p}",
        "proposal_generator.rpn_head.conv.conv{i}.{p}": "proposals.convs.{i}.{p}",
        "proposal_generator.rpn_head.objectness_logits.{p}": "proposals.objectness.{p}",
        "proposal_generator.rpn_head.anchor_deltas.{p}": "proposals.deltas.{p}",
        "roi_heads.box_head.{i}.fc1.{p}": "stages.{i}.hidden.{p}",
        "roi_heads.box_predictor.{i}.cls_score.{p}": "stages.{i}.classes.{p}",
        "roi_heads.box_predictor.{i}.bbox_pred.{p}": "stages.{i}.deltas.{p}",
        "roi_heads.mask_head.deconv.{p}": "masks.upsample.{p}",
        "roi_heads.mask_head.predictor.{p}": "masks.masks.{p}",
    }
    | {
        f"roi_heads.{theirs}{number + 1}.{part}": f"{ours}.convs.{number}.{part}"
        for theirs, ours in (("box_head.{i}.conv", "stages.{i}"), ("mask_head.mask_fcn", "masks"))
        for number in range(4)
        for part in ("weight", "norm.{p}")
    }
)
BRANCH = TRUNK | {"image_adapter.rel_pos_table_list.{i}.weight": "backbone.adapters.image.bias_tables.{i}"}
TABLES = {
    "vision-branch": BRANCH,
    "imagenet": IMAGENET,
    "video": VIDEO,
    "segmentation": SEGMENTATION,
    "detection": DETECTION,
}
"""Released name to ours, for each kind of file."""

_FIELDS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias", "s": "weight|bias|running_mean|running_var"}
_LEADING = {"image_adapter.cls_embedding": 2, "image_adapter.temporal_embedding": 1}
"""Leading dimensions of size 1 that tensors of these names have in the files only."""


def our_name(kind: str, theirs: str) -> str | None:
    """This project's name of a released file's tensor, or None."""
    return _translate(kind, theirs, reverse=False)


def released_name(kind: str, ours: str) -> str | None:
    """A released file's name of a tensor of this project, or None."""
    return _translate(kind, ours, reverse=True)


def to_ours(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released file's tensors by this project's names; those without keep theirs and are refused by ``fill``."""
    renamed = {}
    for name, tensor in tensors.items():
        for _ in range(_leading(name)):
            tensor = tensor[0]
        renamed[our_name(kind, name) or name] = tensor
    return renamed


def to_released(kind: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_ours``.

    Raises:
        ValueError: for a tensor that such a file has no name for.
    """
    renamed = {}
    for ours, tensor in weights.items():
        if ours.endswith(".num_batches_tracked"):
            continue
        name = released_name(kind, ours)
        if name is None:
            raise ValueError(f"{ours} has no name in a released file of kind {kind!r}")
        for _ in range(_leading(name)):
            tensor = tensor[None]
        renamed[name] = tensor
    return renamed


def _leading(name: str) -> int:
    return next((count for suffix, count in _LEADING.items() if name.endswith(suffix)), 0)


def _translate(kind: str, name: str, *, reverse: bool) -> str | None:
    for pattern, template in _patterns(kind, reverse):
        if found := pattern.fullmatch(name):
            return template.format(**found.groupdict())
    return None


@cache
def _patterns(kind: str, reverse: bool) -> list[tuple[re.Pattern[str], str]]:
    pairs = [(ours, theirs) if reverse else (theirs, ours) for theirs, ours in TABLES[kind].items()]
    return [(_pattern(source), target) for source, target in pairs]


def _pattern(template: str) -> re.Pattern[str]:
    escaped = template.replace(".", r"\.")
    return re.compile(re.sub(r"\{(\w)\}", lambda field: f"(?P<{field[1]}>{_FIELDS[field[1]]})", escaped))
