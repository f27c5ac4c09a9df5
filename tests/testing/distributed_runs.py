"""Runs of every kind of stage, small enough to compare one process with two on the same examples.

Run as a script in both processes it trains what is asked for; see ``main``. Pictures hold two segments, one
or none, and some have pixels whose truth is unknown: processes that divide by their own counts go wrong.
"""

import io
import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch

from testing.tiny_concat_run import (
    EMBED_DIM,
    LABELS,
    SIZE,
    RectanglesDataset,
    build_model,
    build_trainer,
    collate,
)
from testing.tiny_scan_run import build_scan_model, build_scan_trainer
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.models.concat.adaptation_concat import UnionOptions
from zsseg.models.concat.query_memory import NO_OBJECT
from zsseg.training.arguments import TrainerArguments
from zsseg.training.query_store import collate_queries
from zsseg.training.recipes.concat_segmentor import (
    AlignmentOptions,
    AlignmentStage,
    BackboneStage,
    SegmentorStage,
    WarmupStage,
)
from zsseg.training.recipes.concat_transition import GeneratorStage, TransitionOptions, UnionStage
from zsseg.training.recipes.patchwork_clip import (
    CaptionCollator,
    CaptionedScenes,
    PatchworkClipStage,
    build_patchwork_clip,
)
from zsseg.training.recipes.scan_stages import ContextualShiftStage, ProposalStage
from zsseg.training.stage import StageContext
from zsseg.training.trainer import Trainer
from zsseg.vocabulary import Vocabulary

PICTURE_STAGES = {
    "backbone": BackboneStage,
    "warmup": lambda: WarmupStage(segment_weight=1.0),
    "segmentor": SegmentorStage,
    "alignment": lambda: AlignmentStage(AlignmentOptions(bank_size=5), EMBED_DIM),
}
QUERY_STAGES = {
    "generator": lambda: GeneratorStage(TransitionOptions(generator_type="cvae", moments="pooled")),
    "union": lambda: UnionStage(UnionOptions(labels_per_step=1)),
}
SCAN_STAGES = {
    "proposals": ProposalStage,
    "contextual_shift": ContextualShiftStage,
    # Nearly all pictures without a segment: one process of two often has none, at times both.
    "contextual_shift_of_few": ContextualShiftStage,
}
STAGES = (*PICTURE_STAGES, *SCAN_STAGES, *QUERY_STAGES, "clip")
QUERY_DIM = 32


class UnevenDataset(RectanglesDataset):
    """Of four pictures one has a single segment beside void, and one has none; the first has its both.

    Args:
        counts: segments of the second, third and last of four pictures.
    """

    def __init__(self, counts=(1, 2, 0)):
        super().__init__(length=16)
        self.counts = counts

    def __getitem__(self, index):
        example = super().__getitem__(index)
        kept = (2, *self.counts)[index % 4]
        known = example["mask_labels"][:kept].any(dim=0)
        if kept == 0:
            known[: SIZE // 2] = True
        return {
            **example,
            "index": index,
            "mask_labels": example["mask_labels"][:kept],
            "class_labels": example["class_labels"][:kept],
            "label_mask": known,
        }


def collate_uneven(examples):
    tokens = torch.randn(16, EMBED_DIM, generator=torch.Generator().manual_seed(4))
    indices = [example["index"] for example in examples]
    return {
        **collate(examples),
        "label_mask": torch.stack([example["label_mask"] for example in examples]),
        "image_ids": indices,
        "image_tokens": tokens[indices],
        "segment_tokens": [torch.eye(EMBED_DIM)[example["class_labels"] + 3] for example in examples],
    }


class RandomQueries:
    """Six queries a picture, some of them matched."""

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.queries = torch.randn(16, 6, QUERY_DIM, generator=generator)
        draws = torch.randint(0, 2 * len(LABELS), (16, 6), generator=generator)
        self.label_ids = torch.where(draws < len(LABELS), draws, NO_OBJECT)

    def __len__(self):
        return len(self.queries)

    def __getitem__(self, index):
        return self.queries[index], self.label_ids[index]


def score(model):
    """Of the weights themselves, and with a random draw that no training may notice."""
    draw = float(torch.rand(()))
    total = sum(float(parameter.double().abs().sum()) for parameter in model.parameters())
    return {"score": total + 0.0 * draw}


def build_stage_trainer(name, folder, *, model=None, dataset=None, evaluate=None, stream=None, **arguments):
    """A trainer of a stage; plain gradient descent, where Adam would enlarge roundings to its rate."""
    arguments = {
        "steps": 3,
        "batch_size": 4,
        "optimizer": "sgd",
        "learning_rate": 0.005,
        "max_grad_norm": 10.0,
        "weight_decay": 0.0,
        **arguments,
    }
    if name == "clip":
        return build_clip_trainer(folder, stream=stream, **arguments)
    if name in SCAN_STAGES:
        # Its untrained masks have gradients a hundred times as large, which would enlarge roundings too.
        arguments["learning_rate"] /= 10
        trainer = build_scan_trainer(
            folder,
            model=model,
            stage=SCAN_STAGES[name](),
            dataset=UnevenDataset((0, 0, 0)) if name == "contextual_shift_of_few" else UnevenDataset(),
            stream=stream,
            **arguments,
        )
        trainer.collate = collate_uneven
        return trainer
    model = build_model() if model is None else model
    is_on_pictures = name in PICTURE_STAGES
    if not is_on_pictures and model.generator is None:
        torch.manual_seed(0)
        model.attach_generator("cvae", noise_dim=4, hidden_dim=16)
    dataset = dataset or (UnevenDataset() if is_on_pictures else RandomQueries())
    trainer = build_trainer(
        folder,
        model=model,
        stage=(PICTURE_STAGES | QUERY_STAGES)[name](),
        dataset=dataset,
        evaluate=evaluate,
        stream=stream,
        **arguments,
    )
    trainer.collate = collate_uneven if is_on_pictures else collate_queries
    if not is_on_pictures:
        vocabulary = Vocabulary.from_labels([*LABELS, "grey", "white"], unseen_labels=["grey", "white"])
        # "red" has a synonym: which of its two texts a query learns from is drawn.
        trainer.context = StageContext(
            vocabulary, torch.eye(EMBED_DIM)[:6], torch.tensor([0, 1, 2, 3, 4, 0])
        ).to(trainer.accelerator.device)
    return trainer


def build_start_model(name, seed):
    """What a stage begins with."""
    if name in SCAN_STAGES:
        return build_scan_model(seed, has_shifted_tower=name != "proposals")
    return build_model(seed=seed)


def build_clip_trainer(folder, *, stream, **arguments):
    """Pictures with captions, several of which stand in both halves of a batch."""
    model, processor = build_patchwork_clip(seed=0)
    scenes = PatchworkDataset("easy", seed=1, num_scenes=6)
    return Trainer(
        model=model,
        stage=PatchworkClipStage(),
        context=None,
        dataset=CaptionedScenes(scenes),
        collate=CaptionCollator(processor),
        processor=processor,
        arguments=TrainerArguments(
            output_dir=folder, num_workers=0, save_every=None, log_every=1, **arguments
        ),
        stream=stream,
    )


class UnevenStream:
    """Parts of different lengths, shuffled anew in every epoch; it notes what was read of it, and when."""

    def __init__(self, indices=tuple(range(16)), notes=None):
        self.indices = list(indices)
        self.epoch = 0
        self.examples = UnevenDataset()
        self.notes = notes

    def set_epoch(self, epoch):
        self.epoch = epoch

    def shard(self, index, count):
        # The first part has six more examples than the others.
        parts = [self.indices[6:][part::count] for part in range(count)]
        parts[0] = self.indices[:6] + parts[0]
        return UnevenStream(parts[index], self.notes)

    def __iter__(self):
        self.examples.set_epoch(self.epoch)
        for index in torch.randperm(
            len(self.indices), generator=torch.Generator().manual_seed(self.epoch)
        ).tolist():
            if self.notes is not None:
                self.notes.append((self.epoch, self.indices[index]))
            yield self.examples[self.indices[index]]


class SpoiltCollator:
    """Collates, and at one batch of one process something happens: a signal, a NaN, or its disk is full."""

    def __init__(self, collate, what, at_batch, process_index):
        self.collate = collate
        self.what = what
        self.batches_left = at_batch if int(os.environ.get("RANK", 0)) == process_index else None

    def __call__(self, examples):
        batch = self.collate(examples)
        if self.batches_left is not None:
            self.batches_left -= 1
            if self.batches_left == 0:
                if self.what == "nan":
                    batch["pixel_values"][:] = float("nan")
                elif self.what == "full disk":
                    limit_file_size(100_000)
                else:
                    signal.raise_signal(getattr(signal, self.what))
        return batch


def limit_file_size(num_bytes):
    """Writing more into one file fails from now on, as on a full disk; the system's limit lifts it."""
    hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard_limit))


def run_job(name, folder, *, resume=False, spoil=None, streamed=False, environment=None, **arguments):
    """Train one stage; how it ended, as JSON can hold it."""
    dataset = UnevenStream() if streamed else None
    os.environ.update(environment or {})
    try:
        trainer = build_stage_trainer(
            name,
            folder,
            # Those of the first process count.
            model=build_start_model(name, seed=int(os.environ.get("RANK", "0"))),
            dataset=dataset,
            evaluate=score if "evaluate_every" in arguments else None,
            stream=io.StringIO(),
            **arguments,
        )
        if spoil is not None:
            trainer.collate = SpoiltCollator(trainer.collate, *spoil)
        result = trainer.train(resume=resume)
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", []))
        return {"error": f"{type(error).__name__}: {error} {notes}"}
    finally:
        limit_file_size(resource.RLIM_INFINITY)
    weights = compute_weights_digest(trainer.model, ("",))
    return {
        "step": result.step,
        "is_complete": result.is_complete,
        "weights": weights,
        "notes": trainer.notes,
    }


def main(root, jobs):
    """Run jobs one after the other: keyword arguments of :func:`run_job`, as a list in JSON."""
    results = [run_job(folder=Path(root) / job.pop("folder"), **job) for job in json.loads(jobs)]
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
