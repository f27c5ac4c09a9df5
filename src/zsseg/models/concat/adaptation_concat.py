"""New labels for a trained CONCAT by their names alone: pseudo queries, then union fine-tuning.

Union fine-tuning teaches the semantic projector and the no-object embedding, and nothing else, on real
queries of known labels together with pseudo queries of labels no picture was seen of (arXiv:2402.13697).
The training recipe runs it on all queries of its pictures; a checkpoint runs it on the few it remembers.
"""

import copy
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from zsseg.layers.open_vocabulary_classifier import compute_cosine_class_logits
from zsseg.models.concat.query_memory import NO_OBJECT
from zsseg.models.inference import encode_vocabulary
from zsseg.vocabulary import Category, Vocabulary

UNION_PREFIXES = ("semantic_projector.", "no_object_embedding")
"""Beginnings of the names of the parameters that union fine-tuning trains."""

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 2e-3, 0.9, 5e-4
"""Of SGD: PADing's, the rate doubled, as an adaptation is short."""

QUERIES_PER_STEP = 256
PSEUDO_QUERIES_TO_MEASURE = 64


@dataclass(frozen=True, kw_only=True)
class UnionOptions:
    """How union fine-tuning draws pseudo queries and weighs them against real ones.

    Attributes:
        labels_per_step: random new labels that a step draws; None draws all of them.
        queries_per_label: pseudo queries of each of these. PADing draws one of each of five labels; a step
            costs next to nothing, so more are drawn here.
        noise_scale: standard deviation of the generator's noise. Above 1, as by default, pseudo queries
            spread wider than those it was trained with: real queries of labels it never saw do so too.
        keep_known: what real queries learn. True: what the projector said of them before, so that new labels
            are learnt and as little else as can be changes. False: their label, as in PADing, which sharpens
            known labels further.
        unseen_weight: weight of a pseudo query in the class loss; a real one of a known label has 1.
        no_object_weight: weight of a real query without a segment.

    ``keep_known``, several queries a label and the wider noise are choices of ours.

    Raises:
        ValueError: if a number is out of range.
    """

    labels_per_step: int | None = None
    queries_per_label: int = 4
    noise_scale: float = 2.5
    keep_known: bool = True
    unseen_weight: float = 2.0
    no_object_weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("labels_per_step", "queries_per_label"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("noise_scale", "unseen_weight", "no_object_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


class FrozenClassifier:
    """The projector and the no-object embedding as they were, to say what real queries were taken for.

    Args:
        model: a :class:`~zsseg.ConcatForPanopticSegmentation`; its weights are copied.
    """

    def __init__(self, model: Any) -> None:
        self.projector = copy.deepcopy(model.semantic_projector).requires_grad_(False)
        self.no_object_embedding = model.no_object_embedding.detach().clone()
        self.logit_scale = model.config.logit_scale

    def get_state(self) -> dict[str, Tensor]:
        """Its weights, to be saved with a checkpoint of a run."""
        weights = {f"projector.{name}": value for name, value in self.projector.state_dict().items()}
        return {**weights, "no_object_embedding": self.no_object_embedding}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of :meth:`get_state`."""
        device = self.no_object_embedding.device
        self.projector.load_state_dict(
            {name.removeprefix("projector."): value for name, value in state.items() if "." in name}
        )
        self.no_object_embedding = state["no_object_embedding"].to(device)

    @torch.no_grad()
    def compute_probabilities(self, queries: Tensor, text_embeds: Tensor, text_label_ids: Tensor) -> Tensor:
        """(N, d) queries → (N, K + 1), the last column no-object."""
        return compute_cosine_class_logits(
            self.projector(queries),
            text_embeds,
            logit_scale=self.logit_scale,
            text_label_ids=text_label_ids,
            no_object_embedding=self.no_object_embedding,
        ).softmax(dim=-1)


def compute_union_loss(
    model: Any,
    queries: Tensor,
    label_ids: Tensor,
    pseudo_label_ids: Tensor,
    text_embeds: Tensor,
    text_label_ids: Tensor,
    options: UnionOptions,
    *,
    before: FrozenClassifier | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cross-entropy over real queries and pseudo queries, a weighted mean; gradients reach no generator.

    Args:
        model: a :class:`~zsseg.ConcatForPanopticSegmentation` with a generator.
        queries: (N, d) real queries.
        label_ids: (N,) int64 in [0, K), ``NO_OBJECT`` where a query contains no segment, -100 where it learns
            no class.
        pseudo_label_ids: (U,) int64, the labels without real queries.
        text_embeds: (T, D) texts of all K labels.
        text_label_ids: (T,) label of each text.
        options: numbers and weights.
        before: the classifier that real queries keep to; needed with ``keep_known``.
        generator: of the noise; the global one if None.

    Returns:
        Scalar.

    Raises:
        ValueError: if ``keep_known`` is set and there is nothing to keep to.
    """
    drawn = _draw_labels(pseudo_label_ids, options, generator)
    with torch.no_grad():
        texts = draw_text_embeds(text_embeds, text_label_ids, drawn, generator)
        pseudo = model.generator(texts, noise_scale=options.noise_scale, generator=generator)
    real = queries.to(pseudo.dtype)
    logits = model.compute_class_logits(
        model.semantic_projector(torch.cat([real, pseudo])), text_embeds, text_label_ids
    )
    num_columns = logits.shape[-1]
    if not options.keep_known:
        real_targets = _one_hot(torch.where(label_ids >= 0, label_ids, num_columns - 1), num_columns)
    elif before is None:
        raise ValueError("keep_known needs the classifier from before: pass FrozenClassifier(model)")
    else:
        real_targets = before.compute_probabilities(real, text_embeds, text_label_ids)
    targets = torch.cat([real_targets, _one_hot(drawn, num_columns)])
    weights = torch.cat(
        [
            torch.where(label_ids == NO_OBJECT, options.no_object_weight, (label_ids >= 0).to(logits.dtype)),
            logits.new_full((len(drawn),), options.unseen_weight),
        ]
    )
    cross_entropy = -(targets * logits.log_softmax(dim=-1)).sum(dim=-1)
    return (weights * cross_entropy).sum() / weights.sum()


def _one_hot(label_ids: Tensor, num_columns: int) -> Tensor:
    return F.one_hot(label_ids, num_columns).float()


def _draw_labels(label_ids: Tensor, options: UnionOptions, generator: torch.Generator | None) -> Tensor:
    """The label of every pseudo query of a step."""
    if options.labels_per_step is not None:
        order = torch.randperm(len(label_ids), generator=generator)[: options.labels_per_step]
        label_ids = label_ids[order.to(label_ids.device)]
    return label_ids.repeat_interleave(options.queries_per_label)


def draw_text_embeds(
    text_embeds: Tensor, text_label_ids: Tensor, label_ids: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """One text embedding for each label id: (N,) → (N, D); a label with synonyms draws one of its texts."""
    if len(text_label_ids) == int(text_label_ids.max()) + 1:
        return text_embeds[torch.argsort(text_label_ids)[label_ids]]
    is_of_label = text_label_ids[None] == label_ids[:, None]
    rows = torch.multinomial(is_of_label.float().cpu(), num_samples=1, generator=generator)[:, 0]
    return text_embeds[rows.to(text_embeds.device)]


@dataclass(frozen=True)
class AdaptationResult:
    """What adapting to new labels changed.

    Attributes:
        new_labels: names, in the order given.
        known_labels: names of all labels the model now knows.
        parameters: names of the parameters that changed; all others are the same to the last bit.
        steps: optimizer steps.
        loss: mean over the last tenth of the steps.
        seconds: all of it, texts included.
        known_accuracy: share of stored queries of known labels that are named right among all labels, before
            and after.
        new_accuracy: share of pseudo queries of the new labels that are, before and after.
    """

    new_labels: tuple[str, ...]
    known_labels: tuple[str, ...]
    parameters: tuple[str, ...]
    steps: int
    loss: float
    seconds: float
    known_accuracy: tuple[float, float]
    new_accuracy: tuple[float, float]


def adapt_to_labels(
    model: Any,
    processor: Any,
    candidate_labels: Sequence[str],
    *,
    stuff_labels: Sequence[str] = (),
    steps: int = 1000,
    options: UnionOptions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AdaptationResult:
    """Union fine-tuning on the queries that a checkpoint remembers; see ``adapt`` of the model."""
    started = time.monotonic()
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    options = UnionOptions() if options is None else options
    vocabulary = _extend_vocabulary(model, processor, candidate_labels, stuff_labels)
    new_label_ids = torch.arange(len(model.config.known_labels), len(vocabulary), device=model.device)
    text_inputs = encode_vocabulary(model, processor, vocabulary)
    with _adapting(model) as trained:
        before = _measure(model, new_label_ids, text_inputs, seed)
        bar = tqdm(
            total=steps, desc="adaptation", unit="step", leave=False, disable=None if progress else True
        )
        with bar:
            loss = _fine_tune(model, trained.values(), text_inputs, options, steps=steps, seed=seed, bar=bar)
        after = _measure(model, new_label_ids, text_inputs, seed)
    model.config.set_known_labels(vocabulary)
    return AdaptationResult(
        new_labels=tuple(vocabulary.names[label_id] for label_id in new_label_ids),
        known_labels=vocabulary.names,
        parameters=tuple(trained),
        steps=steps,
        loss=loss,
        seconds=time.monotonic() - started,
        known_accuracy=(before[0], after[0]),
        new_accuracy=(before[1], after[1]),
    )


@contextmanager
def _adapting(model: Any) -> Iterator[dict[str, nn.Parameter]]:
    """Let gradients flow to what union fine-tuning trains, in float32, and put everything back afterwards.

    If the block ends with an exception, a keyboard interrupt included, the weights are what they were.
    """
    was_training, dtype = model.training, model.no_object_embedding.dtype
    took_gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.eval().requires_grad_(False)
    _cast(model, torch.float32)
    trained = {name: value for name, value in model.named_parameters() if name.startswith(UNION_PREFIXES)}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    try:
        yield trained
    except BaseException:
        for name, parameter in trained.items():
            parameter.data.copy_(before[name])
        raise
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(took_gradients[name])
            parameter.grad = None
        _cast(model, dtype)
        model.train(was_training)


def _cast(model: Any, dtype: torch.dtype) -> None:
    """The parts that adaptation computes with, in place: half precision is too coarse for its small steps."""
    for part in (model.semantic_projector, model.generator, model.memory):
        part.to(dtype)
    model.no_object_embedding.data = model.no_object_embedding.data.to(dtype)


def _fine_tune(
    model: Any,
    parameters: Iterable[nn.Parameter],
    text_inputs: Mapping[str, Tensor],
    options: UnionOptions,
    *,
    steps: int,
    seed: int,
    bar: Any,
) -> float:
    """Run all steps; the mean loss of the last tenth of them."""
    queries, label_ids = model.memory.queries, model.memory.label_ids
    # Labels of earlier adaptations have no real queries either: they are kept by pseudo queries.
    all_label_ids = torch.arange(int(text_inputs["text_label_ids"].max()) + 1, device=label_ids.device)
    pseudo_label_ids = all_label_ids[~torch.isin(all_label_ids, label_ids)]
    before = FrozenClassifier(model)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    last_losses: deque[float] = deque(maxlen=max(1, steps // 10))
    for _ in range(steps):
        rows = torch.randint(len(queries), (QUERIES_PER_STEP,), generator=generator).to(queries.device)
        loss = compute_union_loss(
            model,
            queries[rows],
            label_ids[rows],
            pseudo_label_ids,
            **text_inputs,
            options=options,
            before=before,
            generator=generator,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last_losses.append(loss.item())
        bar.update()
    return sum(last_losses) / len(last_losses)


@torch.no_grad()
def _measure(
    model: Any, new_label_ids: Tensor, text_inputs: Mapping[str, Tensor], seed: int
) -> tuple[float, float]:
    """Shares of stored queries with a segment, and of pseudo queries of new labels, that are named right."""
    is_matched = model.memory.label_ids != NO_OBJECT
    drawn = new_label_ids.repeat_interleave(PSEUDO_QUERIES_TO_MEASURE)
    generator = torch.Generator().manual_seed(seed)
    texts = draw_text_embeds(**text_inputs, label_ids=drawn, generator=generator)
    pseudo = model.generator(texts, generator=generator)
    shares = []
    for queries, label_ids in (
        (model.memory.queries[is_matched], model.memory.label_ids[is_matched]),
        (pseudo, drawn),
    ):
        logits = model.compute_class_logits(model.semantic_projector(queries), **text_inputs)
        shares.append((logits.argmax(dim=-1) == label_ids).float().mean().item())
    return shares[0], shares[1]


def _extend_vocabulary(
    model: Any, processor: Any, candidate_labels: Sequence[str], stuff_labels: Sequence[str]
) -> Vocabulary:
    """Known labels, then the new ones.

    Raises:
        ValueError: if the checkpoint cannot adapt, or a label cannot be learnt by its name.
    """
    if model.generator is None or model.memory is None or not model.config.known_labels:
        missing = "query generator" if model.generator is None else "stored queries of known labels"
        raise ValueError(
            f"this checkpoint cannot adapt to new labels: it holds no {missing}. Run the stage "
            '"generator" of `zsseg train concat`, which makes both (unless memory_size is 0), or use a '
            "checkpoint that has them"
        )
    new = Vocabulary.from_labels(candidate_labels, stuff_labels=stuff_labels)
    known = Vocabulary.from_labels(model.config.known_labels, stuff_labels=model.config.known_stuff_labels)
    known_texts = {_normalise(text): category.name for category in known for text in category.texts}
    for category in new:
        for text in category.texts:
            if _normalise(text) in known_texts:
                raise ValueError(
                    f"the label {text!r} is already known as {known_texts[_normalise(text)]!r}: leave it "
                    "out; known labels keep what they learnt"
                )
    if processor.tokenizer is not None:
        _check_tokens(processor, [*known, *new])
    return Vocabulary((*known, *new))


def _check_tokens(processor: Any, categories: Sequence[Category]) -> None:
    """Labels that the tokenizer cannot read would all be learnt as one."""
    tokenizer = processor.tokenizer
    text_by_ids: dict[tuple[int, ...], str] = {}
    for category in categories:
        for text in category.texts:
            ids = tuple(tokenizer(text)["input_ids"])
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in _content(tokenizer, ids):
                raise ValueError(
                    f"the tokenizer of this checkpoint has no tokens for a part of {text!r}, so its text "
                    "tower knows nothing of it: use words it was trained on, or another checkpoint"
                )
            if (other := text_by_ids.setdefault(ids, text)) != text:
                raise ValueError(
                    f"the tokenizer reads {other!r} and {text!r} as the same tokens, so no model can "
                    "tell them apart: rename one, or join them as synonyms of one label"
                )


def _content(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Token ids without those that frame every text; CLIP's unknown token is also its end."""
    frame = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return [token_id for token_id in ids if token_id not in frame]


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
