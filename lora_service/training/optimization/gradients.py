"""The gradients of a micro-batch: computed one operation after the other, or as another :class:`Gradients` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lora_service.training.losses.batch_loss import BatchLoss

if TYPE_CHECKING:
    from lora_service.training.optimization.loop import StageRun


class Gradients(Protocol):
    """A way to compute the gradients of a micro-batch."""

    @property
    def stay_in_place(self) -> bool:
        """True if the gradients' tensors are used again from step to step, and set to 0 in between."""

    def add(self, stage: StageRun, batch: Any) -> BatchLoss:
        """Add the gradients of ``stage.scaled(stage.spec.compute_loss(batch))`` to the parameters'.

        Args:
            batch: what ``stage.spec.sample`` returned.

        Returns:
            The loss, without gradients; it may be overwritten at the next call.
        """


class EagerGradients:
    """Forward and backward pass, one operation after the other: what all others must equal."""

    stay_in_place = False

    def add(self, stage: StageRun, batch: Any) -> BatchLoss:
        """Run both passes."""
        with stage.autocast():
            batch_loss = stage.spec.compute_loss(batch)
        stage.scaled(batch_loss).backward()
        return batch_loss.detach()
