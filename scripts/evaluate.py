"""How near an edited picture of a drawn scene is to the exact truth, whoever made the edit.

    python scripts/evaluate.py FOLDER       every result in a folder of cases: FOLDER/<case>/<name>.png
    python scripts/evaluate.py --check      the evaluator's own error, on pictures whose truth is known

Where things are in a result is found by fitting the scene: its objects are drawn at other places, sizes and angles
until the drawing agrees with the picture. The fit starts from the edit's source and from what the picture shows, never
from the truth, and it looks at which colour of the scene each pixel is nearest to, not at how near: a result whose
colours have drifted is found as well. FOLDER/<case> is as `truth_bench.py export` writes it; the figures are written to
FOLDER/metrics.json.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import cases
import intervals
import scenes
import torch
import torch.nn.functional as F
from cases import Case
from PIL import Image
from scenes import Scene
from torch import Tensor

from dragsa import cli, files, loading
from dragsa.loading import StableDiffusion
from dragsa.pictures import images

OWN = ("source.png", "truth.png", "mask.png")  # a case's pictures that are no results

GRID = 64  # pixels of the pictures that are compared in the fit
STARTS, ITERATIONS = 3, 24
STEPS = {"x": 0.004, "y": 0.004, "size": 0.004, "rotation": 0.03, "yaw": 0.03}  # of the finite differences
FURTHEST = {"x": 0.08, "y": 0.08, "size": 0.08, "rotation": 0.3, "yaw": 0.3}  # that one iteration may go
SMALLER, LARGER = 0.4, 2.2  # of the source's size, and nothing beyond is looked for
FURTHEST_YAW = math.radians(60)
SHOWN = 0.5  # of an object's area must show its colours; a nose's likewise
BEST_DB = 60.0  # pictures nearer to each other than this are given this


# ------------------------------------------------------------------------------------------------------------ fitting


class Fit(NamedTuple):
    """`scene`: the source's, with objects as they were found. The rest says whether they were there to be found."""

    scene: Scene
    found: bool
    neighbour_found: bool  # False where the scene has none
    nose_found: bool  # False where the object is no face


class Fitted(NamedTuple):
    """Which numbers of a scene are fitted: of the object or of its neighbour, and the number's name."""

    neighbour: bool
    name: str


def fit(picture: Tensor, before: Scene) -> Fit:
    """The scene of a picture (3, H, H) in [-1, 1] that shows what `before` does, but elsewhere and otherwise turned.

    Least squares over the memberships of the pixels (see `memberships`) by Levenberg and Marquardt's method, with
    finite differences; all scenes of an iteration are drawn as one batch.
    """
    names = fitted(before)
    ground = scenes.draw_ground(replace(before, neighbour=None), GRID)  # (3, G, G)
    colours = palette(before)
    small = F.interpolate(picture[None], size=(GRID, GRID), mode="area")
    seen = memberships(small, ground, colours)  # (1, K, G, G)

    def residuals(rows: Tensor) -> Tensor:
        drawn = scenes.draw_over([placed(before, names, row) for row in rows.tolist()], ground)
        return (memberships(drawn, ground, colours) - seen).flatten(1)  # (B, N)

    def linearised(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals (S, N) and their derivatives (S, N, P)."""
        steps = torch.tensor([STEPS[name] for _, name in names])
        around = torch.cat([rows[:, None], rows[:, None] + torch.diag(steps)], dim=1)  # (S, 1 + P, P)
        at = residuals(around.flatten(0, 1)).unflatten(0, around.shape[:2])  # (S, 1 + P, N)
        return at[:, 0], ((at[:, 1:] - at[:, :1]) / steps[:, None]).transpose(1, 2)

    rows = starts(before, names, seen[0], colours)
    rows = rows[residuals(rows).square().sum(dim=1).argsort()[:STARTS]]
    least, most = limits(before, names)
    furthest = torch.tensor([FURTHEST[name] for _, name in names])
    residual, slope = linearised(rows)
    cost, damping = residual.square().sum(dim=1), torch.full((len(rows),), 1e-2)
    for _ in range(ITERATIONS):
        curvature = slope.transpose(1, 2) @ slope  # (S, P, P)
        scale = curvature.diagonal(dim1=1, dim2=2)
        damped = curvature + torch.diag_embed(damping[:, None] * scale + 1e-3)
        step = -torch.linalg.solve(damped, slope.transpose(1, 2) @ residual[..., None])[..., 0]
        tried = (rows + step.clamp(-furthest, furthest)).clamp(least, most)
        if ((tried - rows).abs().amax(dim=0) < 0.02 * torch.tensor([STEPS[name] for _, name in names])).all():
            break
        tried_residual, tried_slope = linearised(tried)
        tried_cost = tried_residual.square().sum(dim=1)
        better = tried_cost < cost
        rows = torch.where(better[:, None], tried, rows)
        residual = torch.where(better[:, None], tried_residual, residual)
        slope = torch.where(better[:, None, None], tried_slope, slope)
        cost, damping = torch.where(better, tried_cost, cost), torch.where(better, damping / 4, damping * 5)
    scene = upright(placed(before, names, rows[cost.argmin()].tolist()), before)
    return Fit(scene, *shown(scene, seen[0], colours))


def fitted(scene: Scene) -> list[Fitted]:
    """Place and size of each object; the rotation of those that have one, and a face's yaw."""
    names = []
    for beside, one in ((False, scene), (True, scene.neighbour)):
        if one is not None:
            names += [Fitted(beside, name) for name in ("x", "y", "size")]
            names += [Fitted(beside, "rotation")] if one.shape != "disc" else []
            names += [Fitted(beside, "yaw")] if one.shape == "face" else []
    return names


def placed(scene: Scene, names: Sequence[Fitted], row: Sequence[float]) -> Scene:
    """The scene with other values of the numbers that are fitted."""
    own: dict[str, Any] = {name: value for (beside, name), value in zip(names, row, strict=True) if not beside}
    theirs: dict[str, Any] = {name: value for (beside, name), value in zip(names, row, strict=True) if beside}
    neighbour = scene.neighbour if scene.neighbour is None else replace(scene.neighbour, **theirs)
    return replace(scene, **own, neighbour=neighbour)


def values(scene: Scene, names: Sequence[Fitted]) -> list[float]:
    return [getattr(scene.neighbour if beside else scene, name) for beside, name in names]


def limits(before: Scene, names: Sequence[Fitted]) -> tuple[Tensor, Tensor]:
    """The least and the greatest values that are looked at: (P,) each."""
    least, most = [], []
    for (_, name), value in zip(names, values(before, names), strict=True):
        low, high = {
            "size": (SMALLER * value, LARGER * value),
            "rotation": (value - math.pi / 2, value + math.pi / 2),
            "yaw": (-FURTHEST_YAW, FURTHEST_YAW),
        }.get(name, (0.0, 1.0))
        least.append(low)
        most.append(high)
    return torch.tensor(least), torch.tensor(most)


def starts(before: Scene, names: Sequence[Fitted], seen: Tensor, colours: Tensor) -> Tensor:
    """Where the fit may begin: (B, P). Everything as in the source, or where its colours are densest in the picture;
    the object's size, rotation and yaw as before, or some steps away."""
    found = replace(before, **densest(before, seen, colours))
    if before.neighbour is not None:
        found = replace(found, neighbour=replace(before.neighbour, **densest(before.neighbour, seen, colours)))
    places = [before, found]
    if before.neighbour is not None:
        places += [replace(before, neighbour=found.neighbour), replace(found, neighbour=before.neighbour)]
    half = math.pi / scenes.CORNERS[before.shape] if before.shape in scenes.CORNERS else 0.0
    turned: list[dict[str, Any]] = [
        {"rotation": before.rotation + share * half} for share in ((0, -0.6, 0.6) if half else (0,))
    ]
    if before.shape == "face":
        turned += [{"yaw": math.radians(angle)} for angle in (-30, 0, 30)]
    sizes = [before.size * scale for scale in (1, 0.7, 1.35)]
    rows = [replace(place, **angles, size=size) for place in places for angles in turned for size in sizes]
    return torch.tensor([values(row, names) for row in rows])


def densest(scene: Scene, seen: Tensor, colours: Tensor) -> dict[str, Any]:
    """Place in fractions of the width where an object's colours are densest; nothing where they are nowhere."""
    place = scenes.densest(own_colours(scene, seen, colours), 0.5 * scene.size * GRID)
    return {} if math.isnan(place.x) else {"x": (place.x + 0.5) / GRID, "y": (place.y + 0.5) / GRID}


def upright(scene: Scene, before: Scene) -> Scene:
    """The same drawing by the rotation that is nearest to the source's: a square turned by 90° is the same square."""
    changes: dict[str, Any] = {}
    if scene.neighbour is not None and before.neighbour is not None:
        changes["neighbour"] = upright(scene.neighbour, before.neighbour)
    if scene.shape in scenes.CORNERS:
        turned = math.remainder(scene.rotation - before.rotation, 2 * math.pi / scenes.CORNERS[scene.shape])
        changes["rotation"] = before.rotation + turned
    return replace(scene, **changes)


def shown(scene: Scene, seen: Tensor, colours: Tensor) -> tuple[bool, bool, bool]:
    """Whether most of object, neighbour and nose have their colours where the scene has them."""

    def share(one: Scene, part: Tensor) -> float:
        inside = part > 0.5
        return own_colours(one, seen, colours)[inside].mean().item() if inside.any() else 0.0

    found = share(scene, scenes.object_mask(scene, GRID)) >= SHOWN
    beside = scene.neighbour
    neighbour = beside is not None and share(beside, scenes.object_mask(beside, GRID)) >= SHOWN
    nose = False
    if found and scene.shape == "face":
        place = scenes.keypoints(scene, GRID)["nose"]
        red = (colours == torch.tensor(scenes.NOSE)[:, None, None] * 2 - 1).all(dim=(1, 2, 3))
        near = scenes.disc(GRID, *place, 0.7 * scenes.NOSE_WIDTH * scene.size / 2 * GRID) > 0
        nose = bool(near.any()) and seen[red].sum(dim=0)[near].mean().item() >= SHOWN
    return found, neighbour, nose


# ------------------------------------------------------------------------------------------------------------ colours


def palette(scene: Scene) -> Tensor:
    """The colours of the scene's object and neighbour, each once: (K, 3, 1, 1) in [-1, 1]."""
    colours = [*_colours_of(scene), *(() if scene.neighbour is None else _colours_of(scene.neighbour))]
    return torch.tensor(list(dict.fromkeys(colours)))[..., None, None] * 2 - 1


def _colours_of(scene: Scene) -> list[tuple[float, float, float]]:
    return [scenes.PALETTE[scene.colour], *((scenes.NOSE, scenes.DARK) if scene.shape == "face" else ())]


def memberships(pictures: Tensor, ground: Tensor, colours: Tensor, sharpness: int = 1) -> Tensor:
    """How much each pixel of (B, 3, H, W) is of each colour (K, 3, 1, 1) rather than of the others or of the ground.

    (B, K, H, W) in [0, 1]: shares in 1 / distance² to the power of `sharpness`, so that a colour which has drifted
    still is its nearest one, and a mixture half and half is half of either. Sharper for masks, where a trace of an
    object's colour in much ground would add up; smoother for the fit, which follows slopes.
    """
    all_colours = torch.cat([ground[None], colours.expand(-1, -1, *ground.shape[1:])])  # (1 + K, 3, H, W)
    square = (pictures[:, None] - all_colours).square().sum(dim=2)  # (B, 1 + K, H, W)
    share = (square + 1e-3).pow(-sharpness)
    return share[:, 1:] / share.sum(dim=1, keepdim=True)


def own_colours(scene: Scene, seen: Tensor, colours: Tensor) -> Tensor:
    """Where memberships (K, H, W) are those of one object's colours: (H, W) in [0, 1]."""
    own = torch.tensor(_colours_of(scene))[:, None, :] * 2 - 1  # (k, 1, 3)
    mine = (own == colours[:, :, 0, 0]).all(dim=2).any(dim=0)  # (K,)
    return seen[mine].sum(dim=0)


# ---------------------------------------------------------------------------------------------------------- measuring


def measure(result: Image.Image, case: Case) -> dict[str, Any]:
    """Every figure of one result that needs no model, as values for JSON; lengths in pixels, colours in 255ths.

    `points`: for each measured point how far it had to go (`asked`), how far it still is (`left`) and the share of the
    two; a point of something that cannot be found counts as not moved. `all_left`: the mean over all points of what
    moves. `background_*`: against the truth where neither it nor the source has an object, two pixels away from them.
    `outside_error`: the same where the mask lets nothing change. `object_colour`: of the objects where they are found,
    against their own colours there. `object_tint`: the same of the medians over the object's pixels, which a misshapen
    object leaves alone. `shape`: overlap of the found object with the truth's, when both stand at one
    place. `overlap`: the same where each stands. `neighbour_*`: what became of a protected neighbour. `centre_moved`:
    where the object should stay, how far it went. `yaw_left`: of a turn, the share of the angle; a head that is pushed
    aside takes its nose to the target without turning.
    """
    if result.size != (case.size, case.size):
        raise ValueError(f"{case.name}: a result of {result.size}, the case is of {(case.size, case.size)}")
    picture, truth = (images.to_tensor(p)[0] for p in (result, case.truth))  # (3, H, W)
    found = fit(picture, case.before)
    before, asked, at = (case.points(scene) for scene in (case.before, case.after, found.scene))

    def left(name: str) -> float:
        there = found.neighbour_found if name.startswith(cases.NEIGHBOUR) else found.found
        there = there and (name != "nose" or found.nose_found)
        return math.dist(at[name] if there else before[name], asked[name])

    points: list[dict[str, Any]] = []
    for name in case.measured:
        distance, still = math.dist(before[name], asked[name]), left(name)
        points.append({"name": name, "asked": distance, "left": still, "share": still / distance})
    moving = [name for name in at if math.dist(before[name], asked[name]) > 0.5]

    covered = torch.stack([scenes.object_mask(one, case.size) for pair in case.moving for one in pair]).amax(dim=0)
    away = cases.dilated(covered, 2 / 128) == 0
    change = (picture - truth)[:, away]
    errors = {
        "background_db": min(BEST_DB, -10 * math.log10(max(1e-12, change.square().mean().item() / 4))),
        "background_error": 127.5 * change.abs().mean().item(),
        "outside_error": 127.5 * (picture - truth)[:, case.mask == 0].abs().mean().item(),
        "truth_db": min(BEST_DB, scenes.psnr(picture, truth).item()),
        "truth_ssim": ssim(picture, truth),
    }
    judged = [_object_figures(picture, truth, case, found, beside=False)]
    if case.kind == "two":
        judged.append(_object_figures(picture, truth, case, found, beside=True))
    figures: dict[str, Any] = {key: _mean(one[key] for one in judged) for key in judged[0]}
    if case.kind == "protect" and case.before.neighbour is not None:
        inside = cases.dilated(scenes.object_mask(case.before.neighbour, case.size), 1 / 128) > 0
        figures["neighbour_error"] = 127.5 * (picture - truth)[:, inside].abs().mean().item()
        centre = cases.NEIGHBOUR + "centre"
        figures["neighbour_moved"] = math.dist(at[centre], before[centre]) if found.neighbour_found else None
    if case.kind in ("turn", "resize"):
        figures["centre_moved"] = math.dist(at["centre"], before["centre"]) if found.found else None
    if case.kind == "turn":
        turned = found.scene.yaw if found.nose_found else case.before.yaw
        figures["yaw_left"] = abs(turned - case.after.yaw) / abs(case.before.yaw - case.after.yaw)
        nose = scenes.locate_nose(picture, case.before)
        figures["nose_left"] = None if math.isnan(nose.x) else math.dist(nose[:2], asked["nose"])
    return {
        "found": found.found and (case.kind != "two" or found.neighbour_found),
        "nose_found": found.nose_found if case.kind == "turn" else None,
        "points": points,
        "left": _mean(point["left"] for point in points),
        "share": _mean(point["share"] for point in points),
        "all_left": _mean(left(name) for name in moving),
        **errors,
        **figures,
        "scene": asdict(found.scene),
    }


def _object_figures(picture: Tensor, truth: Tensor, case: Case, found: Fit, beside: bool) -> dict[str, float | None]:
    """Colour, shape and overlap of one of the objects."""
    size = case.size
    true, at = (s.neighbour if beside else s for s in (case.after, found.scene))
    if true is None or at is None:
        raise ValueError(f"{case.name} has no neighbour")
    colours, ground = palette(case.before), scenes.draw_ground(replace(case.before, neighbour=None), size)

    def mine(pixels: Tensor) -> Tensor:
        return own_colours(true, memberships(pixels[None], ground, colours, sharpness=2)[0], colours)  # (H, W)

    seen = mine(picture)
    figures: dict[str, float | None] = {"object_colour": None, "object_tint": None, "shape": 0.0}
    figures["overlap"] = iou(seen, mine(truth))
    if found.neighbour_found if beside else found.found:
        core = scenes.object_mask(at, size) > 0.99
        alone, moved = replace(at, neighbour=None), replace(true, x=at.x, y=at.y, neighbour=None)
        drawn = scenes.draw_over([alone, moved], ground)  # (2, 3, H, W)
        now, own = picture[:, core], drawn[0][:, core]  # (3, pixels)
        figures["object_colour"] = 127.5 * (now - own).abs().mean().item()
        figures["object_tint"] = 127.5 * (now.median(dim=1).values - own.median(dim=1).values).abs().mean().item()
        figures["shape"] = iou(seen, mine(drawn[1]))
    return figures


def iou(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two soft masks (H, W)."""
    return (torch.minimum(first, second).sum() / torch.maximum(first, second).sum().clamp(min=1e-6)).item()


def ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity of two pictures (3, H, W) in [-1, 1], mean over pixels and channels.

    Wang et al. 2004: Gaussian windows of 11×11 pixels with σ = 1.5, K_1 = 0.01, K_2 = 0.03; windows that reach over the
    picture's edge are left out.
    """
    side = torch.arange(11, dtype=torch.float64) - 5
    row = torch.exp(-side.square() / (2 * 1.5**2))
    row = row / row.sum()

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, row.view(1, 1, 1, 11)), row.view(1, 1, 11, 1))

    x, y = ((p.double()[:, None] + 1) / 2 for p in (first, second))  # (3, 1, H, W)
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y, both = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2, blurred(x * y) - mean_x * mean_y
    c_1, c_2 = 0.01**2, 0.03**2
    brightness = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    return (brightness * (2 * both + c_2) / (var_x + var_y + c_2)).mean().item()


def _mean(numbers: Iterable[float | None]) -> float | None:
    there = [number for number in numbers if number is not None and math.isfinite(number)]
    return sum(there) / len(there) if there else None


# ------------------------------------------------------------------------------------------------- its own error


def check(listed: Sequence[Case], sd: StableDiffusion | None = None) -> dict[str, dict[str, list[float]]]:
    """How far the measured points are found from where they are: what is drawn -> kind -> pixels, one for each point.

    "source" and "truth" are the exact drawings, "… through the VAE" the same encoded and decoded by the model.
    """
    errors: dict[str, dict[str, list[float]]] = {}
    for case in listed:
        for name, scene, picture in (("source", case.before, case.source), ("truth", case.after, case.truth)):
            pixels = images.to_tensor(picture)  # (1, 3, H, W)
            pictures = {name: pixels[0]}
            if sd is not None:
                with torch.no_grad():
                    pictures[f"{name} through the VAE"] = sd.decode(sd.encode(pixels))[0].clamp(-1, 1)
            true = case.points(scene)
            for what, drawn in pictures.items():
                found = fit(drawn, case.before)
                at = case.points(found.scene)
                there = found.found and (case.kind != "turn" or found.nose_found)
                pixels_off = [math.dist(at[n], true[n]) if there else float(case.size) for n in case.measured]
                errors.setdefault(what, {}).setdefault(case.kind, []).extend(pixels_off)
    return errors


def check_table(errors: dict[str, dict[str, list[float]]]) -> str:
    """The evaluator's own error in pixels as a Markdown table."""
    lines = ["| picture | kind | points | mean px | 95 % px | most px |", "| --- | --- | --- | --- | --- | --- |"]
    for what, by_kind in errors.items():
        by_kind = {**by_kind, "all": [e for row in by_kind.values() for e in row]}
        for kind, row in by_kind.items():
            ordered = sorted(row)
            high = ordered[math.ceil(0.95 * len(row)) - 1]
            numbers = f"{sum(row) / len(row):.2f} | {high:.2f} | {ordered[-1]:.2f}"
            lines.append(f"| {what} | {kind} | {len(row)} | {numbers} |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------- folders of results


def measure_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Figures of every result in a folder of cases: result's name -> case's name -> what `measure` gives."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/case.json")):
        case = cases.load(file.parent)
        for picture in sorted(file.parent.glob("*.png")):
            if picture.name not in OWN:
                found.setdefault(picture.stem, {})[case.name] = measure(images.open_picture(picture), case)
    if not found:
        raise ValueError(f"{folder}: no results; there should be FOLDER/<case>/case.json and FOLDER/<case>/<name>.png")
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Means over the cases with their 95 % intervals, a row for each result's name, as a Markdown table."""
    columns = {"left": ("share", 2), "IoU": ("overlap", 2), "truth dB": ("truth_db", 1), "SSIM": ("truth_ssim", 3)}
    columns |= {"object's colour": ("object_colour", 1), "background": ("background_error", 2), "shape": ("shape", 2)}
    lines = [f"| result | cases | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    for name, of_case in results.items():
        cells = []
        for key, digits in columns.values():
            summary = intervals.summarise({case: [figures[key]] for case, figures in of_case.items()})
            cells.append(intervals.text(summary.per_picture, digits))
        lines.append(f"| {name} | {len(of_case)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of cases with results")
    parser.add_argument("--check", action="store_true", help="measure the evaluator's own error instead")
    parser.add_argument("--limit", type=cli.whole(1), help="check only so many cases of each kind and list")
    parser.add_argument("--weights", type=Path, default=cli.SMALL, help="whose VAE the check uses")
    try:
        options = parser.parse_args(arguments)
        if options.check:
            if options.folder is not None:
                raise ValueError("--check takes no folder")
            listed = [case for which in cases.FIRST for case in cases.cases(which, options.limit)]
            print(check_table(check(listed, loading.load(options.weights))))
        elif options.folder is None:
            raise ValueError("give a folder of results, or --check")
        else:
            results = measure_folder(options.folder)
            files.save_json(results, options.folder / "metrics.json", overwrite=True)
            print(table(results))
    except (OSError, ValueError) as error:
        print(f"evaluate: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
