"""`dragsa bench`: the drag loop's speed and memory on this machine."""

from __future__ import annotations

from dataclasses import fields

from dragsa import files
from dragsa.cli.options import Options
from dragsa.cli.outputs import check_outputs, write, write_report
from dragsa.cli.progress import Progress

BASELINE = {"modes": ("baseline",), "only": ("roof", "update", "memory")}
QUICK = {"width": "tiny", "sizes": (128,), "repeats": 2}


def run_bench(given: Options, progress: Progress) -> int:
    from dragsa import speed

    if given.get("baseline") and "modes" in given:
        raise ValueError("--baseline measures one mode: leave out --modes")
    options = {**(BASELINE if given.get("baseline") else {}), **(QUICK if given.get("quick") else {}), **given}
    names = {one.name for one in fields(speed.Settings)}
    settings = speed.Settings(**{key: value for key, value in options.items() if key in names})
    check_outputs(options, set())
    report = speed.run(settings, progress.say if progress.shown else progress.tell)  # a pipe gets lines
    progress.erase()
    tables = speed.markdown(report)
    print(tables, end="")
    if "markdown" in options:
        files.save_bytes(tables.encode(), options["markdown"], options.get("force", False))
    write(options, {"chart": lambda: speed.draw_chart(report)})
    write_report(options, speed.to_json(report))
    return 0
