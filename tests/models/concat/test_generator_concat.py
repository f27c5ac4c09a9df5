from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oracles.semantic_alignment import (
    relation_logits,
    relation_loss,
    semantic_alignment_loss,
    softmax_divergence,
)
from zsseg.losses.moment_matching import compute_moment_matching_loss
from zsseg.models.concat.generator_concat import GeneratorBatch, build_query_generator

KINDS = ("mlp", "cvae", "primitives")
EMBED_DIM, QUERY_DIM = 12, 16


def build(kind, **sizes):
    torch.manual_seed(0)
    sizes = {
        "embed_dim": EMBED_DIM,
        "query_dim": QUERY_DIM,
        "noise_dim": 5,
        "hidden_dim": 24,
        "num_primitives": 7,
    } | sizes
    return build_query_generator(kind, **sizes).eval()


def draw_texts(count, seed=0):
    texts = np.random.default_rng(seed).normal(size=(count, EMBED_DIM)).astype(np.float32)
    return F.normalize(torch.from_numpy(texts), dim=1)


def draw_queries(count, seed=0):
    queries = np.random.default_rng(seed).normal(size=(count, QUERY_DIM)).astype(np.float32)
    return F.layer_norm(torch.from_numpy(queries), (QUERY_DIM,))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def compute_all_own_losses(generator, random_numbers=None):
    """Own losses of five real queries of three labels and of four queries of two labels without real ones."""
    vocabulary = draw_texts(6)
    labels, unseen = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([5, 3, 3, 5])
    batch = GeneratorBatch(
        real_queries=draw_queries(5),
        pseudo_queries=generator(vocabulary[labels], generator=random_numbers),
        label_ids=labels,
        unseen_queries=generator(vocabulary[unseen], generator=random_numbers),
        unseen_label_ids=unseen,
        vocabulary_embeds=vocabulary,
    )
    return generator.compute_own_losses(batch, generator=random_numbers)


def build_inductive_batch(real, pseudo, labels, vocabulary):
    return GeneratorBatch(
        real_queries=real,
        pseudo_queries=pseudo,
        label_ids=labels,
        unseen_queries=pseudo[:0],
        unseen_label_ids=labels[:0],
        vocabulary_embeds=vocabulary,
    )


@pytest.mark.parametrize("kind", KINDS)
class TestEveryGenerator:
    def test_one_query_per_text(self, kind):
        generator = build(kind)
        queries = generator(draw_texts(9))
        assert queries.shape == (9, QUERY_DIM)
        assert (generator.embed_dim, generator.query_dim) == (EMBED_DIM, QUERY_DIM)
        assert generator.noise_dim == (QUERY_DIM if kind == "primitives" else 5)

    def test_the_noise_is_fresh_at_every_call_and_of_every_row(self, kind):
        generator, text = build(kind), draw_texts(1)
        first, second = generator(text.expand(2, -1))
        third = generator(text)[0]
        assert not torch.allclose(first, second, atol=1e-3)
        assert not torch.allclose(first, third, atol=1e-3)

    def test_a_seed_gives_the_same_queries_whatever_the_global_generator(self, kind):
        generator, texts = build(kind), draw_texts(4)
        first = generator(texts, generator=seeded(3))
        torch.manual_seed(99)
        state = torch.get_rng_state()
        assert torch.equal(generator(texts, generator=seeded(3)), first)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.allclose(generator(texts, generator=seeded(4)), first, atol=1e-3)

    def test_without_noise_a_text_has_one_query_whatever_its_neighbours(self, kind):
        generator, texts = build(kind), draw_texts(4)
        together = generator(texts, noise_scale=0.0)
        alone = torch.cat([generator(text[None], noise_scale=0.0) for text in texts])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-3)

    def test_more_noise_spreads_the_queries(self, kind):
        generator, texts = build(kind), draw_texts(1).expand(50, -1)
        spreads = [
            float(generator(texts, noise_scale=scale, generator=seeded()).detach().std(dim=0).mean())
            for scale in (0.01, 0.1, 1.0)
        ]
        assert spreads == sorted(spreads)
        assert spreads[0] < spreads[2] / 3

    def test_weights_alone_make_the_generator(self, kind, tmp_path):
        holder = nn.ModuleDict({"generator": build(kind)})
        assert not list(holder.buffers())
        torch.save(holder.state_dict(), tmp_path / "weights.pt")
        with torch.device("meta"):
            restored = nn.ModuleDict({"generator": build(kind)})
        restored.to_empty(device="cpu").load_state_dict(torch.load(tmp_path / "weights.pt"))
        texts = draw_texts(4)
        expected = holder["generator"](texts, generator=seeded())
        assert torch.equal(restored["generator"](texts, generator=seeded()), expected)
        losses = compute_all_own_losses(holder["generator"], seeded())
        restored_losses = compute_all_own_losses(restored["generator"], seeded())
        assert losses == restored_losses

    def test_all_parameters_learn_and_inputs_do_not(self, kind):
        generator = build(kind)
        losses = compute_all_own_losses(generator)
        assert losses.keys() == generator.own_loss_weights.keys()
        real = draw_queries(6)
        loss = compute_moment_matching_loss(generator(draw_texts(6)), real)
        (loss + sum(losses.values())).backward()
        assert not [
            name
            for name, parameter in generator.named_parameters()
            if parameter.grad is None or not (parameter.grad.abs() > 0).any()
        ]

    def test_texts_of_another_width(self, kind):
        for shape in ((3, EMBED_DIM + 1), (EMBED_DIM,)):
            with pytest.raises(ValueError, match=r"text_embeds must be \(N, 12\).*got .*the text tower"):
                build(kind)(torch.zeros(shape))

    @pytest.mark.slow
    def test_it_learns_where_the_queries_of_labels_lie(self, kind):
        means, texts = 2 * draw_queries(2, seed=1), draw_texts(2)
        random_numbers = seeded()
        labels = torch.arange(2).repeat_interleave(16)
        generator = build(kind, hidden_dim=48).train()
        optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3)
        for _ in range(300):
            real = means[labels] + 0.5 * torch.randn(32, QUERY_DIM, generator=random_numbers)
            real = F.layer_norm(real, (QUERY_DIM,))
            pseudo = generator(texts[labels], generator=random_numbers)
            own = generator.compute_own_losses(build_inductive_batch(real, pseudo, labels, texts))
            loss = compute_moment_matching_loss(
                pseudo, real, pseudo_label_ids=labels, real_label_ids=labels
            ) + sum(generator.own_loss_weights[name] * value for name, value in own.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        # in training mode: the primitive generator's dropout is part of its randomness
        with torch.no_grad():
            drawn = generator(texts.repeat_interleave(100, dim=0)).view(2, 100, QUERY_DIM)
        wanted = F.layer_norm(means, (QUERY_DIM,))
        errors = (drawn.mean(dim=1) - wanted).norm(dim=1)
        assert (errors < 0.1 * (wanted[0] - wanted[1]).norm()).all()
        # Queries of a label have not become one: the real ones deviate by about 0.23.
        assert (drawn.std(dim=1).mean(dim=1) > 0.05).all()


def test_moment_matching_needs_no_losses_of_its_own():
    assert compute_all_own_losses(build("mlp")) == {}


class TestConditionalVae:
    def test_reconstruction_decodes_what_the_encoder_says(self):
        generator = build("cvae")
        queries, texts = draw_queries(4), draw_texts(4)
        reconstructed, mean, log_variance = generator.reconstruct(queries, texts, generator=seeded())
        assert mean.shape == log_variance.shape == (4, 5)
        noise = torch.randn(4, 5, generator=seeded())
        latents = mean + log_variance.exp().sqrt() * noise
        expected = generator.decoder(torch.cat([EMBED_DIM**0.5 * texts, latents], dim=1))
        torch.testing.assert_close(reconstructed, expected)
        again = generator.reconstruct(queries, texts, generator=seeded(1))
        assert torch.equal(again[1], mean)
        assert not torch.allclose(again[0], reconstructed, atol=1e-4)

    def test_own_losses_are_the_error_and_the_divergence(self):
        generator = build("cvae")
        vocabulary, labels = draw_texts(6), torch.tensor([0, 2, 2, 1, 0])
        real = draw_queries(5)
        batch = build_inductive_batch(real, draw_queries(5, seed=9), labels, vocabulary)
        losses = generator.compute_own_losses(batch, generator=seeded())
        with torch.no_grad():
            parts = generator.reconstruct(real, vocabulary[labels], generator=seeded())
        reconstructed, mean, log_variance = (part.numpy().astype(np.float64) for part in parts)
        error = ((reconstructed - real.numpy()) ** 2).mean()
        divergence = (0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)).sum() / 5
        assert float(losses["reconstruction"].detach()) == pytest.approx(error, rel=1e-5)
        assert float(losses["divergence"].detach()) == pytest.approx(divergence, rel=1e-5)


class TestPrimitives:
    def test_own_losses_equal_the_oracle(self):
        generator = build("primitives")
        seen, unseen = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([5, 3, 3, 5])
        vocabulary = draw_texts(6)
        queries, unseen_queries = draw_queries(5, seed=1), draw_queries(4, seed=2)
        batch = GeneratorBatch(
            real_queries=draw_queries(5),
            pseudo_queries=queries,
            label_ids=seen,
            unseen_queries=unseen_queries,
            unseen_label_ids=unseen,
            vocabulary_embeds=vocabulary,
        )
        losses = generator.compute_own_losses(batch, generator=seeded())

        noise_source = seeded()
        with torch.no_grad():
            texts = generator.text_projection(vocabulary).numpy()
            groups = []
            # The candidates of seen queries are all labels, those of unseen queries the unseen ones: 3 and 5.
            for drawn, labels, candidates, positions in (
                (queries, seen, [0, 1, 2, 3, 4, 5], [0, 2, 2, 1, 0]),
                (unseen_queries, unseen, [3, 5], [1, 0, 0, 1]),
            ):
                related = generator.related_projection(drawn)
                unrelated = generator.unrelated_projection(drawn)
                rebuilt = generator.part_decoder(torch.cat([related, unrelated], dim=1))
                noise = torch.randn(len(drawn), QUERY_DIM, generator=noise_source)
                first_weight = torch.cat(
                    [generator.relation_query_projection.weight, generator.relation_text_projection.weight],
                    dim=1,
                )
                logits = relation_logits(
                    related.numpy(),
                    texts[candidates],
                    first_weight.numpy(),
                    generator.relation_query_projection.bias.numpy(),
                    generator.relation_score.weight.numpy(),
                    generator.relation_score.bias.numpy(),
                )
                groups.append(
                    {
                        "related": related.numpy(),
                        "texts": texts[labels],
                        "unrelated": softmax_divergence(unrelated.numpy(), noise.numpy()),
                        "relation": relation_loss(logits, positions),
                        "reconstruction": float((rebuilt - drawn).abs().mean()),
                    }
                )
        expected = {
            name: (groups[0][name] + groups[1][name]) / 2
            for name in ("unrelated", "relation", "reconstruction")
        }
        pairs = ((groups[0], groups[0]), (groups[0], groups[1]), (groups[1], groups[1]))
        expected["alignment"] = np.mean(
            [
                semantic_alignment_loss(first["related"], second["related"], first["texts"], second["texts"])
                for first, second in pairs
            ]
        )
        assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(
            expected, rel=1e-4
        )

    def test_the_weights_are_those_of_the_official_code(self):
        assert build("primitives").own_loss_weights == pytest.approx(
            {"alignment": 1e-4, "unrelated": 0.5e-4, "relation": 0.2e-4, "reconstruction": 0.5e-4}
        )

    def test_inductive_training_knows_seen_labels_alone(self):
        generator, vocabulary = build("primitives"), draw_texts(3)
        labels = torch.tensor([0, 2, 1, 0])
        batch = build_inductive_batch(draw_queries(4), draw_queries(4, seed=1), labels, vocabulary)
        unseen = {"unseen_queries": draw_queries(2, seed=3), "unseen_label_ids": torch.tensor([1, 2])}
        inductive = generator.compute_own_losses(batch, generator=seeded())
        transductive = generator.compute_own_losses(replace(batch, **unseen), generator=seeded())
        assert inductive.keys() == transductive.keys()
        assert all(not torch.equal(inductive[name], transductive[name]) for name in inductive)

    def test_the_queries_depend_on_every_primitive(self):
        generator = build("primitives")
        generator(draw_texts(3), generator=seeded()).square().sum().backward()
        assert (generator.primitives.weight.grad.abs().sum(dim=1) > 0).all()

    def test_a_width_that_its_heads_do_not_divide(self):
        with pytest.raises(ValueError, match="multiple of 8, got 12: use another kind"):
            build("primitives", query_dim=12)


def test_a_kind_that_does_not_exist():
    with pytest.raises(ValueError, match=r"one of \('mlp', 'cvae', 'primitives'\), got 'gan'"):
        build("gan")
