"""A tiny CLIP of Patchwork (arXiv:2103.00020): trained on captions of scenes and of masked objects.

Like the CLIP of photographs it meets every category as words and pixels and never a mask to predict. It gives
the segmentors their text space, and later recipes a vision tower to learn from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from zsseg.data.patchwork.captions import COUNT_WORDS, build_plural, describe_category
from zsseg.data.patchwork.categories import MATERIALS, SHAPES, SURFACES, TONES
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.losses.across_processes import gather_rows
from zsseg.losses.contrastive import compute_image_text_contrastive_loss
from zsseg.losses.token_alignment import compute_image_keys
from zsseg.training.arguments import MixedPrecision, TrainerArguments
from zsseg.training.checkpointing import find_checkpoints
from zsseg.training.patchwork_clip_evaluation import (
    IMAGE_SIZE,
    MEAN_COLOR,
    crop_segment,
    evaluate_patchwork_clip,
    normalise_crops,
)
from zsseg.training.recipe import RecipeStep, run_recipe
from zsseg.training.stage import Batch, Stage
from zsseg.training.trainer import TrainingResult

EMBED_DIM = 128
CONTEXT_LENGTH = 40
SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[UNK]", "[EOS]")
LARGEST_LOGIT_SCALE = 100.0
CLIP_SEED = 1
VALIDATION_SEED = 2
VALIDATION_SCENES = 100
TRAINING_SCENES = 1_000_000


def build_patchwork_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of everything Patchwork's captions say; other words become ``[UNK]``."""
    words = [
        *("a", "and", "on", ",", "photo", "of"),
        *COUNT_WORDS[2:],
        *SURFACES,
        *SHAPES,
        *(build_plural(shape) for shape in SHAPES),
        *TONES,
        *MATERIALS,
    ]
    ids = {word: token_id for token_id, word in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[(name, ids[name]) for name in ("[BOS]", "[EOS]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT_LENGTH,
        pad_token="[PAD]",
        bos_token="[BOS]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_patchwork_clip(seed: int = 0) -> tuple[CLIPModel, CLIPProcessor]:
    """An untrained CLIP of 64² pictures and its processor."""
    tokenizer = build_patchwork_tokenizer()
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT_LENGTH,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "projection_dim": EMBED_DIM,
        },
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 6,
            "num_attention_heads": 5,
            "projection_dim": EMBED_DIM,
        },
        projection_dim=EMBED_DIM,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=Image.Resampling.BILINEAR,
        image_mean=[channel / 255 for channel in MEAN_COLOR],
        image_std=[0.25] * 3,
    )
    return model, CLIPProcessor(image_processor, tokenizer)


class CaptionedPicture(NamedTuple):
    """A picture of CLIP's size and what it shows."""

    pixels: NDArray[np.uint8]
    caption: str


class CaptionedScenes:
    """Each item is one scene as captioned pictures: the whole, and every segment by itself.

    Args:
        scenes: where they come from.
        is_thinned: leave out the whole scenes, and the stuff of every second scene: things, whose surfaces
            are the hard part, then make up most pictures.
    """

    def __init__(self, scenes: PatchworkDataset, *, is_thinned: bool = False) -> None:
        self.scenes = scenes
        self.is_thinned = is_thinned

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> list[CaptionedPicture]:
        example = self.scenes[index]
        has_stuff = not self.is_thinned or index % 2 == 0
        segments = [segment for segment in example.target.segments if segment.isthing or has_stuff]
        pictures = [
            CaptionedPicture(
                np.asarray(crop_segment(example, segment)),
                describe_category(self.scenes.vocabulary[segment.label_id]),
            )
            for segment in segments
        ]
        if self.is_thinned:
            return pictures
        whole = example.image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
        return [CaptionedPicture(np.asarray(whole), self.scenes.caption(example.target)), *pictures]


@dataclass(frozen=True)
class CaptionCollator:
    """Captioned pictures of several scenes → one batch in which every caption stands once.

    Attributes:
        processor: CLIP's, for its normalisation and tokens.
    """

    processor: CLIPProcessor

    def __call__(self, scenes: Sequence[Sequence[CaptionedPicture]]) -> Batch:
        """Pictures and distinct captions as tensors.

        Returns:
            ``pixel_values`` (B, 3, H, W); ``input_ids`` and ``attention_mask`` (T, L); ``text_indices`` (B,)
            into the captions; ``text_keys`` (T,), numbers that stand for the captions in all processes.
        """
        pictures = [picture for scene in scenes for picture in scene]
        captions = list(dict.fromkeys(picture.caption for picture in pictures))
        index_by_caption = {caption: index for index, caption in enumerate(captions)}
        tokens = self.processor.tokenizer(captions, padding=True, return_tensors="pt")
        return {
            "pixel_values": normalise_crops(
                np.stack([picture.pixels for picture in pictures]), self.processor
            ),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "text_indices": torch.tensor([index_by_caption[picture.caption] for picture in pictures]),
            "text_keys": compute_image_keys(captions),
        }


class PatchworkClipStage(Stage):
    """Both towers and the temperature, from random weights."""

    name: ClassVar[str] = "clip"

    def is_trainable(self, parameter_name: str) -> bool:
        """Everything."""
        return True

    def compute_loss(self, model: Any, batch: Batch, context: Any) -> dict[str, Tensor]:
        """The contrastive loss over the distinct captions of all processes' batches."""
        image_embeds = model.get_image_features(batch["pixel_values"]).pooler_output
        text_embeds = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        scale = model.logit_scale.exp().clamp(max=LARGEST_LOGIT_SCALE)
        keys, picture_keys = (
            gather_rows(own) for own in (batch["text_keys"], batch["text_keys"][batch["text_indices"]])
        )
        # A caption that several processes have stands once, as that of the first of them.
        distinct, rows = keys.unique(return_inverse=True)
        first = torch.full_like(distinct, len(keys)).scatter_reduce_(
            0, rows, torch.arange(len(keys), device=keys.device), "amin"
        )
        loss = compute_image_text_contrastive_loss(
            gather_rows(image_embeds),
            gather_rows(text_embeds)[first],
            torch.searchsorted(distinct, picture_keys),
            scale,
        )
        return {"loss": loss, "logit_scale": scale}


class PatchworkVisionStage(PatchworkClipStage):
    """The vision tower goes on alone, the text tower locked (LiT, arXiv:2111.07991).

    Words settle long before small, blurred objects are told apart. A segmentor can take the text tower as it
    is when this stage begins.
    """

    name: ClassVar[str] = "vision"

    def is_trainable(self, parameter_name: str) -> bool:
        """The vision tower, its projection and the temperature."""
        return parameter_name.startswith(("vision_model.", "visual_projection.", "logit_scale"))


def build_patchwork_clip_stages(
    output: Path,
    *,
    clip_steps: int,
    vision_steps: int,
    batch_size: int = 16,
    mixed_precision: MixedPrecision = "bf16",
    seed: int = 0,
    num_workers: int = 1,
) -> dict[str, TrainerArguments]:
    """Arguments of both stages; a step sees ``batch_size`` scenes, about seven pictures each."""
    clip = TrainerArguments(
        output_dir=output / PatchworkClipStage.name,
        steps=clip_steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        backbone_learning_rate_multiplier=1.0,
        max_grad_norm=1.0,
        warmup_steps=min(100, clip_steps - 1),
        schedule="polynomial",
        mixed_precision=mixed_precision,
        seed=seed,
        evaluate_every=250,
        save_every=250,
        num_workers=num_workers,
        metric_for_best="top1",
    )
    vision = replace(
        clip,
        output_dir=output / PatchworkVisionStage.name,
        steps=vision_steps,
        warmup_steps=min(100, vision_steps - 1),
    )
    return {PatchworkClipStage.name: clip, PatchworkVisionStage.name: vision}


def train_patchwork_clip(
    stages: Mapping[str, TrainerArguments],
    *,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> tuple[CLIPModel, CLIPProcessor, dict[str, TrainingResult]]:
    """Train Patchwork's CLIP from random weights.

    Args:
        stages: as :func:`build_patchwork_clip_stages` makes them.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        The trained model, its processor, and how each stage ended.

    Raises:
        As :func:`~zsseg.training.recipe.run_recipe`.
    """
    model, processor = build_patchwork_clip(stages[PatchworkClipStage.name].seed)
    held_out = PatchworkDataset(seed=VALIDATION_SEED, num_scenes=VALIDATION_SCENES)
    results: dict[str, TrainingResult] = {}
    for stage in (PatchworkClipStage(), PatchworkVisionStage()):
        # Resuming goes to the last stage that began: its checkpoint holds what the one before learnt.
        is_thinned = isinstance(stage, PatchworkVisionStage)
        if resume and not is_thinned and find_checkpoints(stages[PatchworkVisionStage.name].output_dir):
            continue
        is_resumed = resume and bool(find_checkpoints(stages[stage.name].output_dir))
        results |= run_recipe(
            [
                RecipeStep(
                    stage,
                    stages[stage.name],
                    lambda trained: evaluate_patchwork_clip(trained, processor, held_out)[0],
                )
            ],
            model=model,
            processor=processor,
            context=None,
            dataset=CaptionedScenes(
                PatchworkDataset(seed=CLIP_SEED, num_scenes=TRAINING_SCENES), is_thinned=is_thinned
            ),
            collate=CaptionCollator(processor),
            data_setup={"world": "Patchwork standard, all categories" + is_thinned * ", thinned"},
            resume=is_resumed,
            # A resumed run may find what a stage left that was killed before its first checkpoint.
            overwrite=overwrite or (resume and not is_resumed),
            stream=stream,
        )
        if not results[stage.name].is_complete:
            break
    return model, processor, results
