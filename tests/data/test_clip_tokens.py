import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from zsseg.checkpoints import packaged
from zsseg.data.clip_tokens import ClipTokenDataset, build_clip_tokens
from zsseg.data.collate import PanopticCollator
from zsseg.data.examples import PanopticExample, SegmentLabel, build_target
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.seen_filter import ignore_unseen
from zsseg.data.segment_crops import crop_segment, crop_whole
from zsseg.data.tensor_store import TensorStoreError
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import Compose, LargeScaleJitter, RandomHorizontalFlip
from zsseg.vocabulary import Vocabulary

SIZE, WIDTH, FILL = 8, 3, (10, 20, 30)
VOCABULARY = Vocabulary.from_labels(["road", "car", "zebra"], stuff_labels=["road"], unseen_labels=["zebra"])


def encode(pixels):
    """Mean colours: a token that says what is shown, with nothing random in it."""
    return torch.from_numpy(pixels.reshape(len(pixels), -1, WIDTH).mean(axis=1) / 255)


@dataclass
class DrawnDataset:
    """Pictures of noise: a car, two roads, a crowd of cars, sometimes a zebra; in one picture nothing."""

    length: int = 5
    seed: int = 0
    vocabulary = VOCABULARY

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        random = np.random.default_rng([self.seed, index])
        size = (12, 10 + index)
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        count = 5 + index % 2
        segment_ids = (
            random.integers(0, count, size).astype(np.int32) * 10 if index != 3 else np.zeros(size, np.int32)
        )
        labels = {
            10: SegmentLabel(1),
            20: SegmentLabel(0),
            30: SegmentLabel(0),
            40: SegmentLabel(1, iscrowd=True),
            50: SegmentLabel(2),
        }
        target = build_target(segment_ids, labels, self.vocabulary)
        return PanopticExample(Image.fromarray(pixels), target, index, f"{index}.png")

    def label_ids(self, index):
        return frozenset(segment.label_id for segment in self[index].target.segments)


def build(folder, dataset=None, **changes):
    arguments = {
        "encode": encode,
        "image_size": SIZE,
        "fill_color": FILL,
        "teacher_hash": "abc",
        "shard_size": 2,
        **changes,
    }
    return build_clip_tokens(dataset or DrawnDataset(), folder, **arguments)


@pytest.mark.parametrize("mode", ["box", "frame"])
def test_examples_carry_the_tokens_of_their_masked_images(tmp_path, mode):
    plain = DrawnDataset()
    dataset = ClipTokenDataset(plain, build(tmp_path, crop_mode=mode))
    assert len(dataset) == len(plain)
    assert dataset.vocabulary is VOCABULARY
    assert dataset.label_ids(1) == plain.label_ids(1) == {0, 1, 2}
    for index in range(len(plain)):
        before, after = plain[index], dataset[index]
        assert after.image.tobytes() == before.image.tobytes()
        pixels = np.asarray(before.image)
        crowds = {segment.id for segment in before.target.segments if segment.iscrowd}
        assert after.tokens.segments.keys() == {segment.id for segment in before.target.segments} - crowds
        whole = crop_whole(pixels, size=SIZE, fill_color=FILL)
        np.testing.assert_allclose(after.tokens.image, encode(whole[None])[0], atol=1e-3)  # kept as float16
        for segment in before.target.segments:
            if not segment.iscrowd:
                crop = crop_segment(
                    pixels, before.target.segment_ids, segment, size=SIZE, fill_color=FILL, mode=mode
                )
                token = after.tokens.segments[segment.id]
                assert token.dtype == np.float32
                np.testing.assert_allclose(token, encode(crop[None])[0], atol=1e-3)


def test_tokens_survive_transforms_and_filters_and_reach_the_batch(tmp_path):
    dataset = ClipTokenDataset(DrawnDataset(), build(tmp_path))
    transform = Compose((RandomHorizontalFlip(1.0), LargeScaleJitter((16, 16), 0.8, 1.5)))
    changed = TransformedDataset(pickle.loads(pickle.dumps(ignore_unseen(dataset))), transform, seed=0)
    examples = [changed[index] for index in range(len(changed))]
    for before, after in zip((dataset[index] for index in range(len(dataset))), examples, strict=True):
        np.testing.assert_array_equal(after.tokens.image, before.tokens.image)
        assert after.tokens.segments.keys() >= {s.id for s in after.target.segments if not s.iscrowd}
    batch = PanopticCollator((0.5,) * 3, (0.5,) * 3, label_id_by_vocabulary_id={0: 0, 1: 1})(examples)
    assert batch["image_tokens"].shape == (5, WIDTH)
    assert batch["image_tokens"].dtype == torch.float32
    assert [len(tokens) for tokens in batch["segment_tokens"]] == [len(m) for m in batch["mask_labels"]]
    assert len(batch["segment_tokens"][3]) == 0


def test_an_unchanged_data_set_is_encoded_once(tmp_path):
    build(tmp_path)

    def refuse(pixels):
        raise AssertionError(f"{len(pixels)} crops were encoded again")

    build(tmp_path, encode=refuse)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"teacher_hash": "xyz"}, "teacher abc then, xyz now"),
        ({"crop_mode": "frame"}, "crop mode box then, frame now"),
        ({"image_size": 9}, "image size 8 then, 9 now"),
        ({"fill_color": (0, 0, 0)}, "fill color (10, 20, 30) then, (0, 0, 0) now"),
        ({"dataset": DrawnDataset(seed=1)}, "first example"),
        ({"dataset": DrawnDataset(length=4)}, "had 5 items then, has 4 now"),
    ],
)
def test_another_teacher_crop_or_data_set_is_built_anew(tmp_path, caplog, changes, reason):
    build(tmp_path)
    store = build(tmp_path, **changes)
    assert f"CLS tokens: 3 shard(s) in {tmp_path} are computed anew" in caplog.text
    assert reason in caplog.text
    if "dataset" in changes:
        assert ClipTokenDataset(changes["dataset"], store)[3].tokens.segments == {}


class ChangedDataset(DrawnDataset):
    """One pixel of the second picture, or of its map, is another."""

    change = "picture"

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if index != 1:
            return example
        if self.change == "picture":
            image = example.image.copy()
            image.putpixel((0, 0), (1, 2, 3))
            return replace(example, image=image)
        segment_ids = example.target.segment_ids.copy()
        segment_ids[0, 0] = 10 if segment_ids[0, 0] != 10 else 20
        labels = {segment.id: SegmentLabel(segment.label_id) for segment in example.target.segments}
        return replace(example, target=build_target(segment_ids, labels, VOCABULARY))


@pytest.mark.parametrize("change", ["picture", "map"])
def test_a_picture_or_map_that_changed_since_is_noticed(tmp_path, change):
    store = build(tmp_path)
    changed = ChangedDataset()
    changed.change = change
    dataset = ClipTokenDataset(changed, store)
    dataset[0]
    with pytest.raises(TensorStoreError, match=rf"1.png .example 1.*remove {tmp_path} and build"):
        dataset[1]


def test_a_store_of_another_length(tmp_path):
    with pytest.raises(ValueError, match=r"4 examples, but .* holds tokens of 5"):
        ClipTokenDataset(DrawnDataset(length=4), build(tmp_path))


def test_a_segment_without_a_token_is_an_error(tmp_path):
    example = ClipTokenDataset(DrawnDataset(), build(tmp_path))[0]
    tokens = replace(example.tokens, segments={10: example.tokens.segments[10]})
    with pytest.raises(ValueError, match=r"0.png: segments \[20, 30\] have no token"):
        replace(example, tokens=tokens)


@pytest.mark.slow
def test_tokens_of_the_packaged_clip_name_segments_of_patchwork(tmp_path):
    """The chain as training uses it: most tokens are nearest to the text of their own label."""
    from transformers import CLIPModel, CLIPProcessor

    from zsseg.layers.vision_language import load_vision_language_teacher

    folder = packaged("patchwork-clip")
    teacher = load_vision_language_teacher(folder)
    scenes = PatchworkDataset("easy", seed=5, num_scenes=4, categories="seen")
    store = build_clip_tokens(
        scenes,
        tmp_path,
        encode=teacher.encode_images,
        image_size=teacher.image_size,
        fill_color=teacher.fill_color,
        teacher_hash=teacher.weights_hash,
    )
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    texts = processor.tokenizer(
        [f"a {n}" for n in scenes.vocabulary.names], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        text_embeds = model.get_text_features(**texts).pooler_output
    text_embeds = torch.nn.functional.normalize(text_embeds, dim=-1)
    dataset = ClipTokenDataset(scenes, store)
    is_right = []
    for example in (dataset[index] for index in range(len(dataset))):
        for segment in example.target.segments:
            scores = text_embeds @ torch.from_numpy(example.tokens.segments[segment.id])
            is_right.append(int(scores.argmax()) == segment.label_id)
    assert len(is_right) > 15
    assert np.mean(is_right) > 0.8
