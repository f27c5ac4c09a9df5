"""transformers' ModelTesterMixin on a family: what its users expect of any model."""

from unittest import mock

import torch

from testing.tiny_models import HIDDEN_DIM, NUM_QUERIES, SEGMENTOR_SIZES
from testing.transformers_tests import import_transformers_tests

common = import_transformers_tests("test_modeling_common")
configuration_common = import_transformers_tests("test_configuration_common")

HEIGHT, WIDTH = 64, 96

NO_TOKENS_IN = "pixels come in, not tokens, and the frozen text tower's vocabulary is never resized"
EXPECTED_FAILURES = {
    "test_can_init_all_missing_weights": "loading is strict: missing weights are refused, never made up",
    "test_correct_missing_keys": "loading is strict: a checkpoint of the segmentor alone is refused; "
    "a classmethod of the family starts from one",
    "test_model_get_set_embeddings": NO_TOKENS_IN,
    "test_resize_tokens_embeddings": NO_TOKENS_IN,
    "test_retain_grad_hidden_states_attentions": "hidden_states are (B, Q, d) views of Mask2Former's "
    "(Q, B, d), which its layers take",
    "test_training_gradient_checkpointing_use_reentrant_true": "PyTorch's old way of checkpointing does not "
    "see the tensors that Mask2Former's decoder layers take in lists",
}
HIDDEN_STATES_OF_ALL_LAYERS = {
    "test_can_capture_specific_layers_hidden_states": "hidden_states come from Mask2Former, which gives "
    "those of all layers or of none",
}
"""Of a model with a tower of CLIP's, whose layers the test counts."""


class ZeroShotSegmentationTester:
    """What transformers' tests ask of a model: configuration, inputs and sizes.

    Args:
        build_config: of the family.
        config_changes: passed to it.
    """

    batch_size = 2
    is_training = True
    num_hidden_layers = SEGMENTOR_SIZES["decoder_layers"] - 1
    num_attention_heads = SEGMENTOR_SIZES["num_attention_heads"]
    seq_length = NUM_QUERIES
    hidden_size = HIDDEN_DIM

    def __init__(self, build_config, **config_changes):
        self.build_config = build_config
        self.config_changes = config_changes

    def prepare_config_and_inputs_for_common(self):
        config = self.build_config(**self.config_changes)
        generator = torch.Generator().manual_seed(0)
        inputs = {"pixel_values": torch.randn(self.batch_size, 3, HEIGHT, WIDTH, generator=generator)}
        # Three texts: their tests split what has a multiple of the batch size of rows among the pictures.
        if config.text_config is None:
            inputs["text_embeds"] = torch.randn(3, config.projection_dim, generator=generator)
        else:
            inputs["input_ids"] = torch.randint(4, 100, (3, 2, 7), generator=generator)
            inputs["attention_mask"] = torch.ones(3, 2, 7, dtype=torch.int64)
        return config, inputs


class FamilyModelTests(common.ModelTesterMixin):
    """A subclass gives ``all_model_classes`` and sets ``model_tester`` up."""

    test_can_init_all_missing_weights_before_2023 = True

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and self.model_tester.is_training:
            left = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
            left[:, : WIDTH // 2] = True
            inputs["mask_labels"] = [torch.stack([left, ~left]), left[None]]
            inputs["class_labels"] = [torch.tensor([0, 1]), torch.tensor([2])]
        return inputs

    def test_model_outputs_equivalence(self):
        # The loss samples points at random, so two runs give two losses; outputs are compared without.
        self.model_tester.is_training = False
        super().test_model_outputs_equivalence()

    def test_model_weights_reload_no_missing_tied_weights(self):
        # It loads a model without any weights, which is refused on purpose; what it tests lies below.
        with mock.patch("zsseg.models.base._check_complete"):
            super().test_model_weights_reload_no_missing_tied_weights()
