"""What the stage "generator" puts together: which text, which query, which loss and which weight."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from testing.tiny_models import HIDDEN_DIM, TEXT_WIDTH, build_model
from zsseg.losses.moment_matching import compute_moment_matching_loss
from zsseg.losses.query_contrast import compute_cycle_loss, compute_query_contrast_loss
from zsseg.losses.set_criterion import UNKNOWN_LABEL
from zsseg.models.concat.generator_concat import GeneratorBatch
from zsseg.models.concat.query_memory import NO_OBJECT
from zsseg.training.recipes.concat_transition import GeneratorStage, TransitionOptions
from zsseg.training.stage import StageContext
from zsseg.vocabulary import Vocabulary

SEEN, UNSEEN = ("road", "car", "tree"), ("zebra", "savanna")
TRANSDUCTIVE = Vocabulary.from_labels([*SEEN, *UNSEEN], unseen_labels=UNSEEN)
INDUCTIVE = Vocabulary.from_labels(SEEN)
TEXT_LABEL_IDS = {len(TRANSDUCTIVE): [2, 0, 4, 1, 3], len(INDUCTIVE): [2, 0, 1]}
"""Label of each row of the identity, by the number of labels: no text stands at the place of its label."""

WEIGHTS = {"moments": 0.7, "contrast": 0.3, "cycle": 0.011, "unseen_cycle": 0.05}
OPTIONS = {
    kind: TransitionOptions(
        generator_type=kind,
        moment_weight=0.7,
        contrast_weight=0.3,
        cycle_weight=0.011,
        unseen_cycle_weight=0.05,
        own_weight=own_weight,
    )
    for kind, own_weight in {"mlp": 1.0, "cvae": 30.0, "primitives": 900.0}.items()
}
OWN_WEIGHTS = {
    "mlp": {},
    "cvae": {"reconstruction": 30.0, "divergence": 30.0 * 0.2 / HIDDEN_DIM},
    "primitives": {"alignment": 0.09, "unrelated": 0.045, "relation": 0.018, "reconstruction": 0.045},
}
LABEL_IDS = torch.tensor(
    [
        [0, 2, NO_OBJECT, UNKNOWN_LABEL, 2, 1],
        [1, NO_OBJECT, 0, 2, UNKNOWN_LABEL, NO_OBJECT],
    ]
)
MATCHED = [0, 2, 2, 1, 1, 0, 2]


@dataclass
class Draw:
    """One call of the generator, and the global random state that it left behind."""

    texts: torch.Tensor
    queries: torch.Tensor
    state: torch.Tensor


def build_trainable(kind="mlp"):
    model = build_model()
    torch.manual_seed(5)
    model.attach_generator(kind, noise_dim=4, hidden_dim=16, num_primitives=10)
    model.draws = []
    model.generator.register_forward_hook(
        lambda _, texts, queries: model.draws.append(Draw(texts[0], queries, torch.get_rng_state()))
    )
    return model


def build_context(vocabulary=TRANSDUCTIVE):
    text_label_ids = torch.tensor(TEXT_LABEL_IDS[len(vocabulary)])
    return StageContext(vocabulary, torch.eye(TEXT_WIDTH)[: len(vocabulary)], text_label_ids)


def find_texts(label_ids, vocabulary=TRANSDUCTIVE):
    """The text of each label, found by looking for its row."""
    rows = [TEXT_LABEL_IDS[len(vocabulary)].index(label_id) for label_id in label_ids]
    return torch.eye(TEXT_WIDTH)[rows]


def build_batch():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(*LABEL_IDS.shape, HIDDEN_DIM, generator=generator)
    return {"queries": queries, "label_ids": LABEL_IDS}


def compute(model, *, batch=None, context=None, seed=0, **changes):
    torch.manual_seed(seed)
    options = replace(OPTIONS[model.config.generator_type], **changes)
    return GeneratorStage(options).compute_loss(
        model, build_batch() if batch is None else batch, build_context() if context is None else context
    )


def name_by_hand(model, queries, texts):
    """γ times the cosine with each text and with no-object, in float64."""
    vectors = torch.cat([texts, model.no_object_embedding[None]]).double()
    embeds = model.semantic_projector(queries).double()
    return model.config.logit_scale * F.normalize(embeds, dim=1) @ F.normalize(vectors, dim=1).T


def compute_parts_by_hand(model, vocabulary=TRANSDUCTIVE):
    """Every loss of the latest draw."""
    draw, queries, labels = model.draws[-1], build_batch()["queries"], torch.tensor(MATCHED)
    pseudo, unseen = draw.queries.split([len(MATCHED), len(draw.queries) - len(MATCHED)])
    # Of the two pictures, place by place.
    real = torch.stack([*queries[0, [0, 1, 4, 5]], *queries[1, [0, 2, 3]]])
    unmatched = torch.stack([queries[0, 2], *queries[1, [1, 5]]])
    texts = find_texts(range(len(vocabulary)), vocabulary)
    unseen_labels = torch.tensor(
        [TEXT_LABEL_IDS[len(vocabulary)][int(text.argmax())] for text in draw.texts[len(MATCHED) :]]
    ).long()
    parts = {
        "moments": compute_moment_matching_loss(pseudo, real, pseudo_label_ids=labels, real_label_ids=labels),
        "contrast": compute_query_contrast_loss(pseudo, real, unmatched),
        "cycle": compute_cycle_loss(name_by_hand(model, pseudo, texts), labels),
    }
    if len(unseen):
        parts["unseen_cycle"] = compute_cycle_loss(name_by_hand(model, unseen, texts), unseen_labels)
    torch.set_rng_state(draw.state)
    own = model.generator.compute_own_losses(
        GeneratorBatch(
            real_queries=real,
            pseudo_queries=pseudo,
            label_ids=labels,
            unseen_queries=unseen,
            unseen_label_ids=unseen_labels,
            vocabulary_embeds=texts,
        )
    )
    return {name: value.item() for name, value in (parts | own).items()}


def take_parts(losses):
    return {name: value.item() for name, value in losses.items() if name != "loss"}


@pytest.mark.parametrize("vocabulary", [TRANSDUCTIVE, INDUCTIVE], ids=["transductive", "inductive"])
@pytest.mark.parametrize("kind", ["mlp", "cvae", "primitives"])
def test_it_is_the_weighted_sum_of_the_losses_of_one_draw(kind, vocabulary):
    model = build_trainable(kind)
    losses = compute(model, context=build_context(vocabulary))
    assert len(model.draws) == 1
    # With this seed both unseen labels are drawn.
    assert len(set(model.draws[0].texts[len(MATCHED) :].argmax(dim=1).tolist())) == (
        2 if vocabulary is TRANSDUCTIVE else 0
    )
    parts = take_parts(losses)
    assert parts == pytest.approx(compute_parts_by_hand(model, vocabulary), rel=1e-4)
    weights = WEIGHTS | OWN_WEIGHTS[kind]
    if vocabulary is INDUCTIVE:
        del weights["unseen_cycle"]
    assert parts.keys() == weights.keys()
    total = sum(weights[name] * parts[name] for name in weights)
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)
    # Each of them has a say in the total, far above its tolerance.
    assert all(weights[name] * parts[name] > 1e-4 * total for name in weights)


FIELDS = {
    "moments": "moment_weight",
    "contrast": "contrast_weight",
    "cycle": "cycle_weight",
    "unseen_cycle": "unseen_cycle_weight",
    "reconstruction": "own_weight",
    "divergence": "own_weight",
}
"""Which option weighs which loss of a conditional VAE."""


@pytest.mark.parametrize("field", sorted(set(FIELDS.values())))
def test_a_weight_of_zero_leaves_its_loss_out_and_the_others_as_they_are(field):
    model = build_trainable("cvae")
    everything, found = compute(model), compute(model, **{field: 0.0})
    parts = take_parts(everything)
    left = {name: value for name, value in parts.items() if FIELDS[name] != field}
    assert take_parts(found) == left
    weights = WEIGHTS | OWN_WEIGHTS["cvae"]
    assert found["loss"].item() == pytest.approx(sum(weights[name] * left[name] for name in left), rel=1e-5)
    assert found["loss"].item() < 0.999 * everything["loss"].item()


@pytest.mark.parametrize("field", sorted(set(FIELDS.values()) - {"unseen_cycle_weight"}))
def test_each_loss_alone_teaches_the_generator_and_nothing_else(field):
    model = build_trainable("cvae")
    stage = GeneratorStage(replace(OPTIONS["cvae"], **dict.fromkeys(FIELDS.values(), 0.0) | {field: 2.0}))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.is_trainable(name))
    losses = stage.compute_loss(model, build_batch(), build_context())
    assert {FIELDS[name] for name in losses if name != "loss"} == {field}
    assert not any(value.requires_grad for name, value in losses.items() if name != "loss")
    losses["loss"].backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached
    assert all(name.startswith("generator.") for name in reached)
    assert all(model.get_parameter(name).grad.abs().max() > 1e-8 for name in reached)


@pytest.mark.parametrize("vocabulary", [TRANSDUCTIVE, INDUCTIVE], ids=["transductive", "inductive"])
def test_what_the_primitives_bring_along_teaches_by_every_query_drawn(vocabulary):
    model = build_trainable("primitives")
    alone = dict.fromkeys(("moment_weight", "contrast_weight", "cycle_weight", "unseen_cycle_weight"), 0.0)
    losses = compute(model, context=build_context(vocabulary), **alone)
    assert take_parts(losses).keys() == OWN_WEIGHTS["primitives"].keys()
    queries = model.draws[-1].queries
    (gradient,) = torch.autograd.grad(losses["loss"], queries)
    assert len(queries) == len(MATCHED) + (2 if vocabulary is TRANSDUCTIVE else 0)
    assert gradient.abs().amax(dim=1).min() > 1e-6


def test_weights_of_contrast_and_cycle_are_not_each_others():
    model = build_trainable()
    first, second = compute(model), compute(model, contrast_weight=0.011, cycle_weight=0.3)
    assert take_parts(first) == take_parts(second)
    difference = (second["contrast"] - second["cycle"]) * (0.011 - 0.3)
    assert abs(difference) > 0.1
    assert (second["loss"] - first["loss"]).item() == pytest.approx(difference.item(), rel=1e-3)


def test_matched_queries_come_with_the_texts_of_their_labels_and_a_quarter_as_many_unseen_ones():
    model = build_trainable()
    unseen = []
    for seed in range(12):
        compute(model, seed=seed)
        seen, drawn = model.draws[-1].texts.split([len(MATCHED), 2])
        assert torch.equal(seen, find_texts(MATCHED))
        unseen += drawn.tolist()
    expected = [find_texts([TRANSDUCTIVE.label_id(name)])[0].tolist() for name in UNSEEN]
    assert all(text in expected for text in unseen)
    assert all(text in unseen for text in expected)


def test_without_unseen_labels_there_is_nothing_to_say_of_them():
    model = build_trainable()
    losses = compute(model, context=build_context(INDUCTIVE))
    assert "unseen_cycle" not in losses
    assert torch.equal(model.draws[-1].texts, find_texts(MATCHED, INDUCTIVE))


def test_a_label_with_synonyms_is_drawn_for_one_of_its_own_texts():
    vocabulary = Vocabulary.from_labels(["road", "car|automobile", "tree"])
    context = StageContext(vocabulary, torch.eye(TEXT_WIDTH)[:4], torch.tensor([1, 2, 0, 1]))
    model = build_trainable()
    drawn = set()
    for seed in range(12):
        losses = compute(model, context=context, seed=seed)
        rows = model.draws[-1].texts.argmax(dim=1)
        assert context.text_label_ids[rows].tolist() == MATCHED
        drawn |= set(rows.tolist())
        # Whichever text was drawn, all texts of the label are right.
        logits = name_by_hand(model, model.draws[-1].queries, context.text_embeds)
        by_label = torch.stack(
            [logits[:, 2], logits[:, [0, 3]].amax(dim=1), logits[:, 1], logits[:, 4]], dim=1
        )
        assert losses["cycle"].item() == pytest.approx(
            compute_cycle_loss(by_label, torch.tensor(MATCHED)).item(), rel=1e-4
        )
    assert drawn == {0, 1, 2, 3}


def test_pooled_moments_are_those_of_the_whole_batch():
    model = build_trainable()
    per_label, pooled = compute(model), compute(model, moments="pooled")
    queries = build_batch()["queries"][LABEL_IDS >= 0]
    expected = compute_moment_matching_loss(model.draws[-1].queries[: len(MATCHED)], queries)
    assert pooled["moments"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(pooled["moments"] - per_label["moments"]) > 0.1
    assert {name for name in per_label if per_label[name] != pooled[name]} == {"loss", "moments"}


@pytest.mark.parametrize("kind", ["mlp", "cvae", "primitives"])
def test_queries_of_unknown_labels_change_nothing(kind):
    model, batch = build_trainable(kind), build_batch()
    expected = compute(model, batch=batch)
    is_known = LABEL_IDS != UNKNOWN_LABEL
    others = {**batch, "queries": torch.where(is_known[..., None], batch["queries"], 50.0)}
    fewer = {name: values[is_known][None] for name, values in batch.items()}
    for changed in (others, fewer):
        found = compute(model, batch=changed)
        assert {name: value.item() for name, value in found.items()} == {
            name: value.item() for name, value in expected.items()
        }


def test_queries_without_a_segment_are_what_the_contrast_keeps_away_from_alone():
    model, batch = build_trainable("cvae"), build_batch()
    expected = compute(model, batch=batch)
    queries = torch.where((LABEL_IDS == NO_OBJECT)[..., None], -batch["queries"], batch["queries"])
    found = compute(model, batch={**batch, "queries": queries})
    assert {name for name in expected if expected[name] != found[name]} == {"loss", "contrast"}


NUM_QUERIES_PER_LABEL = 8


def build_clear_batch(model, generator):
    """Queries that the random projector names right, some of each seen label, and some that show nothing."""
    weight, bias = (parameter.detach() for parameter in model.semantic_projector[0].parameters())
    labels = torch.arange(len(SEEN)).repeat_interleave(NUM_QUERIES_PER_LABEL)
    # The shortest query that the projector takes to the text.
    centres = (2 * find_texts(labels.tolist()) - bias) @ torch.linalg.pinv(weight).T
    noise = torch.randn(centres.shape, generator=generator)
    unmatched = torch.randn(NUM_QUERIES_PER_LABEL, HIDDEN_DIM, generator=generator)
    return {
        "queries": torch.cat([centres + 0.1 * noise, unmatched])[None],
        "label_ids": F.pad(labels, (0, NUM_QUERIES_PER_LABEL), value=NO_OBJECT)[None],
    }


@torch.no_grad()
def compute_accuracy(model, context, names):
    """Share of pseudo queries of these labels that the projector takes for their label, of all labels."""
    label_ids = torch.tensor([TRANSDUCTIVE.label_id(name) for name in names]).repeat_interleave(50)
    queries = model.generator(find_texts(label_ids.tolist()))
    logits = model.compute_class_logits(
        model.semantic_projector(queries), context.text_embeds, context.text_label_ids
    )
    return (logits.argmax(dim=1) == label_ids).float().mean().item()


def learn(kind):
    model = build_trainable(kind)
    stage, context = GeneratorStage(TransitionOptions(generator_type=kind)), build_context()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.is_trainable(name))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(3)
    for _ in range(150):
        optimizer.zero_grad()
        stage.compute_loss(model, build_clear_batch(model, generator), context)["loss"].backward()
        optimizer.step()
    model.draws.clear()
    return model


@pytest.mark.parametrize("kind", ["mlp", "cvae", pytest.param("primitives", marks=pytest.mark.slow)])
def test_the_frozen_projector_names_what_the_trained_generator_draws(kind):
    untrained, trained, context = build_trainable(kind), learn(kind), build_context()
    for names in (SEEN, UNSEEN):
        assert compute_accuracy(untrained, context, names) < 0.6
        assert compute_accuracy(trained, context, names) > 0.9
