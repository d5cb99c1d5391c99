"""Models that wait on the host: where they are when, and that nothing else of a training changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training import trainer
from lora_service.training.callbacks.training_progress import TrainingProgress
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.memory import offloading
from lora_service.training.memory.estimate import MemorySavings
from lora_service.training.memory.offloading import OffloadedModels
from lora_service.training.trainer import Trainer
from tests.small_base import hashes, picture_zip, small_base
from tests.small_flow import small_flow_base

CPU = torch.device("cpu")


class RecordedModels(OffloadedModels):
    """Models whose place on the host holds no numbers, so that whoever uses them there gets none."""

    moves: list[str]

    def __init__(self, *models: torch.nn.Module, device: torch.device) -> None:
        super().__init__(*models, device=device)
        self.moves, self._values = [], dict[int, Tensor]()

    def _to_host(self, tensor: Tensor) -> Tensor:
        host = torch.full_like(tensor, float("nan") if tensor.is_floating_point() else -(10**6))
        self._values[id(host)] = tensor
        return host

    def _to_device(self, tensor: Tensor) -> Tensor:
        return self._values[id(tensor)].clone()

    def _come(self) -> None:
        self.moves += ["come"] if self.are_waiting else []
        super()._come()

    def _leave(self) -> None:
        self.moves += ["leave"] if self.are_waiting else []
        super()._leave()


def layer() -> torch.nn.Linear:
    return torch.nn.Linear(2, 2).requires_grad_(False)


def test_models_wait_come_where_they_are_used_and_are_as_before() -> None:
    model, x = layer(), torch.ones(1, 2)
    weight, before = model.weight, model.weight.clone()
    models = RecordedModels(model, device=CPU)
    with models.waiting():
        assert model(x).isnan().all()
        with torch.inference_mode(), models.on_device(), models.on_device():
            assert torch.equal(model.weight, before)
        assert model(x).isnan().all()
        with models.on_device():
            assert not model.weight.is_inference()
    assert models.moves == ["come", "leave", "come", "leave", "come"]
    assert model.weight is weight
    assert torch.equal(weight, before)
    with models.on_device():  # nothing waits any more
        assert torch.equal(weight, before)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_models_are_back_however_the_context_ends(error: type[BaseException]) -> None:
    model = layer()
    before = model.weight.clone()
    models = RecordedModels(model, device=CPU)
    with pytest.raises(error), models.waiting(), models.on_device():
        raise error
    assert torch.equal(model.weight, before)
    assert not models.are_waiting


def test_what_filled_the_memory_is_let_go_before_the_models_come_back() -> None:
    """A weak reference to a local of the function that ran out of memory: it is dead when the models come."""
    import weakref

    alive: list[bool] = []

    class Watching(RecordedModels):
        def _come(self) -> None:
            alive.append(activations() is not None)
            super()._come()

    activations: Any = None

    def step() -> None:
        nonlocal activations
        saved = torch.ones(3)
        activations = weakref.ref(saved)
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError), Watching(layer(), device=CPU).waiting():
        step()
    assert alive == [False]


def train(folder: Path, base: DiffusionBase, **inputs: Any) -> bytes:
    folder.mkdir()
    values = {"task": "object", "seed": 1, "resolution": 32, "samples": 2, "learning_rate_text": 0} | inputs
    steps = {"max_train_steps_ti": 2, "max_train_steps_tuning": 4}
    config = TrainConfig.of(steps | values)
    return Trainer(base, folder / "job").run(picture_zip(folder / "p.zip"), config).path.read_bytes()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RecordedModels]:
    """The VAE and the text encoders of the trainings, all of which off-load them."""
    made: list[RecordedModels] = []

    def make(*models: torch.nn.Module, device: torch.device) -> RecordedModels:
        made.append(RecordedModels(*models, device=device))
        return made[-1]

    monkeypatch.setattr(offloading, "OffloadedModels", make)
    monkeypatch.setattr(trainer, "choose_savings", lambda *_: MemorySavings(offloading=True))
    return made


@contextmanager
def unchanged(base: DiffusionBase) -> Iterator[None]:
    before = hashes(base)
    identities = [id(p) for model in (base.vae, *base.components.values()) for p in model.parameters()]
    yield
    assert hashes(base) == before
    assert [id(p) for model in (base.vae, *base.components.values()) for p in model.parameters()] == identities


@pytest.mark.parametrize(
    ("inputs", "vae_comes", "text_comes"),
    [
        ({}, 2, 8),  # samples twice; a block of captions, samples of 3 prompts with two texts each, held-out losses
        ({"max_train_steps_ti": 0, "samples": 0}, 0, 2),
        ({"learning_rate_text": 0.01}, 2, 0),  # what learns is on its device all the time
        ({"preservation": "output", "class_word": "dog"}, 2, 0),
    ],
)
def test_the_file_is_the_same_with_models_that_wait(
    inputs: dict[str, Any],
    vae_comes: int,
    text_comes: int,
    tmp_path: Path,
    recorded: list[RecordedModels],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = small_base()
    with unchanged(base):
        waiting = train(tmp_path / "waiting", base, **inputs)
    vae, text, _ = recorded
    monkeypatch.setattr(trainer, "choose_savings", lambda *_: MemorySavings())
    assert train(tmp_path / "plain", base, **inputs) == waiting
    assert vae.moves.count("leave") >= vae_comes
    assert text.moves.count("leave") >= text_comes
    assert text_comes or text.moves == ["come"]  # back when the latents were cached


def test_t5_waits_while_clip_learns_beside_it(
    tmp_path: Path, recorded: list[RecordedModels], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, inputs = small_flow_base("sd3"), {"learning_rate_text": 0.01, "samples": 0}
    with unchanged(base):
        waiting = train(tmp_path / "waiting", base, **inputs)
    _, clip, t5 = recorded
    monkeypatch.setattr(trainer, "choose_savings", lambda *_: MemorySavings())
    assert train(tmp_path / "plain", base, **inputs) == waiting
    assert clip.moves == ["come"]  # back when the latents were cached
    assert t5.moves.count("leave") >= 2  # for the block of captions of each stage, and held-out losses


@pytest.mark.usefixtures("recorded")
def test_a_job_that_breaks_off_leaves_nothing_on_the_host(tmp_path: Path) -> None:
    base = small_base()

    def stop(progress: TrainingProgress) -> None:
        if progress.stage.startswith("stage 2"):
            raise KeyboardInterrupt

    config = TrainConfig.of({"task": "object", "max_train_steps_ti": 0, "max_train_steps_tuning": 2, "resolution": 32})
    with unchanged(base), pytest.raises(KeyboardInterrupt):
        Trainer(base, tmp_path / "job", on_progress=stop).run(picture_zip(tmp_path / "p.zip"), config)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_card_is_free_while_models_wait() -> None:
    device = torch.device("cuda")
    model = torch.nn.Linear(1024, 1024).requires_grad_(False).to(device)
    before, size = model.weight.clone(), model.weight.numel() * 4
    held = torch.cuda.memory_allocated()
    models = OffloadedModels(model, device=device)
    with models.waiting():
        assert model.weight.device.type == "cpu"
        assert torch.cuda.memory_allocated() <= held - size
        with models.on_device():
            assert torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)
