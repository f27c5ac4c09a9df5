import numpy as np
import pytest
import torch
from tokenizers.normalizers import Lowercase

from testing.tiny_models import (
    HIDDEN_DIM,
    TEXT_WIDTH,
    build_clip_text_config,
    build_model,
    build_picture,
    build_processor,
)
from zsseg import ConcatForPanopticSegmentation
from zsseg.models.concat.adaptation_concat import (
    FrozenClassifier,
    UnionOptions,
    compute_union_loss,
    draw_text_embeds,
)
from zsseg.models.concat.query_memory import NO_OBJECT, sample_queries
from zsseg.models.inference import encode_vocabulary
from zsseg.processing.precomputed_text_embeddings import PrecomputedTextEmbeddings
from zsseg.vocabulary import Vocabulary

KNOWN = Vocabulary.from_labels(["road", "car|automobile", "tree"], stuff_labels=["road"])


def build_adaptable(generator_type="mlp", **changes):
    """A model with a generator, and queries of three clearly different labels in its memory."""
    model = build_model(text_config=build_clip_text_config(), **changes)
    torch.manual_seed(5)
    model.attach_generator(generator_type, noise_dim=4, hidden_dim=16)
    centres = 3 * torch.randn(4, HIDDEN_DIM)
    label_ids = torch.arange(-1, 3).repeat(10)
    model.remember(centres[label_ids] + 0.3 * torch.randn(40, HIDDEN_DIM), label_ids, KNOWN)
    return model


def build_processor_of_vectors():
    words = ["road", "car", "automobile", "tree", "zebra"]
    vectors = np.random.default_rng(0).normal(size=(5, TEXT_WIDTH))
    return build_processor(text_embeddings=PrecomputedTextEmbeddings(words, vectors))


def learn_known_labels(model, processor):
    """Give the random projector what training would have."""
    text_inputs = encode_vocabulary(model, processor, KNOWN)
    is_matched = model.memory.label_ids != NO_OBJECT
    optimizer = torch.optim.Adam(model.semantic_projector.parameters(), 1e-2)
    for _ in range(60):
        embeds = model.semantic_projector(model.memory.queries[is_matched])
        logits = model.compute_class_logits(embeds, **text_inputs)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, model.memory.label_ids[is_matched]).backward()
        optimizer.step()


class Test_adapt:
    @pytest.mark.parametrize("generator_type", ["mlp", "cvae", "primitives"])
    def test_nothing_changes_but_projector_and_no_object(self, generator_type):
        model, processor = build_adaptable(generator_type), build_processor()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        result = model.adapt(processor, ["zebra", "savanna|steppe"], stuff_labels=["savanna"], steps=5)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == set(result.parameters)
        assert changed == {
            "semantic_projector.0.weight",
            "semantic_projector.0.bias",
            "no_object_embedding",
        }
        assert result.new_labels == ("zebra", "savanna")
        assert result.known_labels == ("road", "car", "tree", "zebra", "savanna")
        assert model.config.known_labels == ["road", "car|automobile", "tree", "zebra", "savanna|steppe"]
        assert model.config.known_stuff_labels == ["road", "savanna"]

    def test_new_labels_are_learnt_and_known_ones_are_kept(self):
        model, processor = build_adaptable(), build_processor_of_vectors()
        learn_known_labels(model, processor)
        result = model.adapt(processor, ["zebra"])
        assert result.known_accuracy[0] > 0.9
        assert result.known_accuracy[1] > 0.9
        assert result.new_accuracy[1] > max(0.7, result.new_accuracy[0])

    def test_it_leaves_the_model_ready_as_it_was(self):
        model = build_adaptable()
        model.train()
        took_gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        random_state = torch.get_rng_state()
        model.adapt(build_processor(), ["zebra"], steps=2)
        assert model.training
        assert not model.text_model.training
        assert {n: p.requires_grad for n, p in model.named_parameters()} == took_gradients
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(torch.get_rng_state(), random_state)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_adapted_like_single(self, dtype):
        models = []
        for half in (True, False):
            model, processor = build_adaptable(), build_processor_of_vectors()
            learn_known_labels(model, processor)
            # Both begin with what half precision leaves of the weights.
            model.to(dtype)
            models.append(model if half else model.float())
            result = models[-1].adapt(processor, ["zebra"], steps=200)
            assert result.new_accuracy[1] > 0.7
        found, expected = models
        assert {parameter.dtype for parameter in found.parameters()} == {dtype}
        assert found.memory.queries.dtype == dtype
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value.to(found.state_dict()[name].dtype))

    def test_an_interrupted_adaptation_changes_nothing(self, monkeypatch):
        model = build_adaptable()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        known = list(model.config.known_labels)
        calls = []

        def stop_later(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return compute_union_loss(*arguments, **options)

        monkeypatch.setattr("zsseg.models.concat.adaptation_concat.compute_union_loss", stop_later)
        with pytest.raises(KeyboardInterrupt):
            model.adapt(build_processor(), ["zebra"], steps=5)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model.config.known_labels == known

    def test_the_seed_decides_everything(self):
        results = []
        for seed in (0, 0, 1):
            model = build_adaptable()
            model.adapt(build_processor(), ["zebra"], steps=3, seed=seed)
            results.append(model.semantic_projector[0].weight.detach().clone())
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_an_adapted_checkpoint_is_saved_and_adapts_again(self, tmp_path):
        model, processor = build_adaptable(), build_processor()
        model.adapt(processor, ["zebra"], steps=2)
        model.save_pretrained(tmp_path)
        loaded = ConcatForPanopticSegmentation.from_pretrained(tmp_path)
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        assert loaded.adapt(processor, ["giraffe"], steps=2).known_labels[-2:] == ("zebra", "giraffe")

    def test_predictions_need_neither_generator_nor_memory(self):
        model, plain = build_adaptable(), build_model(text_config=build_clip_text_config())
        plain.load_state_dict(model.state_dict(), strict=False)
        inputs = build_processor()(build_picture(64, 64), ["road", "zebra"])
        with torch.no_grad():
            found, expected = model(**inputs), plain(**inputs)
        assert torch.equal(found.class_queries_logits, expected.class_queries_logits)

    def test_precomputed_vectors_serve_too(self):
        model, processor = build_adaptable(), build_processor_of_vectors()
        model.text_model = None
        assert model.adapt(processor, ["zebra"], steps=2).new_labels == ("zebra",)
        with pytest.raises(ValueError, match="giraffe"):
            model.adapt(processor, ["giraffe"], steps=2)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([], "at least one label"),
            (["zebra", "zebra"], "unique"),
            (["Car"], "'Car' is already known as 'car'"),
            (["vehicle|automobile"], "'automobile' is already known as 'car'"),
            (["zebra", "zebra "], "unique"),
        ],
    )
    def test_labels_that_cannot_be_learnt(self, labels, message):
        model = build_adaptable()
        before = model.semantic_projector[0].weight.detach().clone()
        with pytest.raises(ValueError, match=message):
            model.adapt(build_processor(), labels)
        assert torch.equal(model.semantic_projector[0].weight, before)
        assert model.config.known_labels == ["road", "car|automobile", "tree"]

    def test_words_that_the_tokenizer_cannot_read(self):
        from testing.tiny_concat_run import build_processor_with_tokenizer

        model, processor = build_adaptable(), build_processor_with_tokenizer()
        model.config.known_labels = ["red", "green", "blue"]
        model.config.known_stuff_labels = []
        with pytest.raises(ValueError, match="no tokens for a part of 'red zebra'"):
            model.adapt(processor, ["red zebra"])

    def test_labels_that_the_tokenizer_cannot_tell_apart(self):
        model, processor = build_adaptable(), build_processor()
        processor.tokenizer.backend_tokenizer.normalizer = Lowercase()
        with pytest.raises(ValueError, match="'Zebra!' and 'zebra!' as the same tokens"):
            model.adapt(processor, ["Zebra!", "zebra!"])

    def test_a_checkpoint_without_generator_or_memory(self):
        with pytest.raises(ValueError, match="holds no query generator"):
            build_model().adapt(build_processor(), ["zebra"])
        model = build_model(text_config=build_clip_text_config())
        model.attach_generator("mlp")
        with pytest.raises(ValueError, match="holds no stored queries"):
            model.adapt(build_processor(), ["zebra"])

    def test_numbers_out_of_range(self):
        with pytest.raises(ValueError, match="steps must be 1 or more"):
            build_adaptable().adapt(build_processor(), ["zebra"], steps=0)
        for values in ({"queries_per_label": 0}, {"labels_per_step": 0}, {"noise_scale": -1.0}):
            with pytest.raises(ValueError, match=next(iter(values))):
                UnionOptions(**values)


def compute_logits(model, queries, texts):
    """In float64, by hand."""
    with torch.no_grad():
        embeds = model.semantic_projector(queries).double().numpy()
    vectors = np.concatenate([texts.numpy(), model.no_object_embedding.detach().numpy()[None]])
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return model.config.logit_scale * embeds @ vectors.T


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class Test_compute_union_loss:
    @pytest.mark.parametrize("keep_known", [False, True])
    def test_it_is_the_weighted_cross_entropy(self, keep_known):
        model = build_adaptable()
        texts = torch.nn.functional.normalize(torch.randn(5, TEXT_WIDTH), dim=-1)
        queries, label_ids = torch.randn(4, HIDDEN_DIM), torch.tensor([2, NO_OBJECT, 0, -100])
        options = UnionOptions(
            queries_per_label=2,
            unseen_weight=3.0,
            no_object_weight=0.2,
            noise_scale=0.5,
            keep_known=keep_known,
        )
        before = FrozenClassifier(model)
        kept = np.exp(log_softmax(compute_logits(model, queries, texts)))
        with torch.no_grad():
            model.semantic_projector[0].weight.add_(0.1 * torch.randn(TEXT_WIDTH, HIDDEN_DIM))
        loss = compute_union_loss(
            model,
            queries,
            label_ids,
            torch.tensor([3, 4]),
            texts,
            torch.arange(5),
            options,
            before=before,
            generator=torch.Generator().manual_seed(1),
        )
        drawn = texts[[3, 3, 4, 4]]
        pseudo = model.generator(drawn, noise_scale=0.5, generator=torch.Generator().manual_seed(1))
        logits = compute_logits(model, torch.cat([queries, pseudo]), texts)
        targets = np.eye(6)[[2, 5, 0, 0, 3, 3, 4, 4]]
        if keep_known:
            targets[:4] = kept
        weights = np.array([1, 0.2, 1, 0, 3, 3, 3, 3])
        entropies = -(targets * log_softmax(logits)).sum(axis=1)
        assert loss.item() == pytest.approx((weights * entropies).sum() / weights.sum(), rel=1e-4)

    def test_there_must_be_something_to_keep_to(self):
        with pytest.raises(ValueError, match="keep_known needs the classifier from before"):
            compute_union_loss(
                build_adaptable(),
                torch.randn(1, HIDDEN_DIM),
                torch.tensor([0]),
                torch.tensor([1]),
                torch.randn(2, TEXT_WIDTH),
                torch.arange(2),
                UnionOptions(),
            )

    def test_gradients_reach_the_projector_and_no_object_alone(self):
        model = build_adaptable()
        texts = torch.randn(4, TEXT_WIDTH)
        compute_union_loss(
            model,
            torch.randn(3, HIDDEN_DIM),
            torch.tensor([0, 1, NO_OBJECT]),
            torch.tensor([3]),
            texts,
            torch.arange(4),
            UnionOptions(),
            before=FrozenClassifier(model),
        ).backward()
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert reached == {
            "semantic_projector.0.weight",
            "semantic_projector.0.bias",
            "no_object_embedding",
        }

    def test_some_labels_a_step(self):
        model = build_adaptable()
        arguments = (
            model,
            torch.randn(1, HIDDEN_DIM),
            torch.tensor([0]),
            torch.arange(1, 9),
            torch.randn(9, TEXT_WIDTH),
            torch.arange(9),
            UnionOptions(labels_per_step=2, queries_per_label=1, keep_known=False),
        )
        losses = {
            compute_union_loss(*arguments, generator=torch.Generator().manual_seed(seed)).item()
            for seed in range(8)
        }
        assert len(losses) == 8


def test_a_label_with_synonyms_draws_any_of_its_texts():
    texts = torch.arange(4.0)[:, None]
    text_label_ids = torch.tensor([0, 1, 1, 2])
    drawn = draw_text_embeds(texts, text_label_ids, torch.tensor([1] * 50 + [0, 2]))[:, 0].tolist()
    assert set(drawn[:50]) == {1.0, 2.0}
    assert drawn[50:] == [0.0, 3.0]
    assert draw_text_embeds(texts, torch.tensor([3, 2, 1, 0]), torch.tensor([0, 3]))[:, 0].tolist() == [
        3.0,
        0.0,
    ]


class Test_sample_queries:
    def test_labels_have_as_many_queries_each(self):
        label_ids = torch.tensor([NO_OBJECT] * 60 + [0] * 30 + [1] * 8 + [2] * 2)
        queries = torch.arange(100.0)[:, None]
        kept, kept_ids = sample_queries(queries, label_ids, 30)
        counts = {label_id: int((kept_ids == label_id).sum()) for label_id in (NO_OBJECT, 0, 1, 2)}
        assert counts == {NO_OBJECT: 12, 0: 8, 1: 8, 2: 2}
        assert torch.equal(label_ids[kept[:, 0].long()], kept_ids)
        assert len(set(kept[:, 0].tolist())) == 30
        assert torch.equal(sample_queries(queries, label_ids, 30)[0], kept)
        assert not torch.equal(sample_queries(queries, label_ids, 30, seed=1)[0], kept)

    def test_few_matched_or_few_unmatched(self):
        queries = torch.zeros(20, 1)
        few = torch.tensor([NO_OBJECT] * 18 + [0, 1])
        assert (sample_queries(queries, few, 10)[1] >= 0).sum() == 2
        assert (sample_queries(queries, -1 - few, 10)[1] == NO_OBJECT).sum() == 1
        with pytest.raises(ValueError, match="a memory of 21 queries needs as many, got 20"):
            sample_queries(queries, few, 21)


def test_remember_checks_what_it_stores():
    model = build_model(text_config=build_clip_text_config())
    with pytest.raises(ValueError, match=r"queries must be \(N, 32\)"):
        model.remember(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), KNOWN)
    with pytest.raises(ValueError, match=r"label_ids must lie in \[-1, 3\)"):
        model.remember(torch.zeros(1, HIDDEN_DIM), torch.tensor([3]), KNOWN)
