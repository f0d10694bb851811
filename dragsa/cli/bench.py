"""`dragsa bench`: the drag loop's speed and memory on this machine."""

from __future__ import annotations

from dataclasses import fields

from dragsa import files
from dragsa.cli.edit import check_outputs
from dragsa.cli.options import Options
from dragsa.cli.progress import Progress

BASELINE = {"modes": ("baseline",), "only": ("roof", "update", "memory")}
QUICK = {"width": "tiny", "sizes": (128,), "repeats": 2}


def run_bench(given: Options, progress: Progress) -> int:
    from dragsa import pictures, speed

    over = {**(BASELINE if given.get("baseline") else {}), **(QUICK if given.get("quick") else {})}
    options = {**over, **given}
    if given.get("baseline") and "modes" in given:
        raise ValueError("--baseline measures one mode: leave out --modes")
    names = {one.name for one in fields(speed.Settings)}
    settings = speed.Settings(**{key: value for key, value in options.items() if key in names})
    check_outputs(options, set())
    report = speed.run(settings, progress.say)
    progress.erase()
    tables, force = speed.markdown(report), options.get("force", False)
    print(tables, end="")
    if "markdown" in options:
        files.save_bytes(tables.encode(), options["markdown"], force)
    if "chart" in options:
        pictures.save_picture(speed.draw_chart(report), options["chart"], force)
    if "json" in options:
        files.save_json(speed.to_json(report), options["json"], force)
    return 0
