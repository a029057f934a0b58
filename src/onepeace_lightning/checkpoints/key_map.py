"""Parameter names in the original project's checkpoints and here, one table for both directions.

In a template, {m} is a modality, {i} an index, {k} an index that the original counts from 1, {p} weight or bias.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

MODALITIES = ("text", "image", "audio")
"""What the original's format can hold."""

_TOP = {
    "logit_scale": "heads.logit_scale",
    "{m}_proj.{p}": "heads.projections.{m}.{p}",
    "{m}_mask_token": "denoiser.inputs.{m}.mask_token",
    "decoder_{m}_embed.{p}": "denoiser.inputs.{m}.project.{p}",
    "{m}_mask_head.{p}": "denoiser.outputs.{m}.{p}",
    "decoder_wrapper.text_adapter.embed_positions.weight": "denoiser.inputs.text.positions",
    "decoder_wrapper.image_adapter.pos_embed": "denoiser.inputs.image.positions",
    "decoder_wrapper.audio_adapter.embed_positions.weight": "denoiser.inputs.audio.positions",
    "classify_head.attn_pooling_func.q": "head.pooling.query",
    "classify_head.attn_pooling_func.k_proj.{p}": "head.pooling.key.{p}",
    "classify_head.attn_pooling_func.v_proj.{p}": "head.pooling.value.{p}",
    "classify_head.attn_pooling_func.out_proj.{p}": "head.pooling.out.{p}",
    "classify_head.norm.{p}": "head.norm.{p}",
    "classify_head.pooler.1.{p}": "head.pooler.0.{p}",
    "classify_head.classifier.{i}.{p}": "head.classifier.{i}.{p}",
}
_ADAPTER = {
    "{m}_adapter.cls_embedding": "{m}.cls_token",
    "{m}_adapter.type_embedding": "{m}.type_embedding",
    "{m}_adapter.rel_pos_table_list.{i}.weight": "{m}.bias_tables.{i}",
    "text_adapter.embed_tokens.weight": "text.embedding.weight",
    "text_adapter.embed_positions.weight": "text.positions",
    "image_adapter.type_embedding_2": "image.type_embedding_second",
    "image_adapter.pos_embed": "image.positions",
    "image_adapter.embed_images.0.{p}": "image.stem.0.{p}",
    "image_adapter.embed_images.1.layer_norm.{p}": "image.stem.1.{p}",
    "image_adapter.embed_images.3.{p}": "image.stem.3.{p}",
    "image_adapter.embed_images.4.layer_norm.{p}": "image.stem.4.{p}",
    "image_adapter.embed_images.6.{p}": "image.stem.6.{p}",
    "audio_adapter.cls_pos_embed": "audio.cls_position",
    "audio_adapter.embed_audios.0.conv_layers.{i}.0.{p}": "audio.features.{i}.0.{p}",
    "audio_adapter.embed_audios.0.conv_layers.{i}.2.1.{p}": "audio.features.{i}.1.{p}",
    "audio_adapter.embed_audios.2.{p}": "audio.norm.{p}",
    "audio_adapter.embed_audios.3.{p}": "audio.project.{p}",
    "audio_adapter.embed_positions.{k}.0.{p}": "audio.position_convs.{k}.{p}",
}
_STACK = {
    "{m}_layer_norm.{p}": "norms.{m}.{p}",
    "layers.{i}.gamma_1": "blocks.{i}.gamma_1",
    "layers.{i}.gamma_2": "blocks.{i}.gamma_2",
    "layers.{i}.self_attn_layer_norm.{p}": "blocks.{i}.norm_attention.{p}",
    "layers.{i}.final_layer_norm.{p}": "blocks.{i}.norm_ffn.{p}",
    "layers.{i}.self_attn.q_proj.{p}": "blocks.{i}.attention.query.{p}",
    "layers.{i}.self_attn.k_proj.{p}": "blocks.{i}.attention.key.{p}",
    "layers.{i}.self_attn.v_proj.{p}": "blocks.{i}.attention.value.{p}",
    "layers.{i}.self_attn.out_proj.{p}": "blocks.{i}.attention.out.{p}",
    "layers.{i}.self_attn.ln.{p}": "blocks.{i}.attention.norm.{p}",
    "layers.{i}.{m}_ffn.0.wi_0.{p}": "blocks.{i}.ffns.{m}.gate.{p}",
    "layers.{i}.{m}_ffn.0.wi_1.{p}": "blocks.{i}.ffns.{m}.up.{p}",
    "layers.{i}.{m}_ffn.2.{p}": "blocks.{i}.ffns.{m}.norm.{p}",
    "layers.{i}.{m}_ffn.3.{p}": "blocks.{i}.ffns.{m}.down.{p}",
}
_TEMPLATES = (
    _TOP
    | {f"encoder_wrapper.{theirs}": f"backbone.adapters.{ours}" for theirs, ours in _ADAPTER.items()}
    | {f"encoder_wrapper.fusion_model.{theirs}": f"backbone.encoder.{ours}" for theirs, ours in _STACK.items()}
    | {f"decoder_wrapper.fusion_model.{theirs}": f"denoiser.decoder.{ours}" for theirs, ours in _STACK.items()}
)
_FIELDS = {"m": "|".join(MODALITIES), "i": r"\d+", "k": r"\d+", "p": "weight|bias"}
_SINGLE_TABLE = re.compile(r"(_adapter)\.rel_pos_table\.weight$")
_UNUSED = re.compile(
    r"^decoder_wrapper\.\w+_adapter\.cls_embedding$|_adapter\.mask_embedding$|\.(rp_bucket|position_idx|version)$"
)
"""Parameters that the original never uses, and its buffers."""


def our_name(original: str) -> str | None:
    """This project's name of a parameter; None for one that is present but unused; an unknown name as it is."""
    if _UNUSED.search(original):
        return None
    name = _SINGLE_TABLE.sub(r"\1.rel_pos_table_list.0.weight", original)  # an older spelling
    return _translate(name, to_original=False) or original


def original_name(ours: str) -> str | None:
    """The original project's name of a parameter of this project, or None where its format has none."""
    return _translate(ours, to_original=True)


def name_map(names: Iterable[str]) -> dict[str, str]:
    """Original name to ours, without the unused ones.

    Raises:
        ValueError: where two of them are spellings of the same parameter.
    """
    translated = {name: ours for name in names if (ours := our_name(name)) is not None}
    seen: dict[str, str] = {}
    for name, ours in translated.items():
        if seen.setdefault(ours, name) != name:
            raise ValueError(f"{seen[ours]} and {name} are the same parameter; remove one from the checkpoint")
    return translated


def _translate(name: str, *, to_original: bool) -> str | None:
    for pattern, template in _patterns(to_original):
        if found := pattern.fullmatch(name):
            values = found.groupdict()
            if "k" in values:
                values["k"] = str(int(values["k"]) + (1 if to_original else -1))
            return template.format(**values)
    return None


@lru_cache(maxsize=2)
def _patterns(to_original: bool) -> list[tuple[re.Pattern[str], str]]:
    pairs = [(ours, theirs) if to_original else (theirs, ours) for theirs, ours in _TEMPLATES.items()]
    return [(_pattern(source), target) for source, target in pairs]


def _pattern(template: str) -> re.Pattern[str]:
    escaped = template.replace(".", r"\.")
    return re.compile(re.sub(r"\{(\w)\}", lambda field: f"(?P<{field[1]}>{_FIELDS[field[1]]})", escaped))
