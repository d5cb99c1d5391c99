"""What the rows say: a table in Markdown, curves, and sheets of the pictures."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.quality.runs import FLOOR, Run
from benchmarks.quality.subjects import Subject
from lora_service.demo.evaluation import UNRELATED_PROMPTS
from lora_service.generation.image_grid import ImageRow, draw_grid

Rows = Sequence[dict[str, Any]]
_COLUMNS = {
    "likeness": "likeness", "half_likeness": "… at scale 0.5", "trigger_likeness": "… by the trigger",
    "following": "following", "drift": "drift", "pixel_drift": "drift of pixels", "class_drift": "drift of the class",
    "pictures": "pictures", "seconds": "seconds", "kilobytes": "kB",
}  # fmt: skip
_DECIMALS = {"pictures": 0, "seconds": 0, "kilobytes": 0}


def table(rows: Rows) -> Iterator[str]:
    """Yield lines of Markdown: by kind and method the means over subjects and seeds, with floor and ceiling."""
    yield f"| kind | method | trainings | {' | '.join(_COLUMNS.values())} |"
    yield "|---" * (len(_COLUMNS) + 3) + "|"
    final = [row for row in rows if row["is_final"]]
    kinds = list(dict.fromkeys(row["kind"] for row in final))
    for kind in kinds:
        of_kind = [row for row in final if row["kind"] == kind]
        base = [row for row in of_kind if row["method"] == FLOOR]
        if base:
            floor, ceiling = (_mean(base, name) for name in ("likeness", "trigger_likeness"))
            yield f"| {kind} | the base / ceiling | | {floor:.3f} / {ceiling:.3f} |" + " |" * (len(_COLUMNS) - 1)
        for method in _methods(of_kind):
            yield _line(kind, method, [row for row in of_kind if row["method"] == method])
    if len(kinds) > 1:
        for method in _methods(final):
            yield _line("all", method, [row for row in final if row["method"] == method])


def _line(kind: str, method: str, rows: Rows) -> str:
    values = [f"{_mean(rows, name):.{_DECIMALS.get(name, 3)}f}" for name in _COLUMNS]
    return f"| {kind} | {method} | {len(rows)} | {' | '.join(values)} |"


def _methods(rows: Rows) -> list[str]:
    return [name for name in dict.fromkeys(row["method"] for row in rows) if name != FLOOR]


def _mean(rows: Iterable[dict[str, Any]], name: str) -> float:
    values = [row[name] for row in rows if row[name] != ""]
    return statistics.mean(values) if values else float("nan")


def curves(rows: Rows, path: Path) -> None:
    """Draw likeness against the processor's seconds and against drift, a panel for each kind and a line for a method.

    A point is the mean over subjects and seeds at one share of the training.
    """
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    colors = {method: f"C{number}" for number, method in enumerate(_methods(rows))}
    figure = Figure(figsize=(4 * len(kinds), 7), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False, sharey="col")
    for column, kind in enumerate(kinds):
        of_kind = [row for row in rows if row["kind"] == kind]
        base = [row for row in of_kind if row["method"] == FLOOR]
        for line, (name, label) in enumerate((("seconds", "processor seconds"), ("drift", "drift of other prompts"))):
            panel = panels[line][column]
            for method in _methods(of_kind):
                points = list(_points([row for row in of_kind if row["method"] == method], name))
                panel.plot(*zip(*points, strict=True), color=colors[method], marker="o", markersize=3, label=method)
            if base:
                panel.axhline(_mean(base, "likeness"), color="gray", linestyle=":", label="the base")
                panel.axhline(_mean(base, "trigger_likeness"), color="gray", linestyle="--", label="ceiling")
            panel.set(xlabel=label, ylabel="likeness", title=kind if line == 0 else None)
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _points(rows: Rows, x: str) -> Iterator[tuple[float, float]]:
    """Yield the means of the first measurement of every training, of the second …"""
    trainings: dict[Run, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        trainings[Run(row["method"], row["kind"], row["subject"], row["seed"])].append(row)
    for at_once in zip(*trainings.values(), strict=False):
        yield _mean(at_once, x), _mean(at_once, "likeness")


def sheet(rows: Rows, folder: Path, kind: str, path: Path) -> None:
    """Draw what every method drew of one subject of a kind, below the subject's own pictures.

    It is the first one of which all pictures are there; rows of an earlier benchmark may have none.
    """
    final = [row for row in rows if row["kind"] == kind and row["is_final"] and row["method"] != FLOOR]
    trainings: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
    for row in final:
        trainings[row["subject"], row["seed"]].append(row)
    shown = next(each for each in trainings.values() if all(_strip(folder, row).exists() for row in each))
    subject = Subject(kind, int(shown[0]["subject"]))
    captions = [prompt.replace("{}", "…") for prompt in subject.prompts.of_lora("…")] + list(UNRELATED_PROMPTS)
    own = subject.references(64)[: len(captions)]
    grid = [ImageRow("pictures of it that were not trained on", own)]
    for row in shown:
        strip = Image.open(_strip(folder, row))
        side = strip.height
        pictures = [strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)]
        label = row["method"].replace("=", " ").replace(",", ", ").replace("_", " ")  # which can be wrapped
        grid.append(ImageRow(f"{label}: {row['likeness']:.2f}", pictures))
    grid[-1] = ImageRow(grid[-1].label, grid[-1].images, captions)
    draw_grid(grid, []).save(path)


def _strip(folder: Path, row: dict[str, Any]) -> Path:
    """Return the file with the pictures of a training."""
    return folder / f"{Run(row['method'], row['kind'], int(row['subject']), int(row['seed'])).name}.png"
