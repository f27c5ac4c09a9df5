import pytest
import torch

from testing.tiny_models import build_clip_text_config, build_model, build_processor
from testing.two_processes import run_in_two_processes
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.losses.set_criterion import UNKNOWN_LABEL
from zsseg.models.concat.query_memory import NO_OBJECT
from zsseg.models.inference import encode_vocabulary
from zsseg.training.picture_recipe import build_seen_collator
from zsseg.training.query_store import (
    LabelQueryDataset,
    QueryDataset,
    build_query_store,
    collate_queries,
    extract_queries,
    find_unknown_queries,
)
from zsseg.training.stage import StageContext

SCENES = 6


@pytest.fixture(scope="module")
def parts():
    model, processor = build_model(text_config=build_clip_text_config()), build_processor()
    scenes = PatchworkDataset("easy", num_scenes=SCENES, categories="seen", size=64)
    context = StageContext(scenes.vocabulary, **encode_vocabulary(model, processor, scenes.vocabulary))
    return model, processor, scenes, context


def build(parts, folder, model=None, num_images=SCENES, data_setup=None):
    own_model, processor, scenes, context = parts
    return build_query_store(
        own_model if model is None else model,
        scenes,
        folder,
        collate=build_seen_collator(processor, scenes.vocabulary),
        context=context,
        data_setup={"world": "tests"} if data_setup is None else data_setup,
        num_images=num_images,
        batch_size=2,
        progress=False,
    )


def test_every_segment_has_a_query_of_its_label(parts, tmp_path):
    model, processor, scenes, _ = parts
    queries = QueryDataset(build(parts, tmp_path))
    assert queries.queries.shape == (SCENES, 6, 32)
    collate = build_seen_collator(processor, scenes.vocabulary)
    for index in range(SCENES):
        labels = collate([scenes[index]])["class_labels"][0].tolist()
        _, label_ids = queries[index]
        found = [label_id for label_id in label_ids.tolist() if label_id != NO_OBJECT]
        assert len(found) == min(6, len(labels))
        assert not set(found) - set(labels)
    with torch.no_grad():
        inputs = processor(images=scenes[3].image, size={"shortest_edge": 64, "longest_edge": 64})
        outputs = model(**inputs, text_embeds=torch.randn(2, 12))
    torch.testing.assert_close(queries.queries[3], outputs.query_embeds[0], atol=5e-3, rtol=5e-3)


def test_what_was_computed_is_not_computed_again(parts, tmp_path):
    first = build(parts, tmp_path).read_all()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = build(parts, tmp_path).read_all()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert all(torch.equal(first[name], second[name]) for name in first)


TWO_PROCESSES = """
from pathlib import Path
from testing.tiny_models import build_clip_text_config, build_model, build_processor
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.models.inference import encode_vocabulary
from zsseg.training.query_store import build_query_store
from zsseg.training.picture_recipe import build_seen_collator
from zsseg.training.stage import StageContext

read = []
broken = None

class NotingDataset(PatchworkDataset):
    def __getitem__(self, index):
        if index == broken:
            raise ValueError("this picture cannot be read")
        read.append(index)
        return super().__getitem__(index)

model, processor = build_model(text_config=build_clip_text_config()), build_processor()
scenes = NotingDataset("easy", num_scenes=6, categories="seen", size=64)

def build(folder):
    return build_query_store(
        model,
        scenes,
        Path(folder),
        collate=build_seen_collator(processor, scenes.vocabulary),
        context=StageContext(scenes.vocabulary, **encode_vocabulary(model, processor, scenes.vocabulary)),
        data_setup={"world": "tests"},
        num_images=6,
        batch_size=2,
    )

errors = []
for broken in (2, 4):
    try:
        build(sys.argv[3])
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
read.clear()
broken = None
store = build(sys.argv[2])
print(len(store), read, "|".join(errors))
"""


@pytest.mark.slow
def test_processes_share_the_work_and_store_what_one_would(parts, tmp_path):
    expected = build(parts, tmp_path / "one").read_all()
    lines = run_in_two_processes(TWO_PROCESSES, tmp_path, tmp_path / "two", tmp_path / "broken")
    # Three batches: the second process computes the last one too, to make as many passes.
    assert [line.split("]")[0] for line in lines] == ["6 [0, 1, 4, 5", "6 [2, 3, 4, 5"]
    # Where a picture cannot be read in one process or in both, none waits for the other.
    error = "ValueError: this picture cannot be read"
    assert lines[0].endswith(f"OtherProcessError: process 1 failed, so this one stops too: {error}|{error}")
    assert lines[1].endswith(f"{error}|{error}")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()}
    found = build(parts, tmp_path / "two").read_all()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()} == stamps
    assert torch.equal(found["label_ids"], expected["label_ids"])
    # Another number of threads rounds otherwise.
    torch.testing.assert_close(found["queries"], expected["queries"], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("change", ["segmentor", "projector", "data"])
def test_another_segmentor_or_other_data_make_it_anew(parts, tmp_path, change):
    before = build(parts, tmp_path).identity
    model = build_model(text_config=build_clip_text_config())
    model.load_state_dict(parts[0].state_dict())
    with torch.no_grad():
        if change == "segmentor":
            next(model.segmentor.parameters()).add_(1.0)
        elif change == "projector":
            model.semantic_projector[0].bias.add_(1.0)
    data_setup = {"world": "another"} if change == "data" else None
    store = build(parts, tmp_path, model=model, data_setup=data_setup)
    assert store.identity != before
    assert len(store) == SCENES


def test_a_half_written_store_is_completed(parts, tmp_path):
    expected = build(parts, tmp_path).read_all()
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    found = build(parts, tmp_path).read_all()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_model_is_left_as_it_was(parts, tmp_path):
    model = parts[0]
    points = model.criterion.get_rng_state()
    weights = compute_weights_digest(model, ("",))
    build(parts, tmp_path)
    assert torch.equal(model.criterion.get_rng_state(), points)
    assert compute_weights_digest(model, ("",)) == weights
    assert not model.training


def test_too_many_pictures(parts, tmp_path):
    with pytest.raises(ValueError, match=r"num_images must lie in \[1, 6\], got 7"):
        build(parts, tmp_path, num_images=7)


def test_the_generator_does_not_change_the_segmentor_s_digest(parts):
    from zsseg.training.query_store import QUERY_PREFIXES

    model = build_model(text_config=build_clip_text_config())
    before = compute_weights_digest(model, QUERY_PREFIXES)
    model.attach_generator("mlp")
    assert compute_weights_digest(model, QUERY_PREFIXES) == before


def test_queries_on_unknown_pixels_teach_nothing_where_the_model_says_so(parts, tmp_path):
    _, processor, scenes, context = parts
    model = build_model(text_config=build_clip_text_config(), ignore_unknown_queries=True)
    model.load_state_dict(parts[0].state_dict())
    batch = build_seen_collator(processor, scenes.vocabulary)([scenes[0], scenes[1]])
    batch["label_mask"][0] = False
    batch["mask_labels"], batch["class_labels"] = (
        [values[:1] for values in batch[name]] for name in ("mask_labels", "class_labels")
    )
    with torch.no_grad():
        outputs = model(batch["pixel_values"], text_embeds=context.text_embeds)
    is_unknown = find_unknown_queries(outputs.masks_queries_logits, batch["label_mask"])
    for item, unknown in zip(extract_queries(model, batch, context, seed=0), is_unknown, strict=True):
        is_unmatched = item["label_ids"] < 0
        assert int(is_unmatched.sum()) == 5
        assert torch.equal(item["label_ids"][is_unmatched] == UNKNOWN_LABEL, unknown[is_unmatched])
    masks = torch.full((1, 2, 4, 4), -1.0)
    masks[0, 0, :, :3] = masks[0, 1, :, 1:] = 1.0
    label_mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    label_mask[..., 4:] = True
    assert find_unknown_queries(masks, label_mask).tolist() == [[True, False]]


class Test_LabelQueryDataset:
    def test_items_are_of_one_label_and_follow_from_the_epoch(self, parts, tmp_path):
        pictures = QueryDataset(build(parts, tmp_path))
        dataset = LabelQueryDataset(pictures, queries_per_label=4, unmatched=2, seed=3)
        labels = set()
        for index in range(len(dataset.label_ids)):
            queries, label_ids = dataset[index]
            assert queries.shape == (6, 32)
            assert len(set(label_ids[:4].tolist())) == 1
            assert label_ids[4:].tolist() == [NO_OBJECT] * 2
            labels.add(int(label_ids[0]))
            for query, label_id in zip(queries, label_ids, strict=True):
                rows = pictures.queries[pictures.label_ids == label_id]
                assert (rows == query).all(dim=1).any()
        assert labels == set(pictures.label_ids[pictures.label_ids >= 0].tolist())
        first = dataset[0][0]
        dataset.set_epoch(1)
        assert not torch.equal(dataset[0][0], first)
        dataset.set_epoch(0)
        assert torch.equal(dataset[0][0], first)
        batch = collate_queries([dataset[0], dataset[1]])
        assert batch["queries"].shape == (2, 6, 32)
        assert batch["label_ids"].shape == (2, 6)

    def test_queries_of_one_kind_alone(self, parts, tmp_path):
        pictures = QueryDataset(build(parts, tmp_path))
        pictures.label_ids.fill_(NO_OBJECT)
        with pytest.raises(ValueError, match="some with a segment and some without"):
            LabelQueryDataset(pictures)
