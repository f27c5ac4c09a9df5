"""Real classes at tiny size: backbones, text towers, a tokenizer, and the checkpoints made of them."""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    ResNetConfig,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from zsseg.layers.mask_transformer import MaskTransformerConfig
from zsseg.layers.mobilenet_v2_backbone import MobileNetV2BackboneConfig
from zsseg.models.concat.configuration_concat import ConcatConfig
from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.models.scan.configuration_scan import ScanConfig
from zsseg.models.scan.image_processing_scan import ScanImageProcessorPil
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation
from zsseg.models.scan.processing_scan import ScanProcessor
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings

STAGES = ["stage1", "stage2", "stage3", "stage4"]
NUM_QUERIES = 6
HIDDEN_DIM = 32
TEXT_WIDTH = 12
CONTEXT = 77
SIZE = {"shortest_edge": 64, "longest_edge": 96}
BANK_NAMES = ("road", "car", "traffic light", "tree")
SEGMENTOR_SIZES = {
    "feature_size": HIDDEN_DIM,
    "mask_feature_size": HIDDEN_DIM,
    "hidden_dim": HIDDEN_DIM,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": NUM_QUERIES,
    "train_num_points": 64,
}


def build_backbone_config(name):
    if name == "swin":
        return SwinConfig(
            embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES
        )
    if name == "resnet":
        return ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1] * 4,
            layer_type="basic",
            out_features=STAGES,
        )
    return MobileNetV2BackboneConfig(depth_multiplier=0.25, depth_divisible_by=4, min_depth=4)


def build_clip_text_config(**changes):
    tokenizer = build_tokenizer()
    return CLIPTextConfig(
        **{
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT,
            "projection_dim": TEXT_WIDTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_factor": 5.0,  # else every text has nearly the same vector
            **changes,
        }
    )


def build_bert_config():
    return BertConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(build_tokenizer()),
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.5,
        initializer_range=1.0,
    )


def build_tokenizer(**changes):
    """A token per byte, so that every text there is has its own ids."""
    # Of a text tower whose <end> has id 2, transformers pools the largest id, here the space, not <end>.
    specials = ["<pad>", "<spare>", "<start>", "<end>"]
    alphabet = specials + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(token, specials.index(token)) for token in ("<start>", "<end>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{
            "pad_token": "<pad>",
            "bos_token": "<start>",
            "eos_token": "<end>",
            "model_max_length": CONTEXT,
            **changes,
        },
    )


def build_config(backbone="resnet", text_config=None, **changes):
    return ConcatConfig(
        segmentor_config=MaskTransformerConfig(
            backbone_config=build_backbone_config(backbone), **SEGMENTOR_SIZES
        ),
        text_config=text_config,
        **{"projection_dim": TEXT_WIDTH, **changes},
    )


def build_model(backbone="resnet", seed=0, **changes):
    torch.manual_seed(seed)
    return ConcatForPanopticSegmentation(build_config(backbone, **changes)).eval()


def build_bank(names=BANK_NAMES, width=TEXT_WIDTH):
    vectors = np.random.default_rng(7).normal(size=(len(names), width))
    return PrecomputedTextEmbeddings(names, vectors)


def build_processor(**changes):
    arguments = {"threshold": 0.0, "overlap_mask_area_threshold": 0.0, **changes}
    if "text_embeddings" not in arguments:
        arguments.setdefault("tokenizer", build_tokenizer())
    return ConcatProcessor(ConcatImageProcessorPil(size=SIZE), **arguments)


def build_clip_vision_config(**changes):
    return CLIPVisionConfig(
        **{
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": TEXT_WIDTH,
            "initializer_factor": 5.0,  # else every crop has nearly the same vector
            **changes,
        }
    )


def build_scan_config(backbone="resnet", text_config=None, vision=None, segmentor=None, **changes):
    """``vision`` and ``segmentor`` change fields of these parts."""
    return ScanConfig(
        segmentor_config=MaskTransformerConfig(
            backbone_config=build_backbone_config(backbone), **SEGMENTOR_SIZES | (segmentor or {})
        ),
        text_config=text_config,
        **{
            "vision_config": build_clip_vision_config(**vision or {}),
            "projection_dim": TEXT_WIDTH,
            "proposal_hidden_dim": 24,
            "integration_layers": (1, 2, 3),
            "integration_heads": 2,
            "integration_feedforward_dim": 20,
            "integration_encoder_layers": 2,  # five leave little of what tells random queries apart
            "integration_dropout": 0.0,
            "logit_scale": 10.0,  # random embeddings under 100 are certain of one label
            "shift_layers": (1, 3),
            "shift_ratio": 0.5,
            "crop_mask_threshold": 0.99,  # masks of random weights are everywhere
            **changes,
        },
    )


def build_scan(backbone="resnet", seed=5, **changes):
    # Of the seeds tried, the one whose queries differ most.
    torch.manual_seed(seed)
    model = ScanForSemanticSegmentation(build_scan_config(backbone, **changes)).eval()
    with torch.no_grad():  # else no mask is far from a probability of a half anywhere
        model.segmentor.pixel_level_module.decoder.mask_projection.weight.mul_(50)
    return model


def build_scan_processor(**changes):
    arguments = {"threshold": 0.0, "overlap_mask_area_threshold": 0.0, **changes}
    if "text_embeddings" not in arguments:
        arguments.setdefault("tokenizer", build_tokenizer())
    return ScanProcessor(ScanImageProcessorPil(size=SIZE), **arguments)


def save_finding_concat(folder, pictures):
    """CONCAT of random weights, with a text tower, that finds some label in every query of the pictures."""
    # Of the seeds tried, this one finds several segments of "road, car, tree" in every photo of the tests.
    model, processor = build_model(seed=8, text_config=build_clip_text_config()), build_processor()
    with torch.no_grad():
        outputs = model(**processor(pictures, ["road"]))
        # No-object points away from all queries, so that it never wins.
        model.no_object_embedding.copy_(-outputs.semantic_embeds.mean(dim=(0, 1)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_mask2former(folder, backbone="swin"):
    torch.manual_seed(1)
    labels = {0: "road", 1: "unicorn", 2: "car"}
    config = Mask2FormerConfig(
        backbone_config=build_backbone_config(backbone), id2label=labels, **SEGMENTOR_SIZES
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessorPil(size=SIZE, image_mean=[0.4] * 3).save_pretrained(folder)


def save_clip(folder):
    torch.manual_seed(2)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    text = build_clip_text_config().to_dict()
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=[0.45] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def save_bert(folder):
    torch.manual_seed(3)
    BertModel(build_bert_config()).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def build_picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
