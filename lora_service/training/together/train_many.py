"""Several trainings on one base, as one batch after the other of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lora_service.errors import SettingError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.optimization.captured_gradients import PassRecorder
from lora_service.training.together.joint_gradients import JobGradients, JointGradients
from lora_service.training.together.shared_weights import sharing_weights
from lora_service.training.trainer import Trainer, TrainResult


@dataclass(frozen=True)
class TrainingJob:
    """One of several trainings.

    Attributes:
        trainer: makes its trainer on a base of its own, which shares the weights of all.
        source, config, class_data: as of :meth:`Trainer.run`.
    """

    trainer: Callable[[DiffusionBase], Trainer]
    source: Path | Sequence[Path]
    config: TrainConfig
    class_data: Path | None = None

    def run(self, base: DiffusionBase, together: JointGradients, number: int) -> TrainResult:
        """Train on a base that shares the weights of ``base``, as job ``number`` of ``together``."""
        own = sharing_weights(base)
        trainer = self.trainer(own)
        trainer.gradients = JobGradients(together, number, own)
        return trainer.run(self.source, self.config, class_data=self.class_data)


def train_many(
    base: DiffusionBase,
    jobs: Sequence[TrainingJob],
    log: Callable[[str], None] = lambda line: None,
    recorder: PassRecorder | None = None,
) -> list[TrainResult | Exception]:
    """Run ``jobs`` together; each learns what it would learn alone, but for the last bits.

    Each has its own pictures, LoRA, rates, schedule, samples, checkpoints and end. Their steps share forward and
    backward passes where pictures are of one size and adapters of one shape, which takes far less time than one job
    after the other where a step costs its calls, or a card is not filled by one picture.

    Args:
        log: called with lines that are of all jobs.
        recorder: records the passes; None: they run eagerly.

    Returns:
        Of each job its result, or what it raised.

    Raises:
        SettingError: blocks of the base wait on the host, where one pass after the other needs them.
    """
    if base.waiting_blocks is not None:
        raise SettingError("OFFLOAD_BLOCKS", True, "0 for trainings that run together")
    together = JointGradients(base, log, recorder)
    return together.run([partial(job.run, base, together, number) for number, job in enumerate(jobs)])
