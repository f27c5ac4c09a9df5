"""What distinguishes one training stage from another: the weights it trains and the loss it computes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsseg.losses.across_processes import gather_rows
from zsseg.vocabulary import Vocabulary

Batch = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class StageContext:
    """What every step of a stage shares: the words it trains on.

    Attributes:
        vocabulary: the K seen labels; targets count within it.
        text_embeds: (T, D) embeddings of their names and synonyms, computed once before training.
        text_label_ids: (T,) int64, the label id of each row.
    """

    vocabulary: Vocabulary
    text_embeds: Tensor
    text_label_ids: Tensor

    def __post_init__(self) -> None:
        if self.text_embeds.ndim != 2 or self.text_label_ids.shape != self.text_embeds.shape[:1]:
            raise ValueError(
                "text_embeds must be (T, D) and text_label_ids (T,), got shapes "
                f"{tuple(self.text_embeds.shape)} and {tuple(self.text_label_ids.shape)}"
            )
        covered = set(self.text_label_ids.tolist())
        if covered != set(range(len(self.vocabulary))):
            raise ValueError(
                f"the text embeddings must cover label ids 0..{len(self.vocabulary) - 1} of the training "
                f"vocabulary, got {sorted(covered)}"
            )

    def to(self, device: torch.device) -> "StageContext":
        """The same context with its tensors on ``device``."""
        return StageContext(self.vocabulary, self.text_embeds.to(device), self.text_label_ids.to(device))


class Stage(ABC):
    """One stage of a recipe.

    Attributes:
        name: names the stage's folder and its records.
        backbone_prefixes: parameter-name prefixes that take the backbone's learning rate.
        has_unused_parameters: whether a step may leave trainable weights without a gradient
            (distributed training then has to look for them).
        needs_whole_batch: whether the loss compares examples in ways that do not split: every process of a
            distributed run then gets the batches of all, tensors that are joined along their first dimension,
            and draws the same random numbers. For stages whose data are light and whose steps are short.
    """

    name: ClassVar[str]
    backbone_prefixes: tuple[str, ...] = ()
    has_unused_parameters: ClassVar[bool] = False
    needs_whole_batch: ClassVar[bool] = False

    @abstractmethod
    def is_trainable(self, parameter_name: str) -> bool:
        """Whether this stage trains the parameter of this name."""

    @abstractmethod
    def compute_loss(self, model: Any, batch: Batch, context: Any) -> dict[str, Tensor]:
        """Losses of one batch, each a scalar; "loss" is the one that is minimised, the others are logged.

        Args:
            model: what is trained.
            batch: from the recipe's collation.
            context: a :class:`StageContext`, or None in a recipe that has none.
        """

    def constrain(self, model: Any) -> None:  # noqa: B027 - most weights have no bounds
        """Bring weights back into their bounds, after every step of the optimizer."""

    def get_state(self) -> dict[str, Tensor]:
        """What the stage carries from step to step beside the model, saved with every checkpoint."""
        return {}

    def set_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - most stages carry nothing
        """Continue from a state of :meth:`get_state`."""


class StageModule(nn.Module):
    """Model and stage as one module, so that autocast and distributed wrappers see a single forward."""

    def __init__(self, model: PreTrainedModel, stage: Stage, context: StageContext | None) -> None:
        super().__init__()
        self.model = model
        self.stage = stage
        self.context = context

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch; see :meth:`Stage.compute_loss`."""
        if self.stage.needs_whole_batch:
            batch = {name: gather_rows(values) for name, values in batch.items()}
        losses = self.stage.compute_loss(self.model, batch, self.context)
        if "loss" not in losses:
            raise ValueError(
                f"stage {self.stage.name!r} must return a 'loss', got only {sorted(losses)}; "
                "add the sum that training minimises under this key"
            )
        return losses
