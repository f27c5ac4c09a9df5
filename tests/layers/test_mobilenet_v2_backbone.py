import pytest
import torch
from transformers import AutoBackbone, MobileNetV2Config, MobileNetV2ForImageClassification

import zsseg
from testing.tiny_models import STAGES, build_backbone_config
from zsseg.layers.mobilenet_v2_backbone import MobileNetV2Backbone, MobileNetV2BackboneConfig

TINY = {"depth_multiplier": 0.25, "depth_divisible_by": 4, "min_depth": 4}


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    labels = {i: f"class {i}" for i in range(5)}
    return MobileNetV2ForImageClassification(MobileNetV2Config(id2label=labels, **TINY)).eval()


@pytest.fixture(scope="module")
def classifier_checkpoint(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobilenet_v2")
    classifier.save_pretrained(folder)
    return folder


def test_strides_and_widths():
    backbone = MobileNetV2Backbone(build_backbone_config("mobilenet_v2")).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, 64, 96)).feature_maps
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [feature_map.shape[1] for feature_map in maps] == backbone.channels
    assert backbone.out_features == STAGES


def test_hidden_states_on_request():
    backbone = MobileNetV2Backbone(build_backbone_config("mobilenet_v2")).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        output = backbone(pixel_values, output_hidden_states=True)
        assert len(output.hidden_states) == 16
        for feature_map in output.feature_maps:
            assert any(state is feature_map for state in output.hidden_states)
        assert backbone(pixel_values).hidden_states is None
        (maps,) = backbone(pixel_values, return_dict=False)
        backbone.config.output_hidden_states = True
        assert len(backbone(pixel_values).hidden_states) == 16
    assert all(map(torch.equal, maps, output.feature_maps))


def test_chosen_stages():
    config = MobileNetV2BackboneConfig(out_features=["stage2", "stage4"], **TINY)
    assert config.out_indices == [1, 3]
    assert MobileNetV2BackboneConfig(out_indices=[1, 3], **TINY).out_features == ["stage2", "stage4"]
    assert MobileNetV2BackboneConfig.from_dict(config.to_dict()).out_features == ["stage2", "stage4"]
    with torch.no_grad():
        maps = MobileNetV2Backbone(config).eval()(torch.randn(1, 3, 64, 64)).feature_maps
    assert [feature_map.shape[2] for feature_map in maps] == [8, 2]


def test_classifiers_weights_are_read_silently_and_its_classes_left(classifier, classifier_checkpoint, capfd):
    backbone = MobileNetV2Backbone.from_image_classifier(classifier_checkpoint).eval()
    printed = "".join(capfd.readouterr())
    assert "model of type" not in printed
    assert "REPORT" not in printed
    assert "class 3" not in str(backbone.config.to_dict())
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        hidden_states = classifier.mobilenet_v2(pixel_values, output_hidden_states=True).hidden_states
        maps = backbone(pixel_values).feature_maps
    for feature_map in maps:
        same_shape = [state for state in hidden_states if state.shape == feature_map.shape]
        torch.testing.assert_close(feature_map, same_shape[-1])


def test_it_is_an_auto_backbone(classifier_checkpoint, tmp_path):
    zsseg.register()
    backbone = MobileNetV2Backbone.from_image_classifier(
        classifier_checkpoint, out_features=["stage3", "stage4"]
    ).eval()
    backbone.save_pretrained(tmp_path)
    loaded = MobileNetV2Backbone.from_pretrained(tmp_path).eval()
    assert type(AutoBackbone.from_config(loaded.config)) is MobileNetV2Backbone
    assert loaded.out_features == ["stage3", "stage4"]
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_no_parameter_is_idle():
    backbone = MobileNetV2Backbone(build_backbone_config("mobilenet_v2"))
    sum(feature_map.sum() for feature_map in backbone(torch.randn(2, 3, 64, 64)).feature_maps).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_other_architectures_are_refused(clip_checkpoint):
    with pytest.raises(ValueError, match="model type 'clip', expected 'mobilenet_v2'"):
        MobileNetV2Backbone.from_image_classifier(clip_checkpoint)


def test_missing_weights_are_refused(classifier, tmp_path):
    weights = {name: value for name, value in classifier.state_dict().items() if ".layer.3." not in name}
    classifier.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks .* weights of MobileNetV2Backbone, first"):
        MobileNetV2Backbone.from_image_classifier(tmp_path)
