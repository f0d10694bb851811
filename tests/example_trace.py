"""An edit's report, made up, for tests of what reads it."""

from dataclasses import replace

from dragsa.config import EditConfig
from dragsa.pictures.trace import Trace


def example(**changes: object) -> Trace:
    """A drag of 30 px to the right in a picture of 400×200, two updates; the grid has a cell for 2×4 pixels."""
    given = Trace(
        config=EditConfig.paper(),
        seed=42,
        prompt="a disc",
        target_prompt=None,
        generated=False,
        picture_size=(400, 200),
        working_size=(400, 100),
        grid_size=(200, 50),
        weights="nowhere",
        drags=(((100.0, 100.0), (130.0, 100.0)),),
        losses=(0.5, 0.25),
        handles=(((100.0, 100.0),), ((110.0, 120.0),)),
        tracked=((127.0, 104.0),),
        stop="budget",
        seconds={"drag": 1.5},
    )
    return replace(given, **changes)  # type: ignore[arg-type]
