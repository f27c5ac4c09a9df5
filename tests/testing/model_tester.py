"""What every family owes, one mixin per concern; a family's test class names its builders and inherits.

A subclass gives ``model_class``, ``frozen`` (a tuple of beginnings of the names of frozen parameters) and the
methods ``build_model`` (in evaluation mode), ``build_processor`` and ``build_targets``; where the loss of a
family leaves out parts that are not frozen, ``outside_the_loss`` names them in the same way.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, pipeline

from zsseg.registration import TASKS

LABELS = ("road", "car|automobile", "tree")
WEIGHTS = "model.safetensors"
BOOKKEEPING = {"architectures", "transformers_version", "model_type", "dtype"}


def build_pictures():
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(2)]


def segment(model, inputs):
    with torch.no_grad():
        return model(**inputs)


class SaveLoadMixin:
    def test_a_saved_model_is_the_model(self, tmp_path):
        model, inputs = self.build_model(), self.build_processor()(build_pictures(), LABELS)
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path).eval()
        weights = loaded.state_dict()
        assert weights.keys() == model.state_dict().keys()
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, weights[name]), name
        # Weights in a mapped file are aligned otherwise, which may change the last bit of a sum.
        expected, found = segment(model, inputs), segment(loaded, inputs)
        for name in ("class_queries_logits", "masks_queries_logits", "query_embeds", "semantic_embeds"):
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
        buffers = dict(loaded.named_buffers())
        assert buffers.keys() == dict(model.named_buffers()).keys()
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, buffers[name]), name
        frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
        assert frozen == {name for name, _ in loaded.named_parameters() if name.startswith(self.frozen)}

    def test_config_holds_declared_keys_only(self, tmp_path):
        config = self.build_model().config
        config.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        for part, part_saved in ((config, saved), *self.iterate_parts(config, saved)):
            undeclared = part_saved.keys() - type(part)().to_dict().keys() - BOOKKEEPING
            assert not undeclared, type(part).__name__

    def iterate_parts(self, config, saved):
        for key, value in saved.items():
            part = getattr(config, key, None)
            if isinstance(value, dict) and hasattr(part, "to_dict"):
                yield part, value
                yield from self.iterate_parts(part, value)

    def test_config_survives(self):
        config = self.build_model().config
        assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()

    def test_every_parameter_is_initialised_alike_by_the_seed(self):
        first, second = self.build_model().state_dict(), self.build_model().state_dict()
        for name, value in first.items():
            assert torch.equal(value, second[name]), name
            assert torch.isfinite(value.float()).all(), name


class StrictLoadingMixin:
    """Never random weights, never NaN, never another family's checkpoint."""

    @pytest.fixture
    def folder(self, tmp_path):
        self.build_model().save_pretrained(tmp_path)
        return tmp_path

    def rewrite(self, folder, change):
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    def test_another_family(self, clip_checkpoint):
        with pytest.raises(ValueError, match=r"model type 'clip', but .* loads 'zsseg-"):
            self.model_class.from_pretrained(clip_checkpoint)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(OSError, match=r"config\.json"):
            self.model_class.from_pretrained(tmp_path)

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
    def test_truncated(self, folder, share):
        weights = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(weights[: int(share * len(weights))])
        with pytest.raises(OSError, match=r"cannot be read .* cut off or damaged"):
            self.model_class.from_pretrained(folder)

    def test_missing_weights(self, folder):
        name = min(load_file(folder / WEIGHTS))
        self.rewrite(folder, lambda weights: weights.pop(name))
        with pytest.raises(ValueError, match=r"1 weights are missing, first .*It may be truncated"):
            self.model_class.from_pretrained(folder)

    def test_other_shapes(self, folder):
        name = min(load_file(folder / WEIGHTS))
        self.rewrite(folder, lambda weights: weights.update({name: torch.zeros(3, 1, 2)}))
        with pytest.raises(ValueError, match="1 weights have another shape, first"):
            self.model_class.from_pretrained(folder)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, folder, value):
        name = min(load_file(folder / WEIGHTS))
        self.rewrite(folder, lambda weights: weights[name].view(-1)[0].fill_(value))
        with pytest.raises(ValueError, match=r"holds NaN or infinite values in .*use an earlier checkpoint"):
            self.model_class.from_pretrained(folder)

    def test_loading_info_on_request(self, folder):
        model, info = self.model_class.from_pretrained(folder, output_loading_info=True)
        assert isinstance(model, self.model_class)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]

    def test_config_given(self, folder):
        config = self.model_class.config_class.from_pretrained(folder)
        assert isinstance(self.model_class.from_pretrained(folder, config=config), self.model_class)

    def test_the_cause_is_readable_through_the_pipeline(self, folder):
        self.build_processor().save_pretrained(folder)
        self.rewrite(folder, lambda weights: weights[min(weights)].view(-1)[0].fill_(float("nan")))
        with pytest.raises(ValueError, match="holds NaN or infinite values"):
            pipeline(next(iter(TASKS)), model=str(folder))


class AutoClassMixin:
    def test_auto_classes(self, tmp_path):
        model, processor = self.build_model(), self.build_processor()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
        assert type(AutoModel.from_pretrained(tmp_path)) is self.model_class
        assert type(AutoProcessor.from_pretrained(tmp_path)) is type(processor)
        image_processor = AutoImageProcessor.from_pretrained(tmp_path)
        assert image_processor.to_dict() == processor.image_processor.to_dict()

    def test_auto_model_is_as_strict(self, tmp_path):
        model = self.build_model()
        weights = model.state_dict()
        weights.pop(next(name for name in weights if not name.startswith("text_model")))
        model.save_pretrained(tmp_path, state_dict=weights)
        with pytest.raises(ValueError, match="1 weights are missing"):
            AutoModel.from_pretrained(tmp_path)


class TrainingMixin:
    outside_the_loss = ()

    def build_batch(self):
        inputs = self.build_processor()(build_pictures(), LABELS)
        return {**inputs, **self.build_targets(inputs["pixel_values"])}

    def test_gradients_reach_what_is_not_frozen_and_nothing_else(self):
        model = self.build_model().train()
        output = model(**self.build_batch())
        output.loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        left_out = (*self.frozen, *self.outside_the_loss)
        assert without == {name for name, _ in model.named_parameters() if name.startswith(left_out)}
        assert all(not part.requires_grad for part in output.losses.values())

    def test_frozen_parts_never_drop_out(self):
        model = self.build_model().train()
        assert model.training
        for name, module in model.named_modules():
            if name.startswith(self.frozen):
                assert not module.training, name

    @pytest.mark.slow
    def test_loss_falls_in_twenty_steps(self):
        model, batch = self.build_model().train(), self.build_batch()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert np.mean(losses[-3:]) < 0.75 * np.mean(losses[:3]), losses


class VocabularyMixin:
    def test_permuting_labels_permutes_logits(self):
        model, processor, pictures = self.build_model(), self.build_processor(), build_pictures()
        order = [2, 0, 1]
        expected = segment(model, processor(pictures, LABELS)).class_queries_logits
        permuted = segment(model, processor(pictures, [LABELS[i] for i in order])).class_queries_logits
        torch.testing.assert_close(permuted[..., :3], expected[..., order], atol=1e-4, rtol=0)
        torch.testing.assert_close(permuted[..., 3], expected[..., 3], atol=1e-4, rtol=0)

    def test_labels_do_not_touch_the_masks(self):
        model, processor, pictures = self.build_model(), self.build_processor(), build_pictures()
        expected = segment(model, processor(pictures, LABELS))
        found = segment(model, processor(pictures, LABELS[:1]))
        assert torch.equal(found.masks_queries_logits, expected.masks_queries_logits)
        assert found.class_queries_logits.shape[-1] == 2

    def test_a_batch_is_its_pictures(self):
        model, processor, pictures = self.build_model(), self.build_processor(), build_pictures()
        batch = segment(model, processor(pictures, LABELS))
        for row, picture in enumerate(pictures):
            alone = segment(model, processor(picture, LABELS))
            for name in ("class_queries_logits", "masks_queries_logits"):
                torch.testing.assert_close(batch[name][row], alone[name][0], atol=1e-3, rtol=1e-4)


class PipelineMixin:
    @pytest.mark.parametrize("task", TASKS)
    def test_the_pipeline_runs_with_labels_never_seen(self, task, tmp_path):
        self.build_model().save_pretrained(tmp_path)
        self.build_processor().save_pretrained(tmp_path)
        labels = ["zebra crossing", "🦒", "an armchair made of glass"]
        results = pipeline(task, model=str(tmp_path))(build_pictures(), candidate_labels=labels)
        assert len(results) == 2
        for records in results:
            assert {record["label"] for record in records} <= set(labels)
            assert all(record["mask"].size == (96, 64) for record in records)
