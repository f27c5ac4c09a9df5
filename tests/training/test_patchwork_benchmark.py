import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from testing.tiny_models import build_clip_text_config, build_model, build_processor
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.models.base import ZeroShotSegmentationOutput, compute_valid_fractions
from zsseg.models.concat.image_processing_concat import ConcatImageProcessorPil
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings
from zsseg.training.evaluation import evaluate_model
from zsseg.training.patchwork_benchmark import (
    describe_machine,
    describe_model,
    evaluate_patchwork,
    shuffle_unseen_names,
)
from zsseg.training.patchwork_report import GROUPS
from zsseg.vocabulary import Vocabulary

SCENES, SCENE_SIZE = 6, 64
CERTAIN = 20.0
THRESHOLDS = ("threshold", "mask_threshold", "overlap_mask_area_threshold")


class TruthReader(PreTrainedModel):
    """Knows the true masks of the scenes, and of each the word for it: names what the words given allow."""

    config_class = PreTrainedConfig
    reads_words = True

    def __init__(self, dataset, processor):
        super().__init__(PreTrainedConfig())
        self.anchor = nn.Parameter(torch.zeros(1))
        self.targets = {}
        for index in range(len(dataset)):
            example = dataset[index]
            key = processor(images=example.image)["pixel_values"].numpy().tobytes()
            self.targets[key] = example.target

    def forward(self, pixel_values, pixel_mask, text_embeds, text_label_ids):
        target = self.targets[pixel_values.numpy().tobytes()]
        words = torch.eye(text_embeds.shape[1])[[segment.label_id for segment in target.segments]]
        similarities = words @ text_embeds.T if self.reads_words else words
        masks = np.stack([target.segment_ids == segment.id for segment in target.segments])
        no_object = torch.zeros(len(words), 1)
        return ZeroShotSegmentationOutput(
            class_queries_logits=CERTAIN * torch.cat([similarities, no_object], dim=1)[None],
            masks_queries_logits=CERTAIN * (2.0 * torch.from_numpy(masks)[None] - 1.0),
            valid_fractions=compute_valid_fractions(pixel_values, pixel_mask),
        )


class ClassesByHeart(TruthReader):
    """The same without looking at the words: label i is what stands at place i."""

    reads_words = False


@pytest.fixture(scope="module")
def dataset():
    return PatchworkDataset("easy", seed=5, num_scenes=SCENES, size=SCENE_SIZE)


@pytest.fixture(scope="module")
def truth_processor(dataset):
    names = dataset.vocabulary.names
    return ConcatProcessor(
        ConcatImageProcessorPil(size={"height": SCENE_SIZE, "width": SCENE_SIZE}),
        text_embeddings=PrecomputedTextEmbeddings(names, np.eye(len(names))),
    )


@pytest.fixture(scope="module")
def tiny_model():
    return build_model(text_config=build_clip_text_config())


def evaluate(model, processor, dataset, **options):
    return evaluate_patchwork(model, processor, dataset, progress=False, **options)


def share_present(scores, dataset, label_ids):
    names = [dataset.vocabulary[label_id].name for label_id in label_ids]
    return np.mean([scores.per_class[name]["TP"] > 0 for name in names])


def test_the_truth_scores_one(dataset, truth_processor):
    scores = evaluate(TruthReader(dataset, truth_processor), truth_processor, dataset)
    row = scores.row
    assert (row.preset, row.split, row.scenes, row.size, row.seed) == ("easy", "A", SCENES, SCENE_SIZE, 5)
    for figure in ("PQ", "SQ", "RQ", "mIoU"):
        assert {row.figures[f"{figure}{group}"] for group in GROUPS} == {1.0}
    assert row.figures["pixel_accuracy"] == 1.0
    seen = share_present(scores, dataset, dataset.vocabulary.seen_label_ids)
    unseen = share_present(scores, dataset, dataset.vocabulary.unseen_label_ids)
    assert 0 < unseen < 1
    for figure in ("hPQ", "hIoU"):
        assert row.figures[figure] == pytest.approx(2 * seen * unseen / (seen + unseen))
    assert row.figures["ms_per_image"] > 0


def test_exchanged_names_cost_a_reader_the_unseen_labels_alone(dataset, truth_processor):
    model = TruthReader(dataset, truth_processor)
    own, shuffled = (evaluate(model, truth_processor, dataset, text=text) for text in ("own", "shuffled"))
    assert shuffled.row.text == "shuffled"
    for figure in ("PQ", "SQ", "RQ", "mIoU"):
        for group in ("_seen", "_seen_things", "_seen_stuff"):
            assert shuffled.row.figures[f"{figure}{group}"] == 1.0
        for group in ("_unseen", "_unseen_things", "_unseen_stuff"):
            assert shuffled.row.figures[f"{figure}{group}"] == 0.0
    assert shuffled.row.figures["hPQ"] == shuffled.row.figures["hIoU"] == 0.0
    for label_id in dataset.vocabulary.seen_label_ids:
        name = dataset.vocabulary[label_id].name
        assert shuffled.per_class[name] == pytest.approx(own.per_class[name], nan_ok=True)


def test_exchanged_names_cost_nothing_who_does_not_read_them(dataset, truth_processor):
    model = ClassesByHeart(dataset, truth_processor)
    figures = evaluate(model, truth_processor, dataset, text="shuffled").row.figures
    assert figures["PQ_unseen"] == figures["mIoU_unseen"] == 1.0


def test_figures_are_those_of_the_evaluation(dataset, tiny_model):
    processor = build_processor()
    shown = []
    scores = evaluate(
        tiny_model, processor, dataset, threshold=0.01, on_result=lambda _, found: shown.append(found)
    )
    figures = scores.row.figures
    for task, names in (("panoptic", ("PQ", "SQ", "RQ")), ("semantic", ("mIoU",))):
        results = evaluate_model(
            tiny_model, processor, dataset, task=task, threshold=0.01, batch_size=3, progress=False
        )
        for name in names:
            for ending, key in GROUPS.items():
                assert figures[f"{name}{ending}"] == pytest.approx(results[f"{name}{key}"], nan_ok=True)
    assert len(shown) == SCENES
    assert sum(len(found.segments) for found in shown) == sum(
        each["TP"] + each["FP"] for each in scores.per_class.values()
    )


def test_scenes_of_seen_categories_are_no_benchmark(tiny_model):
    seen = PatchworkDataset("easy", num_scenes=1, size=SCENE_SIZE, categories="seen")
    with pytest.raises(ValueError, match='use categories="all"'):
        evaluate(tiny_model, build_processor(), seen)


@pytest.mark.parametrize("split", ["A", "seed-0", "seed-1"])
@pytest.mark.parametrize("seed", [0, 1])
def test_names_are_exchanged_within_unseen_things_and_unseen_stuff(split, seed):
    vocabulary = PatchworkDataset(num_scenes=1, split=split).vocabulary
    shuffled = shuffle_unseen_names(vocabulary, seed)
    assert shuffled == shuffle_unseen_names(vocabulary, seed)
    assert set(shuffled) == set(vocabulary)
    for own, other in zip(vocabulary, shuffled, strict=True):
        assert (own.is_thing, own.is_seen) == (other.is_thing, other.is_seen)
        assert (own.name == other.name) == own.is_seen


def test_the_exchange_is_fixed():
    vocabulary = PatchworkDataset(num_scenes=1).vocabulary
    shuffled = shuffle_unseen_names(vocabulary)
    assert shuffled[vocabulary.label_id("striped star")].name == "checkered triangle"
    assert shuffled != shuffle_unseen_names(vocabulary, seed=1)


def test_names_without_partner_are_refused():
    with pytest.raises(ValueError, match="'car' is the only unseen thing"):
        shuffle_unseen_names(Vocabulary.from_labels(["car", "cow"], unseen_labels=["car"]))
    with pytest.raises(ValueError, match="this vocabulary has none"):
        shuffle_unseen_names(Vocabulary.from_labels(["car", "cow"]))


def test_a_model_is_described_by_what_it_holds(tiny_model, tmp_path):
    described = describe_model(
        tiny_model, build_processor(), str(tmp_path), {**dict.fromkeys(THRESHOLDS), "mask_threshold": 0.25}
    )
    assert described.name == tmp_path.name
    assert described.family == "zsseg-concat"
    assert described.parameters == tiny_model.num_parameters()
    assert described.parameters_text_tower == tiny_model.text_model.num_parameters()
    assert (described.threshold, described.mask_threshold) == (0.0, 0.25)
    assert described.weights_digest == compute_weights_digest(tiny_model)
    without_tower = describe_model(
        build_model(), build_processor(), "someone/model", dict.fromkeys(THRESHOLDS)
    )
    assert (without_tower.name, without_tower.parameters_text_tower) == ("someone/model", 0)


def test_a_machine_is_described_with_its_threads():
    described = describe_machine(torch.device("cpu"))
    assert f"{torch.get_num_threads()} thread" in described
    assert described.endswith(f"torch {torch.__version__}")
