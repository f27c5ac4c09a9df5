import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertForMaskedLM,
    CLIPTextModelWithProjection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from oracles.open_vocabulary import class_logits
from testing.model_tester import (
    AutoClassMixin,
    PipelineMixin,
    SaveLoadMixin,
    StrictLoadingMixin,
    TrainingMixin,
    VocabularyMixin,
)
from testing.tiny_models import (
    NUM_QUERIES,
    SEGMENTOR_SIZES,
    TEXT_WIDTH,
    build_backbone_config,
    build_bert_config,
    build_clip_text_config,
    build_config,
    build_model,
    build_picture,
    build_processor,
    build_tokenizer,
)
from zsseg import ConcatConfig, ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.models.text_tower import load_text_tower


class TestConcat(
    SaveLoadMixin, StrictLoadingMixin, AutoClassMixin, TrainingMixin, VocabularyMixin, PipelineMixin
):
    model_class = ConcatForPanopticSegmentation
    frozen = ("text_model.",)

    def build_model(self):
        return build_model(text_config=build_clip_text_config())

    def build_processor(self):
        return build_processor()

    def build_targets(self, pixel_values):
        height, width = pixel_values.shape[2:]
        left = torch.zeros(height, width, dtype=torch.bool)
        left[:, : width // 2] = True
        return {
            "mask_labels": [torch.stack([left, ~left]), left[None]],
            "class_labels": [torch.tensor([0, 1]), torch.tensor([2])],
            "label_mask": torch.ones(2, height, width, dtype=torch.bool),
        }


def draw_pixels(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def draw_texts(count=4, width=TEXT_WIDTH):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(4))


def build_mask2former(backbone, segmentor):
    config = Mask2FormerConfig(
        backbone_config=build_backbone_config(backbone), num_labels=4, **SEGMENTOR_SIZES
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    model.model.load_state_dict(segmentor.state_dict())
    return model


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_parity_with_mask2former(backbone):
    ours = build_model(backbone)
    theirs = build_mask2former(backbone, ours.segmentor)
    pixel_values, text_embeds = draw_pixels(), draw_texts()
    projector = ours.semantic_projector[0]
    with torch.no_grad():
        directions = torch.nn.functional.normalize(
            torch.cat([text_embeds, ours.no_object_embedding[None]]), dim=-1
        )
        theirs.class_predictor.weight.copy_(ours.config.logit_scale * directions @ projector.weight)
        theirs.class_predictor.bias.copy_(ours.config.logit_scale * directions @ projector.bias)
        found, expected = ours(pixel_values, text_embeds=text_embeds), theirs(pixel_values)
    torch.testing.assert_close(
        found.masks_queries_logits, expected.masks_queries_logits, atol=1e-5, rtol=1e-5
    )
    # Their head is linear: it is ours before the semantic queries are brought to unit norm.
    norms = found.semantic_embeds.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        found.class_queries_logits, expected.class_queries_logits / norms, atol=1e-4, rtol=1e-5
    )


def test_class_logits_against_the_oracle():
    model, text_embeds, label_ids = build_model(), draw_texts(5), [0, 0, 1, 2, 1]
    with torch.no_grad():
        output = model(draw_pixels(), text_embeds=text_embeds, text_label_ids=torch.tensor(label_ids))
    for row in range(2):
        expected = class_logits(
            output.semantic_embeds[row].numpy(),
            text_embeds.numpy(),
            label_ids,
            model.no_object_embedding.detach().numpy(),
            100.0,
        )
        np.testing.assert_allclose(output.class_queries_logits[row].numpy(), expected, atol=1e-3)
    projected = output.query_embeds.numpy() @ model.semantic_projector[0].weight.detach().numpy().T
    projected += model.semantic_projector[0].bias.detach().numpy()
    np.testing.assert_allclose(output.semantic_embeds.numpy(), projected, atol=1e-4)


def test_shapes_and_valid_fractions():
    pixel_mask = torch.zeros(2, 64, 96, dtype=torch.int64)
    pixel_mask[0, :48, :96] = 1
    pixel_mask[1, :64, :24] = 1
    with torch.no_grad():
        output = build_model()(draw_pixels(), pixel_mask, text_embeds=draw_texts())
    assert output.class_queries_logits.shape == (2, NUM_QUERIES, 5)
    assert output.masks_queries_logits.shape == (2, NUM_QUERIES, 16, 24)
    assert output.semantic_embeds.shape == (2, NUM_QUERIES, TEXT_WIDTH)
    assert output.pixel_embeds.shape == (2, 32, 16, 24)
    assert output.valid_fractions.tolist() == [[0.75, 1.0], [1.0, 0.25]]
    assert output.loss is None


def test_dense_logits_are_cosines_of_pixels():
    model, text_embeds = build_model(), draw_texts()
    with torch.no_grad():
        dense = model.compute_dense_logits(model.compute_pixel_embeds(draw_pixels()), text_embeds)
        pixels = model(draw_pixels(), text_embeds=text_embeds).pixel_embeds
        semantic = model.semantic_projector(pixels[1, :, 3, 5])
    assert dense.shape == (2, 4, 16, 24)
    expected = class_logits(semantic[None].numpy(), text_embeds.numpy(), range(4), np.ones(TEXT_WIDTH), 100.0)
    np.testing.assert_allclose(dense[1, :, 3, 5].numpy(), expected[0, :4], atol=1e-3)


def test_synonyms_take_the_largest():
    model, processor = build_model(text_config=build_clip_text_config()), build_processor()
    picture = build_picture(64, 96)
    with torch.no_grad():
        joint = model(**processor(picture, ["road", "car|automobile|lorry"])).class_queries_logits
        apart = model(**processor(picture, ["road", "car", "automobile", "lorry"])).class_queries_logits
    torch.testing.assert_close(joint[..., 0], apart[..., 0])
    torch.testing.assert_close(joint[..., 1], apart[..., 1:4].amax(dim=-1))
    torch.testing.assert_close(joint[..., 2], apart[..., 4])


def test_the_tiny_text_towers_tell_labels_apart():
    labels = ["road", "car", "tree", "zebra"]
    for changes in ({}, {"prompt_templates": ["{}"]}):
        processor = build_processor(**changes)
        for model in (
            build_model(text_config=build_clip_text_config()),
            build_model(text_config=build_bert_config(), text_pooling="mean", projection_dim=16),
        ):
            tokens = processor.encode_labels(labels)
            embeds = model.encode_text(tokens["input_ids"], tokens["attention_mask"])
            distances = torch.pdist(embeds)
            assert len(distances) == 6
            assert distances.min() > 0.01


def test_text_embeds_may_be_given_instead_of_tokens():
    model, processor = build_model(text_config=build_clip_text_config()), build_processor()
    inputs = processor(build_picture(64, 96), ["road", "car"])
    with torch.no_grad():
        expected = model(**inputs)
        text_embeds = model.encode_text(inputs.pop("input_ids"), inputs.pop("attention_mask"))
        found = model(**inputs, text_embeds=text_embeds)
    assert torch.equal(found.class_queries_logits, expected.class_queries_logits)


def test_second_picture_with_the_same_labels_runs_no_text_tower():
    model, processor = build_model(text_config=build_clip_text_config()), build_processor()
    calls = []
    model.text_model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for seed in range(3):
            model(**processor(build_picture(64, 96, seed), ["road", "car"]))
    assert len(calls) == 1


def test_a_text_tower_with_dropout_is_as_sure_in_training():
    config = {"text_config": build_bert_config(), "text_pooling": "mean", "projection_dim": 16}
    model = build_model(**config)
    tokens = build_processor().encode_labels(["road", "car"])
    expected = model.encode_text(tokens["input_ids"], tokens["attention_mask"])
    model.train()
    model.text_bank.clear()
    assert torch.equal(model.encode_text(tokens["input_ids"], tokens["attention_mask"]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_mask2former(dtype, tmp_path):
    original = build_model("swin", text_config=build_clip_text_config())
    original.config.segmentor_config.backbone_config.dtype = "float32"  # as a part loaded by itself has
    original.save_pretrained(tmp_path)
    ours = ConcatForPanopticSegmentation.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    theirs = build_mask2former("swin", original.segmentor).to(dtype)
    inputs = build_processor()(build_picture(64, 96), ["road", "car"])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with torch.no_grad():
        output = ours(**inputs)
        expected = theirs(inputs["pixel_values"]).masks_queries_logits
    assert torch.equal(output.masks_queries_logits, expected)
    assert output.class_queries_logits.dtype == torch.float32


def test_loss_under_autocast():
    model, case = build_model(text_config=build_clip_text_config()).train(), TestConcat()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**case.build_batch())
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert torch.isfinite(model.no_object_embedding.grad).all()


def test_hidden_states_and_attentions_on_request():
    model = build_model()
    with torch.no_grad():
        plain = model(draw_pixels(), text_embeds=draw_texts())
        both = model(
            draw_pixels(), text_embeds=draw_texts(), output_hidden_states=True, output_attentions=True
        )
        queries = model.segmentor.transformer_module.decoder.layernorm(both.hidden_states[-1])
        model.config.output_hidden_states = True
        by_config = model(draw_pixels(), text_embeds=draw_texts())
        refused = model(draw_pixels(), text_embeds=draw_texts(), output_hidden_states=False)
    assert plain.hidden_states is plain.attentions is None
    assert refused.hidden_states is None
    assert [tuple(state.shape) for state in both.hidden_states] == [(2, NUM_QUERIES, 32)] * 3
    assert [tuple(shares.shape) for shares in both.attentions] == [(2, 2, NUM_QUERIES, NUM_QUERIES)] * 2
    torch.testing.assert_close(queries, both.query_embeds)
    assert torch.equal(both.class_queries_logits, plain.class_queries_logits)
    assert len(by_config.hidden_states) == 3
    assert by_config.attentions is None


def test_a_tuple_on_request():
    model = build_model()
    with torch.no_grad():
        output = model(draw_pixels(), text_embeds=draw_texts())
        values = model(draw_pixels(), text_embeds=draw_texts(), return_dict=False)
    assert isinstance(values, tuple)
    assert len(values) == len(output.to_tuple())
    assert all(map(torch.equal, values, output.to_tuple()))


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for is_checkpointing in (False, True):
        model = build_model("swin", text_config=build_clip_text_config()).train()
        if is_checkpointing:
            model.activation_checkpointing_enable()
            assert model.segmentor.transformer_module.decoder.gradient_checkpointing
        torch.manual_seed(0)  # of Swin's dropped paths
        model(**TestConcat().build_batch()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_stored_queries_are_initialised_on_the_meta_device_too():
    with torch.device("meta"):
        model = ConcatForPanopticSegmentation(build_config(memory_size=3))
    model.to_empty(device="cpu")
    model.memory.queries.fill_(torch.nan)
    model.init_weights()
    assert model.memory.queries.tolist() == [[0.0] * 32] * 3
    assert model.memory.label_ids.tolist() == [-1] * 3


def test_deeper_projector():
    model = build_model(projector_layers=3)
    linear = [module for module in model.semantic_projector if isinstance(module, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(32, 32), (32, 32), (32, 12)]
    with torch.no_grad():
        output = model(draw_pixels(), text_embeds=draw_texts())
    assert torch.equal(output.semantic_embeds, model.semantic_projector(output.query_embeds))


def test_initial_no_object_embedding_follows_the_config():
    model = build_model(no_object_std=0.5, projection_dim=4000)
    assert model.no_object_embedding.std().item() == pytest.approx(0.5, rel=0.1)


FORWARD_ERRORS = {
    "no text": ({}, "pass either input_ids or text_embeds, got neither"),
    "both": (
        {"text_embeds": draw_texts(), "input_ids": torch.ones(1, 1, 3, dtype=torch.int64)},
        "pass either input_ids or text_embeds, got both",
    ),
    "another width": ({"text_embeds": draw_texts(3, 7)}, r"text_embeds must be \(texts, 12\).*got \(3, 7\)"),
    "masks without classes": (
        {"text_embeds": draw_texts(), "mask_labels": [torch.ones(1, 64, 96)] * 2},
        "class_labels is missing",
    ),
    "classes without masks": (
        {"text_embeds": draw_texts(), "class_labels": [torch.tensor([0])] * 2},
        "mask_labels is missing",
    ),
    "another mask": (
        {"text_embeds": draw_texts(), "pixel_mask": torch.ones(2, 64, 64)},
        r"pixel_mask must be \(2, 64, 96\)",
    ),
    "flat tokens": (
        {"input_ids": torch.ones(2, 5, dtype=torch.int64)},
        r"\(texts, prompts, tokens\), got \(2, 5\)",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), FORWARD_ERRORS.values(), ids=FORWARD_ERRORS.keys())
def test_arguments_that_do_not_fit(arguments, message):
    model = build_model(text_config=build_clip_text_config())
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(draw_pixels(), **arguments)


def test_tokens_need_a_text_tower():
    tokens = torch.ones(1, 1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="holds no text tower, only precomputed text embeddings"):
        build_model().encode_text(tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_pooling": "max"}, "text_pooling must be one of"),
        ({"projector_layers": 0}, "projector_layers must be 1 or more, got 0"),
        (
            {"text_config": build_clip_text_config(), "projection_dim": 16},
            "vectors of 12 numbers under text_pooling='projection', but projection_dim is 16",
        ),
        ({"text_config": build_bert_config(), "text_pooling": "mean"}, "vectors of 16 numbers"),
    ],
)
def test_configs_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        ConcatForPanopticSegmentation(build_config(**changes))


def test_config_defaults_and_types():
    config = ConcatConfig()
    assert config.text_config is None
    assert config.segmentor_config.model_type == "mask2former"
    with pytest.raises(Exception, match="projection_dim"):
        ConcatConfig(projection_dim="512")


# --- from_mask2former -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(mask2former_checkpoint, clip_checkpoint):
    model = ConcatForPanopticSegmentation.from_mask2former(
        str(mask2former_checkpoint), clip=str(clip_checkpoint)
    )
    processor = ConcatProcessor.from_mask2former(
        str(mask2former_checkpoint), clip=str(clip_checkpoint), prompt_templates=["a {}."], threshold=0.0
    )
    return model.eval(), processor


def test_from_mask2former_keeps_segmentor_and_image_settings(converted, mask2former_checkpoint):
    model, processor = converted
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(mask2former_checkpoint).eval()
    their_processor = Mask2FormerImageProcessorPil.from_pretrained(mask2former_checkpoint)
    pictures = [build_picture(64, 96), build_picture(64, 96, seed=1)]
    inputs = processor(pictures, ["road"])
    their_inputs = their_processor(pictures, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], their_inputs["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs).masks_queries_logits,
            theirs(their_inputs["pixel_values"]).masks_queries_logits,
            atol=1e-5,
            rtol=1e-5,
        )


def test_from_mask2former_keeps_the_text_tower(converted, clip_checkpoint):
    model, processor = converted
    assert processor.prompt_templates == ["a {}."]
    tower = CLIPTextModelWithProjection.from_pretrained(clip_checkpoint).eval()
    with torch.no_grad():
        expected = tower(**build_tokenizer()("a road.", return_tensors="pt")).text_embeds[0]
    tokens = processor.encode_labels(["road"])
    found = model.encode_text(tokens["input_ids"], tokens["attention_mask"])[0]
    torch.testing.assert_close(found, expected / expected.norm(), atol=1e-5, rtol=0)


def test_from_mask2former_knows_no_origin_and_no_classes(converted, tmp_path, mask2former_checkpoint):
    model, processor = converted
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = (tmp_path / "config.json").read_text() + (tmp_path / "processor_config.json").read_text()
    assert str(mask2former_checkpoint.parent) not in saved
    assert "unicorn" not in saved
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_from_mask2former_says_nothing(mask2former_checkpoint, clip_checkpoint):
    script = (
        "import sys; from zsseg import ConcatForPanopticSegmentation as Concat; "
        "Concat.from_mask2former(sys.argv[1], clip=sys.argv[2])"
    )
    # In a process of its own: other tests leave transformers another verbosity, or make it speak once only.
    process = subprocess.run(
        [sys.executable, "-c", script, str(mask2former_checkpoint), str(clip_checkpoint)],
        capture_output=True,
        text=True,
        check=True,
    )
    printed = process.stdout + process.stderr
    assert "REPORT" not in printed
    assert "warn" not in printed.lower()
    assert "not a supported model" not in printed


def test_from_mask2former_with_a_plain_text_encoder(mask2former_checkpoint, bert_checkpoint):
    model = ConcatForPanopticSegmentation.from_mask2former(
        str(mask2former_checkpoint), clip=str(bert_checkpoint), projector_layers=2
    )
    assert model.config.text_pooling == "mean"
    assert model.config.projection_dim == 16
    assert model.config.projector_layers == 2
    tower = AutoModel.from_pretrained(bert_checkpoint).eval()
    with torch.no_grad():
        states = tower(**build_tokenizer()("road", return_tensors="pt")).last_hidden_state[0]
    tokens = build_processor(prompt_templates=["{}"]).encode_labels(["road"])
    found = model.encode_text(tokens["input_ids"], tokens["attention_mask"])[0]
    expected = states.mean(dim=0)
    torch.testing.assert_close(found, expected / expected.norm(), atol=1e-5, rtol=0)


def test_text_towers_without_the_weights_in_use_are_refused(tmp_path):
    torch.manual_seed(0)
    BertForMaskedLM(build_bert_config()).save_pretrained(tmp_path)
    assert load_text_tower(str(tmp_path)).config.model_type == "bert"
    with pytest.raises(ValueError, match=r"weights are missing, first \['pooler"):
        load_text_tower(str(tmp_path), "pooler")


def test_siglip_gives_its_text_half(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(build_tokenizer()), "projection_size": 16}
    torch.manual_seed(0)
    both = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    )
    both.save_pretrained(tmp_path)
    tower = load_text_tower(str(tmp_path))
    assert tower.config.model_type == "siglip_text_model"
    for name, value in tower.state_dict().items():
        assert torch.equal(value, both.text_model.state_dict()[name.removeprefix("text_model.")]), name
    config = build_config(text_config=tower.config, text_pooling="pooler", projection_dim=16)
    assert type(ConcatForPanopticSegmentation(config).text_model) is type(tower)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint": "clip", "clip": "clip"}, "model type 'clip', but Mask2Former.* loads 'mask2former'"),
        (
            {"checkpoint": "mask2former", "clip": "mask2former"},
            "composite checkpoint of model type 'mask2former'",
        ),
    ],
)
def test_from_mask2former_refuses_other_checkpoints(
    arguments, message, mask2former_checkpoint, clip_checkpoint
):
    folders = {"mask2former": str(mask2former_checkpoint), "clip": str(clip_checkpoint)}
    with pytest.raises(ValueError, match=message):
        ConcatForPanopticSegmentation.from_mask2former(
            folders[arguments["checkpoint"]], clip=folders[arguments["clip"]]
        )
