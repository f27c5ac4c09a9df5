"""A CLIP with a vision transformer: open_clip's names and configuration ↔ those of transformers.

One checkpoint of transformers serves twice: its text tower goes into a CONCAT, its vision tower teaches.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from zsseg.conversion.source_weights import SourceWeights, fill_module, read_source_weights
from zsseg.layers.vision_language import import_open_clip

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
MARKER = "transformer.resblocks.0.attn.in_proj_weight"
EXPECTED = "a CLIP by open_clip"
OTHER_KINDS = {
    r"(text_model|vision_model)\.": "they are of transformers; for the other direction give its folder and "
    "--to-open-clip",
    r"text\.": "its text tower is one of its own class (CoCa, SigLIP, a model of transformers), not CLIP's",
}
READ_FIELDS = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
WITHOUT_EFFECT: dict[str, Any] = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "pad_id": (0,),
    "eos_id": (2,),
    "init_logit_scale": None,
}
"""Further fields, with the values at which transformers' CLIP is the same; None for any."""
HEAD_WIDTH = 64
"""Of a vision tower whose configuration names no other."""
DEFAULT_VALUES = {"context_length": 77, "vocab_size": 49408, "heads": 8}
NORM_EPSILON = 1e-5
AFFINE = ("weight", "bias")
ACTIVATIONS = {True: "quick_gelu", False: "gelu"}


@dataclass(frozen=True)
class Pair:
    """A weight of open_clip and those of transformers, which lie in it one after the other or transposed."""

    source: str
    targets: tuple[str, ...]
    is_transposed: bool = False


@dataclass(frozen=True)
class OpenClipSettings:
    """What open_clip's configuration says and the weights do not.

    Attributes:
        vision_heads: attention heads of the vision tower.
        text_heads: of the text tower.
        activation: "quick_gelu" or "gelu".
        image_mean: per channel, of pixels in [0, 1].
        image_std: per channel.
        model_config: the configuration itself, for open_clip's class.
    """

    vision_heads: int
    text_heads: int
    activation: str
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    model_config: dict[str, Any]


def find_open_clip_files(source: Path, config: Path | None) -> tuple[Path, Path]:
    """The files of weights and of the configuration.

    Args:
        source: the weights, or a folder as open_clip publishes it.
        config: the configuration; None to look for it beside the weights.

    Raises:
        FileNotFoundError: if one is not there.
    """
    weights = source
    if source.is_dir():
        found = [source / name for name in WEIGHT_FILES if (source / name).is_file()]
        if not found:
            raise FileNotFoundError(
                f"{source} holds none of {list(WEIGHT_FILES)}: name the file of weights itself"
            )
        weights = found[0]
    config = weights.with_name(CONFIG_FILE) if config is None else config
    if not config.is_file():
        raise FileNotFoundError(
            f"there is no configuration {config}: weights do not say how many attention heads they have, nor "
            "which GELU. Give it with --config; it is beside the weights on the Hub, or in open_clip's "
            "folder model_configs"
        )
    return weights, config


def read_open_clip_settings(path: Path) -> OpenClipSettings:
    """Read open_clip's configuration.

    Args:
        path: of "open_clip_config.json", or of one in open_clip's "model_configs".

    Raises:
        ValueError: if it is none, or asks for what transformers' CLIP does not have.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        config = document.get("model_cfg", document)
        vision, text = config["vision_cfg"], config["text_cfg"]
        width = vision["width"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no configuration of a CLIP by open_clip ({error!r}): expected JSON with embed_dim, "
            "vision_cfg and text_cfg, the vision tower with a width of its own"
        ) from error
    for part, values in (("", config), ("vision_cfg", vision), ("text_cfg", text)):
        _check_fields(path, part, values)
    preprocess = document.get("preprocess_cfg", {})
    return OpenClipSettings(
        vision_heads=width // vision.get("head_width", HEAD_WIDTH),
        text_heads=text.get("heads", DEFAULT_VALUES["heads"]),
        activation=ACTIVATIONS[bool(config.get("quick_gelu", False))],
        image_mean=tuple(preprocess.get("mean", OPENAI_CLIP_MEAN)),
        image_std=tuple(preprocess.get("std", OPENAI_CLIP_STD)),
        model_config=config,
    )


def _check_fields(path: Path, part: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in READ_FIELDS[part] or not value:
            continue
        if name in WITHOUT_EFFECT and (WITHOUT_EFFECT[name] is None or value in WITHOUT_EFFECT[name]):
            continue
        where = f"{part}.{name}" if part else name
        raise ValueError(
            f"{path} sets {where} to {value!r}, which transformers' CLIP does not have: this model cannot be "
            "converted"
        )


def read_open_clip_weights(path: Path) -> SourceWeights:
    """The weights of a file by open_clip.

    Raises:
        OSError: as of :func:`~.weight_files.load_weight_file`.
        ValueError: likewise, and if they are of another kind.
    """
    weights = read_source_weights(path)
    weights.check_marker(MARKER, EXPECTED, OTHER_KINDS)
    if "visual.conv1.weight" not in weights or "visual.class_embedding" not in weights:
        raise ValueError(
            "the vision tower is no vision transformer of CLIP (visual.class_embedding is missing): ResNets "
            "and towers of timm cannot be converted"
        )
    return weights


def read_clip_config(weights: SourceWeights, settings: OpenClipSettings) -> CLIPConfig:
    """The configuration for transformers, sizes from the weights.

    Raises:
        ValueError: if the settings are of another model.
    """
    vision_width, _, patch_size, _ = weights.get_shape("visual.conv1.weight")
    patches = weights.get_shape("visual.positional_embedding")[0] - 1
    side = round(patches**0.5)
    vocab_size, text_width = weights.get_shape("token_embedding.weight")
    context = weights.get_shape("positional_embedding")[0]
    embed_dim = weights.get_shape("text_projection")[1]
    layers = {
        tower: weights.count(f"{prefix}transformer.resblocks.{{}}.ln_1.weight")
        for tower, prefix in (("vision_cfg", "visual."), ("text_cfg", ""))
    }
    found = {
        "embed_dim": embed_dim,
        "vision_cfg.width": vision_width,
        "vision_cfg.layers": layers["vision_cfg"],
        "vision_cfg.patch_size": patch_size,
        "vision_cfg.image_size": side * patch_size,
        "text_cfg.width": text_width,
        "text_cfg.layers": layers["text_cfg"],
        "text_cfg.context_length": context,
        "text_cfg.vocab_size": vocab_size,
    }
    for field, value in found.items():
        part, _, name = field.rpartition(".")
        values = settings.model_config[part] if part else settings.model_config
        stated = values.get(name, DEFAULT_VALUES.get(name, value))
        if stated not in (value, [value, value]):
            raise ValueError(
                f"the configuration says {field} {stated}, the weights {value}: it is of another model"
            )
    for tower, width, heads in (
        ("vision", vision_width, settings.vision_heads),
        ("text", text_width, settings.text_heads),
    ):
        if heads < 1 or width % heads:
            raise ValueError(
                f"the {tower} tower's width {width} is no multiple of its {heads} attention heads"
            )
    shared = {"hidden_act": settings.activation, "layer_norm_eps": NORM_EPSILON, "projection_dim": embed_dim}
    return CLIPConfig(
        projection_dim=embed_dim,
        vision_config={
            **shared,
            "hidden_size": vision_width,
            "intermediate_size": weights.get_shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0],
            "num_hidden_layers": layers["vision_cfg"],
            "num_attention_heads": settings.vision_heads,
            "image_size": side * patch_size,
            "patch_size": patch_size,
        },
        text_config={
            **shared,
            "hidden_size": text_width,
            "intermediate_size": weights.get_shape("transformer.resblocks.0.mlp.c_fc.weight")[0],
            "num_hidden_layers": layers["text_cfg"],
            "num_attention_heads": settings.text_heads,
            "vocab_size": vocab_size,
            "max_position_embeddings": context,
            # open_clip reads a text where its id is largest, which is that of <end>.
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": vocab_size - 1,
        },
    )


def convert_from_open_clip(weights: SourceWeights, settings: OpenClipSettings) -> CLIPModel:
    """A CLIP of transformers, float32.

    Raises:
        ValueError: if weights are missing, left over, or do not fit.
    """
    config = read_clip_config(weights, settings)
    pairs = list_clip_pairs(config)
    weights.check_present(pair.source for pair in pairs)
    converted: dict[str, Tensor] = {}
    for pair in pairs:
        tensor = weights.take(pair.source, *pair.targets)
        parts = tensor.chunk(len(pair.targets)) if tensor.ndim else (tensor,)
        converted.update(
            zip(pair.targets, (part.T if pair.is_transposed else part for part in parts), strict=True)
        )
    weights.drop(r"input_resolution|context_length|vocab_size", "a size, read from the shapes")
    weights.check_accounted()
    model = CLIPModel(config).eval()
    fill_module(model, converted, {}, weights.books)
    return model


def convert_to_open_clip(model: CLIPModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and model configuration for open_clip.

    Args:
        model: of transformers.

    Raises:
        ValueError: if open_clip has no such model.
    """
    source = SourceWeights(model.state_dict())
    tensors: dict[str, Tensor] = {}
    for pair in list_clip_pairs(model.config):
        parts = [source.take(target, pair.source) for target in pair.targets]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        tensors[pair.source] = (tensor.T if pair.is_transposed else tensor).contiguous().clone()
    source.check_accounted()
    return tensors, _build_open_clip_config(model.config)


def _build_open_clip_config(config: CLIPConfig) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    activations = {vision.hidden_act, text.hidden_act}
    if len(activations) > 1 or not activations <= set(ACTIVATIONS.values()):
        raise ValueError(
            f"open_clip's CLIP has one GELU or quick GELU for both towers, got {sorted(activations)}"
        )
    for tower in (vision, text):
        if tower.layer_norm_eps != NORM_EPSILON:
            raise ValueError(f"open_clip's norms add {NORM_EPSILON}, this model's {tower.layer_norm_eps}")
    # With id 2 transformers reads a text where its id is largest, as open_clip does.
    if text.eos_token_id not in (2, text.vocab_size - 1):
        raise ValueError(
            f"open_clip reads a text where its id is largest, so <end> must be {text.vocab_size - 1}, but it "
            f"is {text.eos_token_id}"
        )
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == ACTIVATIONS[True],
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "mlp_ratio": _compute_ratio(vision.intermediate_size, vision.hidden_size),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": _compute_ratio(text.intermediate_size, text.hidden_size),
        },
    }


def _compute_ratio(intermediate: int, width: int) -> float:
    """Such that open_clip, which cuts off the product with the width, comes to ``intermediate``."""
    ratio = intermediate / width
    return ratio if int(width * ratio) == intermediate else (intermediate + 0.5) / width


def list_clip_pairs(config: CLIPConfig) -> list[Pair]:
    """All weights of a CLIP."""
    return [
        Pair("logit_scale", ("logit_scale",)),
        Pair("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
        Pair("positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
        *_list_layers("transformer", "text_model", config.text_config.num_hidden_layers),
        *_list_affine("ln_final", "text_model.final_layer_norm"),
        Pair("text_projection", ("text_projection.weight",), is_transposed=True),
        Pair("visual.conv1.weight", ("vision_model.embeddings.patch_embedding.weight",)),
        Pair("visual.class_embedding", ("vision_model.embeddings.class_embedding",)),
        Pair("visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",)),
        *_list_affine("visual.ln_pre", "vision_model.pre_layrnorm"),
        *_list_layers("visual.transformer", "vision_model", config.vision_config.num_hidden_layers),
        *_list_affine("visual.ln_post", "vision_model.post_layernorm"),
        Pair("visual.proj", ("visual_projection.weight",), is_transposed=True),
    ]


def _list_layers(transformer: str, tower: str, num_layers: int) -> Iterator[Pair]:
    for index in range(num_layers):
        block, layer = f"{transformer}.resblocks.{index}", f"{tower}.encoder.layers.{index}"
        for name in AFFINE:
            parts = tuple(f"{layer}.self_attn.{part}_proj.{name}" for part in "qkv")
            yield Pair(f"{block}.attn.in_proj_{name}", parts)
        for source, target in (
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ):
            yield from _list_affine(f"{block}.{source}", f"{layer}.{target}")


def _list_affine(source: str, target: str) -> Iterator[Pair]:
    for name in AFFINE:
        yield Pair(f"{source}.{name}", (f"{target}.{name}",))


def build_clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of OpenAI's CLIP, from the vocabulary that comes with open_clip.

    Raises:
        ImportError: if open_clip cannot be imported.
    """
    source = import_open_clip().tokenizer.SimpleTokenizer()
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {source.sot_token_id: start, source.eot_token_id: end}
    vocab = {names.get(index, token): index for token, index in source.encoder.items()}
    return CLIPTokenizer(
        vocab=vocab,
        merges=list(source.bpe_ranks),
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=source.context_length,
    )


@torch.no_grad()
def compute_open_clip_outputs(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], pixel_values: Tensor, input_ids: Tensor
) -> dict[str, Tensor]:
    """What open_clip's own model gives, in the dtype of the pictures.

    Args:
        config: of the model.
        tensors: its weights.
        pixel_values: (B, 3, S, S), normalised.
        input_ids: (T, L).

    Returns:
        "image embeddings" (B, D) and "text embeddings" (T, D), not normalised, and "logit scale".

    Raises:
        ImportError: if open_clip cannot be imported.
    """
    clip_class = import_open_clip().CLIP
    fields = {name: config[name] for name in ("embed_dim", "vision_cfg", "text_cfg")}
    model = (
        clip_class(**fields, quick_gelu=bool(config.get("quick_gelu", False))).eval().to(pixel_values.dtype)
    )
    own_sizes = ("input_resolution", "context_length", "vocab_size")
    model.load_state_dict({name: value for name, value in tensors.items() if name not in own_sizes})
    return {
        "image embeddings": model.encode_image(pixel_values),
        "text embeddings": model.encode_text(input_ids),
        "logit scale": model.logit_scale,
    }


@torch.no_grad()
def compute_clip_outputs(model: CLIPModel, pixel_values: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
    """The same of transformers' model."""
    return {
        "image embeddings": model.get_image_features(pixel_values=pixel_values).pooler_output,
        "text embeddings": model.get_text_features(input_ids=input_ids).pooler_output,
        "logit scale": model.logit_scale,
    }


def build_clip_inputs(config: CLIPConfig) -> tuple[Tensor, Tensor]:
    """Two pictures of noise, float64, and three texts of random tokens, of different lengths."""
    generator = torch.Generator().manual_seed(0)
    size, text = config.vision_config.image_size, config.text_config
    pixel_values = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    return pixel_values, build_token_ids(text.vocab_size, text.max_position_embeddings, generator)


def build_token_ids(vocab_size: int, context: int, generator: torch.Generator) -> Tensor:
    """Three texts (3, L) of random tokens, of different lengths, each ended by the last token there is."""
    end = vocab_size - 1
    input_ids = torch.randint(1, end, (3, context), generator=generator)
    for row, length in enumerate((context, context // 2 + 1, 2)):
        input_ids[row, length - 1] = end
        input_ids[row, length:] = 0
    return input_ids
