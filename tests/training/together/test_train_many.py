"""Trainings that run together: each learns what it would learn alone."""

from __future__ import annotations

import _thread
import gc
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.errors import InputError, SettingError
from lora_service.lora.files import read_lora
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import TextEncoders
from lora_service.settings import Settings
from lora_service.training.adapters.lora_layers import LoraFactors
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.nested_tensors import tensors_of
from lora_service.training.optimization.captured_gradients import PassRecorder
from lora_service.training.together import joint_gradients
from lora_service.training.together.joint_base import SideBySideLora, joint_base
from lora_service.training.together.joint_gradients import JointGradients
from lora_service.training.together.shared_weights import sharing_weights
from lora_service.training.together.train_many import TrainingJob, train_many
from lora_service.training.trainer import Trainer, TrainResult
from tests.dataset.picture_makers import png, zipped
from tests.errors import raises
from tests.small_base import hashes, small_base
from tests.small_flow import small_flow_base
from tests.training.pass_recorder import Recorder

STEPS = {"task": "object", "max_train_steps_ti": 3, "max_train_steps_tuning": 4, "resolution": 32, "samples": 0}
JOBS: tuple[dict[str, Any], ...] = (
    {"seed": 1},
    {"seed": 2, "max_train_steps_tuning": 7, "learning_rate_unet": 3e-4, "lora_alpha": 4},
    {"seed": 3, "placeholder_tokens": "<a>", "class_word": "dog", "max_grad_norm": 0.1},
)
"""Jobs that differ in all that jobs may differ in, and yet share their passes."""


def upload(folder: Path, number: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}.zip"
    path.write_bytes(zipped({f"{name}.png": png(10 * number + i, (32, 32)) for i, name in enumerate("abc")}))
    return path


def job(folder: Path, number: int, inputs: dict[str, Any], log: list[str] | None = None) -> TrainingJob:
    lines = [] if log is None else log
    settings = Settings(class_image_cache=folder / "cache")

    def trainer(base: DiffusionBase) -> Trainer:
        return Trainer(base, folder / f"job {number}", settings=settings, log=lines.append)

    return TrainingJob(trainer, upload(folder, number), TrainConfig.of(STEPS | inputs))


def alone(base: DiffusionBase, folder: Path, inputs: Sequence[dict[str, Any]]) -> list[TrainResult]:
    jobs = [job(folder, number, each) for number, each in enumerate(inputs)]
    return [each.trainer(base).run(each.source, each.config) for each in jobs]


def together(
    base: DiffusionBase,
    folder: Path,
    inputs: Sequence[dict[str, Any]],
    log: list[str] | None = None,
    recorder: PassRecorder | None = None,
) -> tuple[list[TrainResult | Exception], list[int]]:
    """Train together; returns the results, and how many jobs shared each pass."""
    gradients = JointGradients(base, [].append if log is None else log.append, recorder)
    jobs = [job(folder, number, each) for number, each in enumerate(inputs)]
    results = gradients.run([partial(each.run, base, gradients, number) for number, each in enumerate(jobs)])
    return results, gradients.passes


def assert_learned_the_same(result: TrainResult | Exception, expected: TrainResult) -> None:
    assert isinstance(result, TrainResult), result
    assert list(result.stages) == list(expected.stages)
    for name, stage in expected.stages.items():
        assert result.stages[name].steps == stage.steps
        torch.testing.assert_close(
            torch.tensor(result.stages[name].losses), torch.tensor(stage.losses), rtol=1e-3, atol=1e-4
        )
    found, wanted = read_lora(result.path), read_lora(expected.path)
    assert found.metadata["lora_service.report"].count("step") == wanted.metadata["lora_service.report"].count("step")
    for component, layers in wanted.layers.items():
        for path, layer in layers.items():
            other = found.layers[component][path]
            for suffix, tensor in layer.tensors.items():
                torch.testing.assert_close(other.tensors[suffix], tensor, rtol=1e-3, atol=2e-5)
    for token, rows in wanted.embeddings.items():
        for encoder, row in rows.items():
            torch.testing.assert_close(found.embeddings[token][encoder], row, rtol=1e-3, atol=1e-4)


def assert_learn_what_they_learn_alone(
    base: DiffusionBase, folder: Path, inputs: Sequence[dict[str, Any]]
) -> list[int]:
    """Train alone and together; returns how many jobs shared each pass."""
    expected = alone(base, folder / "alone", inputs)
    results, passes = together(base, folder / "together", inputs)
    for result, one in zip(results, expected, strict=True):
        assert_learned_the_same(result, one)
    return passes


def in_double_precision(base: DiffusionBase) -> DiffusionBase:
    """AdamW makes steps of one length of the gradients' rounding errors, where there is nothing else."""
    for model in base.components.values():
        model.double()
    return base


def test_each_job_learns_what_it_learns_alone_with_its_own_pictures_rates_and_end(tmp_path: Path) -> None:
    base = in_double_precision(small_base())
    before = hashes(base)
    expected = alone(base, tmp_path / "alone", JOBS)
    results, passes = together(base, tmp_path / "together", JOBS)
    for result, one in zip(results, expected, strict=True):
        assert_learned_the_same(result, one)
    assert hashes(base) == before
    assert passes == [3] * 7 + [1] * 3
    learned = [result.path.read_bytes() for result in results if isinstance(result, TrainResult)]
    assert len(set(learned)) == 3


def test_passes_can_be_recorded_too_and_are_made_ready_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, recorder, made = in_double_precision(small_base()), Recorder(), list[int]()

    def counted(base: DiffusionBase, jobs: Sequence[DiffusionBase], text: TextEncoders) -> DiffusionBase:
        made.append(len(jobs))
        return joint_base(base, jobs, text)

    monkeypatch.setattr(joint_gradients, "joint_base", counted)
    expected, _ = together(base, tmp_path / "eager", JOBS)
    assert made == [3, 3], "one of each stage"
    results, passes = together(base, tmp_path / "recorded", JOBS, recorder=PassRecorder(recorder.record))
    assert [each.path.read_bytes() for each in results] == [each.path.read_bytes() for each in expected]  # type: ignore[union-attr]
    assert (recorder.recorded, recorder.replayed) == (3, 1 + 2 + 1), "stages 1 and 2 of all, and the end of the longest"
    assert len(passes) == 10


@pytest.mark.parametrize("make", [lambda: small_base(family="sdxl"), lambda: small_flow_base("zimage")])
def test_other_families_too(tmp_path: Path, make: Callable[[], DiffusionBase]) -> None:
    base = in_double_precision(make())
    inputs = [{"seed": 1}, {"seed": 2, "max_train_steps_ti": 2}]
    passes = assert_learn_what_they_learn_alone(base, tmp_path, inputs)
    assert 2 in passes


def test_convolutions_larger_batches_and_samples_are_shared_too(tmp_path: Path) -> None:
    base = in_double_precision(small_base())
    more = {"lora_targets": "kohya+conv", "train_batch_size": 2, "gradient_accumulation_steps": 2, "samples": 2}
    inputs = [{"seed": seed, "continue_inversion": False, **more} for seed in (1, 2)]
    passes = assert_learn_what_they_learn_alone(base, tmp_path, inputs)
    assert set(passes) == {2}


def test_jobs_that_cannot_share_a_pass_run_beside_the_others(tmp_path: Path) -> None:
    base = in_double_precision(small_base())
    inputs = [
        {"seed": 1, "max_train_steps_ti": 0},
        {"seed": 2, "max_train_steps_ti": 0},
        {"seed": 3, "max_train_steps_ti": 0, "lora_kind": "dora"},
        {"seed": 4, "max_train_steps_ti": 0, "lora_rank": 3},
        {"seed": 5, "max_train_steps_ti": 0, "preservation": "output", "class_word": "dog"},
    ]
    passes = assert_learn_what_they_learn_alone(base, tmp_path, inputs)
    assert sorted(passes) == [1] * 12 + [2] * 4


def test_a_job_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    base = small_base()
    inputs = [{"seed": 1}, {"seed": 2, "resolution": 33}, {"seed": 3, "learning_rate_unet": 1.0, "max_grad_norm": 0}]
    results, passes = together(base, tmp_path, inputs)
    assert isinstance(results[0], TrainResult)
    assert isinstance(results[1], InputError)
    assert "resolution" in str(results[1])
    assert 2 in passes


def test_layers_whose_rows_are_not_as_many_for_each_picture_have_passes_of_their_own(tmp_path: Path) -> None:
    base = in_double_precision(small_flow_base("zimage"))
    more = {"max_train_steps_ti": 0, "lora_targets": "all-linear"}
    inputs: list[dict[str, Any]] = [{"seed": seed, **more} for seed in (1, 2)]
    passes = assert_learn_what_they_learn_alone(base, tmp_path, inputs)
    assert set(passes) == {1}


def test_models_that_look_at_a_layers_weight_find_it(tmp_path: Path) -> None:
    base = small_flow_base("zimage")
    linear = base.backbone.get_submodule("t_embedder.mlp.0")
    factors = LoraFactors(torch.nn.Parameter(torch.ones(1, 1)), torch.nn.Parameter(torch.ones(1, 1)), 1.0)
    beside = SideBySideLora(linear, [factors])
    assert beside.weight is linear.weight
    assert beside.bias is linear.bias


def test_whatever_goes_wrong_between_the_jobs_ends_them_and_none_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapter_shape(base: DiffusionBase) -> None:
        raise ValueError("no shape")

    monkeypatch.setattr(joint_gradients, "adapter_shape", adapter_shape)
    results, _ = together(small_base(), tmp_path, [{"seed": 1}, {"seed": 2}])
    assert [repr(result) for result in results] == ["ValueError('no shape')"] * 2


def test_a_failed_jobs_memory_is_free_while_the_others_go_on() -> None:
    held: list[weakref.ref[Any]] = []

    def fail() -> None:
        tensor = torch.zeros(1)
        held.append(weakref.ref(tensor))
        try:
            raise torch.OutOfMemoryError("out of memory")
        except torch.OutOfMemoryError as error:
            raise InputError("resolution", 512, "less") from error

    def look() -> bool:
        return held[0]() is None

    jobs: list[Callable[[], Any]] = [fail, look]
    assert JointGradients(small_base()).run(jobs)[1] is True


def test_losses_outlive_the_pass_of_the_next_group(tmp_path: Path) -> None:
    """The memory of recorded passes is shared: one may overwrite what another has returned."""
    inputs = [{"seed": 1}, {"seed": 2, "lora_rank": 3}]
    returned: list[torch.Tensor] = []

    def record(passes: Callable[[], Any]) -> Callable[[], Any]:
        def replay() -> Any:
            for tensor in returned:
                tensor.fill_(7.0)
            losses = passes()
            returned.extend(tensors_of(losses))
            return losses

        return replay

    base = in_double_precision(small_base())
    expected, _ = together(base, tmp_path / "eager", inputs)
    results, _ = together(base, tmp_path / "recorded", inputs, recorder=PassRecorder(record))
    for result, one in zip(results, expected, strict=True):
        assert isinstance(one, TrainResult)
        assert_learned_the_same(result, one)


def test_passes_that_do_not_fit_the_memory_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = in_double_precision(small_base())
    expected = alone(base, tmp_path / "alone", JOBS)
    log: list[str] = []

    def denoise(self: DiffusionBase, noisy: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(noisy) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return plain(self, noisy, *args)

    plain = DiffusionBase.denoise
    monkeypatch.setattr(DiffusionBase, "denoise", denoise)
    results, passes = together(base, tmp_path / "together", JOBS, log)
    for result, one in zip(results, expected, strict=True):
        assert_learned_the_same(result, one)
    assert max(passes) == 1
    assert log == ["3 trainings do not fit the memory at once: at most 1 do so from now on"]


def test_an_interruption_ends_all_and_is_raised(tmp_path: Path) -> None:
    base = small_base()
    before = hashes(base)
    ended: list[int] = []
    gradients = JointGradients(base)

    def run(number: int) -> None:
        try:
            each = job(tmp_path, number, {"seed": number, "max_train_steps_ti": 20000})
            each.run(base, gradients, number)
        finally:
            ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        gradients.run([partial(run, 0), partial(run, 1), _thread.interrupt_main])
    assert sorted(ended) == [0, 1]
    assert hashes(base) == before


def test_a_job_does_not_begin_after_an_interruption() -> None:
    begun: list[int] = []

    def interrupt() -> None:
        time.sleep(0.3)  # until the other threads wait for their turn
        _thread.interrupt_main()
        time.sleep(0.5)

    with pytest.raises(KeyboardInterrupt):
        JointGradients(small_base()).run([interrupt, partial(begun.append, 1)])
    assert not begun


def test_few_of_the_sets_of_jobs_that_ever_meet_are_kept_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_gradients, "MOST_JOINT_BASES", 1)
    alive: list[weakref.ref[Any]] = []

    def counted(base: DiffusionBase, jobs: Sequence[DiffusionBase], text: TextEncoders) -> DiffusionBase:
        made = joint_base(base, jobs, text)
        alive.append(weakref.ref(made.backbone))
        return made

    most: list[int] = []

    def noted(self: JointGradients, group: Any) -> DiffusionBase:
        chosen = plain(self, group)
        gc.collect()
        most.append(sum(each() is not None for each in alive))
        return chosen

    plain = JointGradients._joint_base
    monkeypatch.setattr(joint_gradients, "joint_base", counted)
    monkeypatch.setattr(JointGradients, "_joint_base", noted)
    inputs = [{"seed": seed, "max_train_steps_ti": 0, "lora_rank": rank} for seed in (1, 2) for rank in (2, 3)]
    _, passes = together(small_base(), tmp_path, inputs)
    assert set(passes) == {2}
    assert len(alive) == len(passes), "made anew each time, as two sets take turns"
    assert max(most) == 1


def test_a_base_whose_blocks_wait_is_refused(tmp_path: Path) -> None:
    base = small_base()
    base.waiting_blocks = object()  # type: ignore[assignment]
    with raises(SettingError, field="OFFLOAD_BLOCKS"):
        train_many(base, [job(tmp_path, 0, {})])


def test_a_base_on_shared_weights_is_changed_by_nobody_else() -> None:
    base = small_base()
    own = sharing_weights(base)
    assert own.backbone.conv_in.weight.data_ptr() == base.backbone.conv_in.weight.data_ptr()
    embedding = own.text.encoders["text_encoder"].get_input_embeddings()
    embedding.weight.data = torch.zeros(2, 2)
    own.backbone.conv_in = torch.nn.Identity()
    assert base.text.encoders["text_encoder"].get_input_embeddings().weight.shape != (2, 2)
    assert isinstance(base.backbone.conv_in, torch.nn.Conv2d)
