"""The command; see the package."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import benchmarks.quality
from benchmarks.bases import load_named_base
from benchmarks.quality import methods, report
from benchmarks.quality.measuring import Judges
from benchmarks.quality.runs import Bench, Table
from benchmarks.quality.subjects import PROMPTS_BY_KIND, REPORTED, TUNING, Subject
from lora_service.models.image_judge import EMBEDDED_JUDGE, ImageJudge
from tools.judges.judging import IMAGE_TEXT, TextJudge


def main() -> None:
    parser = argparse.ArgumentParser(
        description=benchmarks.quality.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    named = ", ".join(methods.METHODS)
    parser.add_argument(
        "--methods", nargs="+", default=list(methods.METHODS),
        help=f"of {named}; with further inputs, such as full,lora_rank=4; steps=300+600 are those of the stages",
    )  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=sorted(PROMPTS_BY_KIND), default=sorted(PROMPTS_BY_KIND))
    parser.add_argument("--subjects", type=int, nargs="+", default=list(REPORTED), help="numbers, for each kind")
    parser.add_argument("--tuning", action="store_const", dest="subjects", const=list(TUNING),
                        help="the subjects that settings are chosen with")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, nargs=2, help="of stage 1 and stage 2, for all methods")
    parser.add_argument("--times", type=int, default=8, help="how often each training is measured")
    parser.add_argument("--base", default="embedded", help="a value of BASE_MODEL")
    parser.add_argument("--image-judge", default=EMBEDDED_JUDGE, help="folder or hub id of a CLIP or a DINO")
    parser.add_argument("--text-judge", default=IMAGE_TEXT, help="folder or hub id of a CLIP")
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    parser.add_argument("--report", action="store_true", help="make table, curves and sheets of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Table(arguments.out / "quality.csv")
    if not arguments.report:
        steps = tuple(arguments.steps) if arguments.steps else None
        chosen = [methods.parse(text, steps) for text in arguments.methods]
        base = load_named_base(arguments.base, for_training=True)
        judges = Judges(base, ImageJudge.load(arguments.image_judge), TextJudge.load(arguments.text_judge))
        bench = Bench(base, judges, arguments.out, arguments.times)
        subjects = [Subject(kind, number) for number in arguments.subjects for kind in arguments.kinds]
        done = results.done()
        for method, run in bench.runs(chosen, subjects, arguments.seeds):
            if run not in done:
                rows = bench.train(method, run) if method else bench.floor(run)
                results.add(run, rows)
                print(run.name, {name: rows[-1][name] for name in ("likeness", "drift", "seconds")}, flush=True)
    rows = results.rows()
    print(*report.table(rows), sep="\n")
    if arguments.report:
        report.curves(rows, arguments.out / "curves.png")
        for kind in dict.fromkeys(row["kind"] for row in rows):
            report.sheet(rows, arguments.out, kind, arguments.out / f"{kind}.png")


if __name__ == "__main__":
    main()
