"""Trainings that go on from a LoRA, of ours or of another tool."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.errors import InputError, LoraFileError, WrongBaseError
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.lycoris import Factor, LokrLayer
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.optimization.loop import StageRun, TrainingCallback
from lora_service.training.runs.run_folder import RunFolder
from lora_service.training.runs.run_record import RunRecord
from lora_service.training.runs.starting_lora import StartingLora
from lora_service.training.runs.state_file import read_state, write_state
from lora_service.training.trainer import Trainer, TrainResult
from tests.errors import raises
from tests.small_base import picture_zip, small_base

STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 2, "max_train_steps_tuning": 2, "resolution": 32}
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PROJ_IN = "down_blocks.0.attentions.0.proj_in"
CONV = "down_blocks.0.resnets.0.conv1"


@pytest.fixture
def base() -> DiffusionBase:
    return small_base()


def train(base: DiffusionBase, folder: Path, start: LoraWeights | None = None, **inputs: Any) -> TrainResult:
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    lora = StartingLora.of(start) if start else None
    job = Trainer(base, folder / "run", start=lora, log=lines.append)
    result = job.run(picture_zip(folder / "p.zip"), TrainConfig.of(STEPS | inputs))
    (folder / "log").write_text("\n".join(lines))
    return result


def random_layer(base: DiffusionBase, path: str, rank: int, alpha: float) -> LoraLayer:
    weight = base.unet.get_submodule(path).weight
    out, inputs, *kernel = weight.shape
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn(rank, inputs, *kernel, generator=generator) * 0.1
    up = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.1
    return LoraLayer(down, up, alpha)


def output(base: DiffusionBase) -> torch.Tensor:
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with torch.no_grad():
        return base.denoise(x, t, base.text.encode(base.text.tokenize(["a dog"]))).clone()


def test_the_first_step_sees_the_lora_as_it_draws(base: DiffusionBase, tmp_path: Path) -> None:
    layers = {
        TO_Q: random_layer(base, TO_Q, 3, 1.5),
        PROJ_IN: random_layer(base, PROJ_IN, 2, 2.0),
        CONV: random_layer(base, CONV, 4, 1.0),
    }
    weights = LoraWeights({"unet": layers})
    bare = output(base)
    patcher = Patcher(base.components, base.tokenizers)
    patcher.apply([(weights, Scale(1.0, 1.0))])
    expected = output(base)
    patcher.restore()
    seen: list[torch.Tensor] = []

    class Watcher(TrainingCallback):
        def on_stage_start(self, stage: StageRun) -> None:
            seen.append(output(base))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_callbacks", lambda self, *arguments: [Watcher()])
        result = train(base, tmp_path, weights, max_train_steps_ti=0)
    assert (expected - bare).abs().max() > 1e-3
    torch.testing.assert_close(seen[0], expected, atol=2e-5, rtol=1e-4)
    learned = read_lora(result.path)
    assert {path: (layer.rank, layer.alpha) for path, layer in learned.layers["unet"].items() if path in layers} == {
        TO_Q: (3, 1.5),
        PROJ_IN: (2, 2.0),
        CONV: (4, 1.0),
    }
    assert len(learned.layers["unet"]) == 6 * 9 + 2  # the targets, and two layers of the file that are none
    assert torch.equal(output(base), bare)


def test_rates_of_0_give_back_what_came_in(base: DiffusionBase, tmp_path: Path) -> None:
    first = read_lora(train(base, tmp_path / "a", trigger="qwx").path)
    second = read_lora(train(base, tmp_path / "b", first, max_train_steps_ti=0, learning_rate_text=0).path)
    layers = second.layers["text_encoder"]
    assert set(layers) == set(first.layers["text_encoder"])
    for path, layer in layers.items():
        for name, tensor in layer.tensors.items():
            assert torch.equal(tensor, first.layers["text_encoder"][path].tensors[name])
    assert second.trigger == "qwx"
    assert second.tokens == ("<s1>", "<s2>")
    assert any(
        not torch.equal(layer.tensors["lora_up.weight"], first.layers["unet"][path].tensors["lora_up.weight"])
        for path, layer in second.layers["unet"].items()
    )


def test_tokens_go_on_by_their_names(base: DiffusionBase, tmp_path: Path) -> None:
    first = read_lora(train(base, tmp_path / "a", placeholder_tokens="<dog>|<park>|<sky>").path)
    kept = read_lora(train(base, tmp_path / "b", first, max_train_steps_ti=0).path)
    assert kept.tokens == ("<dog>", "<park>", "<sky>")
    for name, rows in kept.embeddings.items():
        assert torch.equal(rows["text_encoder"], first.embeddings[name]["text_encoder"])
    learned = read_lora(train(base, tmp_path / "c", first, placeholder_tokens="<x>", lora_rank=2).path)
    assert learned.tokens == first.tokens
    assert not torch.equal(
        learned.embeddings["<dog>"]["text_encoder"].float(), first.embeddings["<dog>"]["text_encoder"].float()
    )
    log = (tmp_path / "c" / "log").read_text()
    assert "warning: lora_rank: the layers of start_from keep theirs" in log
    assert "warning: placeholder_tokens no effect" in log


def test_an_embedding_gets_names_in_brackets(base: DiffusionBase, tmp_path: Path) -> None:
    rows = {name: {"text_encoder": torch.randn(base.text.width) * 0.1} for name in ("mydog", "mydog_1")}
    result = train(base, tmp_path, LoraWeights({}, rows), max_train_steps_tuning=0)
    assert read_lora(result.path).tokens == ("<s1>", "<s2>")


def test_the_header_knows_and_a_run_goes_on_with_its_copy(base: DiffusionBase, tmp_path: Path) -> None:
    start = read_lora(train(base, tmp_path / "a").path)
    result = train(base, tmp_path / "b", start)
    run = RunFolder(tmp_path / "b" / "run")
    record = RunRecord.read(run)
    copy = StartingLora.from_state(read_state(run.start))
    assert copy.digest == StartingLora.of(start).digest == record.identity["start_from"]
    assert copy.digest in read_lora(result.path).metadata["lora_service.report"]
    again = Trainer(base, run.path, start=copy, resumed=record).run(record.source(run), record.config())
    assert again.path.read_bytes() == result.path.read_bytes()
    write_state(run.start, {"layers": 3})
    with raises(InputError, field="resume", code="unreadable_run"):
        StartingLora.read(run)
    other = replace(copy, alpha=copy.alpha + 1)
    with raises(InputError, field="resume", code="start_from_changed"):
        Trainer(base, run.path, start=other, resumed=record).run(record.source(run), record.config())


def test_what_cannot_go_on_is_refused_by_name(base: DiffusionBase, tmp_path: Path) -> None:
    lokr = LokrLayer(Factor(torch.ones(2, 2)), Factor(torch.ones(4, 4)), 1.0)
    with raises(LoraFileError, code="cannot_go_on") as caught:
        StartingLora.of(LoraWeights({"unet": {TO_Q: lokr}}))
    assert TO_Q in str(caught.value)
    assert "LoKr" in str(caught.value)
    tucker = replace(random_layer(base, CONV, 2, 1.0), mid=torch.ones(2, 2, 3, 3))
    with raises(LoraFileError, code="cannot_go_on"):
        StartingLora.of(LoraWeights({"unet": {CONV: tucker}}))
    good = random_layer(base, TO_Q, 2, 1.0)
    for path, layer in (
        ("down_blocks.9.to_q", good),
        (TO_Q, replace(good, down=torch.ones(2, 7))),
        ("conv_norm_out", good),
    ):
        with pytest.raises((WrongBaseError, LoraFileError)) as error:
            train(base, tmp_path, LoraWeights({"unet": {path: layer}}))
        assert path in str(error.value)
    with pytest.raises(WrongBaseError):
        train(base, tmp_path, LoraWeights({}, {"<a>": {"text_encoder": torch.ones(3)}}))


@pytest.mark.parametrize("file_format", ["kohya", "diffusers", "cloneofsimo"])
def test_every_format_that_is_read_goes_on(base: DiffusionBase, tmp_path: Path, file_format: str) -> None:
    start = read_lora(train(base, tmp_path / "a").path)
    write_lora(tmp_path / "x.safetensors", start, format=file_format)
    result = train(base, tmp_path / "b", read_lora(tmp_path / "x.safetensors"), max_train_steps_ti=0)
    assert len(read_lora(result.path).layers["unet"]) == 6 * 9
