"""Show results in a notebook: a picture with its path, and curves, as HTML and SVG without a script."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from dragsa.pictures.images import Point, Size, picture_bytes, scaled, to_rgb

SHOWN = 320  # pixels of a picture's longer side on the page
HALO, PATH, START, TARGET, GREY = "white", "#f020c0", "#e8222e", "#2060ff", "#9aa3b2"


def picture_png(of: Any) -> bytes:
    """Return the PNG file of the picture that a result or a source holds."""
    return picture_bytes(to_rgb(of.image if hasattr(of, "image") else of.picture), "picture.png")


def result_html(result: Any) -> str:
    """Return an edit's source with the drags on it, its result, and the trace's curves."""
    trace = result.trace
    before = _framed(result.source, "source", _marks(trace, trace.picture_size))
    after = _framed(result.image, "result", "")
    return f'<div style="display:flex;gap:16px;flex-wrap:wrap">{before}{after}{trace_html(trace, path=False)}</div>'


def source_html(source: Any) -> str:
    """Return a source's picture, and what it was made with."""
    kind = "drawn from noise" if source.generated else "inverted"
    width, height = source.working_size
    said = f"{kind} at {width}×{height}, {source.schedule.steps} steps, seed {source.seed}"
    return _framed(source.picture, f"{source.prompt}: {said}" if source.prompt else said, "")


def trace_html(trace: Any, path: bool = True) -> str:
    """Return how a drag ended, its two curves, and, with `path`, the way of its handles."""
    if not trace.losses:
        return _figure("", "no drag", SHOWN)
    worst = [max(row) for row in trace.distances_px]
    lines = _line(trace.losses, GREY) + _line(worst, PATH)
    curve = f'<svg viewBox="0 0 300 90" width="300" height="90" style="background:#f7f8fa">{lines}</svg>'
    said = f"{len(trace.losses)} updates, {trace.stop}: {worst[0]:.1f} px became {worst[-1]:.1f} (pink), loss (grey)"
    figure = _figure(curve, said, 300)
    if not path:
        return figure
    width, height = scaled(trace.picture_size, SHOWN / max(trace.picture_size))
    drawn = f'<svg viewBox="{_box(trace.picture_size)}" width="{width}" height="{height}" style="background:#eceef2">'
    way = _figure(f"{drawn}{_marks(trace, trace.picture_size)}</svg>", "the handles' path", width)
    return f'<div style="display:flex;gap:16px;flex-wrap:wrap">{way}{figure}</div>'


def _framed(picture: Image.Image, caption: str, marks: str) -> str:
    width, height = scaled(picture.size, SHOWN / max(picture.size))
    data = BytesIO()
    to_rgb(picture).resize((2 * width, 2 * height) if max(picture.size) > 2 * SHOWN else picture.size).save(data, "PNG")
    coded = base64.b64encode(data.getvalue()).decode()
    image = f'<image href="data:image/png;base64,{coded}" x="-0.5" y="-0.5" width="{picture.width}" '
    image += f'height="{picture.height}" preserveAspectRatio="none"/>'
    svg = f'<svg viewBox="{_box(picture.size)}" width="{width}" height="{height}">{image}{marks}</svg>'
    return _figure(svg, caption, width)


def _figure(drawing: str, caption: str, width: int) -> str:
    said = f'<figcaption style="width:{width}px;font-size:12px">{html.escape(caption)}</figcaption>'
    return f'<figure style="margin:0">{drawing}{said}</figure>'


def _marks(trace: Any, size: Size) -> str:
    """Return the drags' handles and targets and the way between, in pixels of the picture."""
    unit, marks = max(size) / SHOWN, ""
    for n, (handle, target) in enumerate(trace.drags):
        way = [handle, *(row[n] for row in trace.handles), *trace.tracked[n : n + 1]]
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in way)
        for colour, width in ((HALO, 4.5), (PATH, 2.5)):
            marks += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width * unit:.2f}"/>'
        marks += _circle(handle, 4 * unit, START, unit) + _circle(target, 6 * unit, "none", unit)
    return marks


def _circle(at: Point, radius: float, fill: str, unit: float) -> str:
    rings = ((HALO, 5), (TARGET, 2.5)) if fill == "none" else ((HALO, 2),)
    where = f'cx="{at[0]:.2f}" cy="{at[1]:.2f}" r="{radius:.2f}" fill="{fill}"'
    return "".join(f'<circle {where} stroke="{colour}" stroke-width="{width * unit:.2f}"/>' for colour, width in rings)


def _line(values: Sequence[float], colour: str) -> str:
    most, last = max(*values, 1e-9), max(1, len(values) - 1)
    points = " ".join(f"{300 * n / last:.1f},{84 - 78 * value / most:.1f}" for n, value in enumerate(values))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _box(size: Size) -> str:
    """Return the view of a picture whose pixels' centres are whole numbers."""
    return f"-0.5 -0.5 {size[0]} {size[1]}"
