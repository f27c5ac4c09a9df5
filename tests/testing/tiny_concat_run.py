"""A CONCAT run small enough for tests: a real model of 57 thousand weights on pictures of two rectangles.

Run as a script it trains until it is done or killed; see ``main``.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, PreTrainedTokenizerFast, ResNetConfig, SwinConfig

from zsseg.layers.mask_transformer import MaskTransformerConfig
from zsseg.models.concat.configuration_concat import ConcatConfig
from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings
from zsseg.training.arguments import TrainerArguments
from zsseg.training.recipes.concat_segmentor import SegmentorStage
from zsseg.training.stage import StageContext
from zsseg.training.trainer import Trainer
from zsseg.vocabulary import Vocabulary

LABELS = ("red", "green", "blue")
SIZE = 32
EMBED_DIM = 8


def build_vocabulary():
    return Vocabulary.from_labels(LABELS, stuff_labels=LABELS)


def build_text_embeds():
    return torch.eye(EMBED_DIM)[: len(LABELS)]


def build_model(seed=0, backbone="resnet", text_config=None):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbones = {
        "resnet": lambda: ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=stages,
        ),
        "swin": lambda: SwinConfig(
            image_size=SIZE,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            drop_path_rate=0.5,
            out_features=stages,
        ),
    }
    segmentor_config = MaskTransformerConfig(
        backbone_config=backbones[backbone](),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=6,
        train_num_points=64,
    )
    torch.manual_seed(seed)
    return ConcatForPanopticSegmentation(
        ConcatConfig(segmentor_config=segmentor_config, text_config=text_config, projection_dim=EMBED_DIM)
    )


def build_processor(labels=LABELS):
    return ConcatProcessor(
        ConcatImageProcessorPil(size={"height": 2 * SIZE, "width": 2 * SIZE}),
        text_embeddings=PrecomputedTextEmbeddings(labels, np.eye(EMBED_DIM)[: len(labels)]),
        threshold=0.3,
    )


def build_text_config():
    return CLIPTextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=EMBED_DIM,
        eos_token_id=2,
    )


def build_processor_with_tokenizer():
    """Every word of the labels is a token; the others are unknown."""
    words = {"<pad>": 0, "<unk>": 1, "<end>": 2} | {label: 3 + i for i, label in enumerate(LABELS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    return ConcatProcessor(
        ConcatImageProcessorPil(size={"height": 2 * SIZE, "width": 2 * SIZE}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            unk_token="<unk>",
            eos_token="<end>",
            model_max_length=16,
        ),
        prompt_templates=["a {}", "the {}"],
    )


class RectanglesDataset:
    """Left half one colour, right half another; noise and flip follow from epoch and index."""

    def __init__(self, length=10):
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = np.random.default_rng([self.epoch, index])
        labels = torch.tensor([index % 3, (index + 1) % 3])
        masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
        masks[0, :, : SIZE // 2] = True
        masks[1] = ~masks[0]
        image = torch.from_numpy(generator.normal(0.0, 0.3, (3, SIZE, SIZE)).astype(np.float32))
        for mask, label in zip(masks, labels, strict=True):
            image[label][mask] += 2.0
        if generator.random() < 0.5:
            image, masks = image.flip(-1), masks.flip(-1)
        return {"pixel_values": image, "mask_labels": masks, "class_labels": labels}


def collate(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    shape = (len(examples), SIZE, SIZE)
    return {
        "pixel_values": pixel_values,
        "pixel_mask": torch.ones(shape, dtype=torch.int64),
        "label_mask": torch.ones(shape, dtype=torch.bool),
        "mask_labels": [example["mask_labels"] for example in examples],
        "class_labels": [example["class_labels"] for example in examples],
    }


def build_trainer(
    output_dir, *, model=None, stage=None, dataset=None, evaluate=None, stream=None, **arguments
):
    defaults = {
        "steps": 6,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
        "num_workers": 0,
        "save_every": 2,
        "log_every": 1,
        "metric_for_best": "score",
    }
    return Trainer(
        model=build_model() if model is None else model,
        stage=SegmentorStage() if stage is None else stage,
        context=StageContext(build_vocabulary(), build_text_embeds(), torch.arange(len(LABELS))),
        dataset=RectanglesDataset() if dataset is None else dataset,
        collate=collate,
        processor=build_processor(),
        arguments=TrainerArguments(output_dir=Path(output_dir), **{**defaults, **arguments}),
        evaluate=evaluate,
        stream=stream,
    )


def read_records(output_dir):
    lines = (Path(output_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class SlowRectanglesDataset(RectanglesDataset):
    """Gives the killer time to strike between two steps."""

    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)


def main(output_dir, arguments_json):
    """Train, or resume if the folder holds a checkpoint; the last step is printed."""
    arguments = json.loads(arguments_json)
    backbone = arguments.pop("backbone")
    resume = arguments.pop("resume")
    trainer = build_trainer(
        output_dir, model=build_model(backbone=backbone), dataset=SlowRectanglesDataset(), **arguments
    )
    print(trainer.train(resume=resume).step)


if __name__ == "__main__":
    main(*sys.argv[1:])
