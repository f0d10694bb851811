"""Pictures, points and masks in and out, and an edit's report and drawings."""

from dragsa.pictures.drawing import draw_path, panels_of, sheet
from dragsa.pictures.html import picture_png, result_html, source_html
from dragsa.pictures.images import (
    SMALLEST,
    Given,
    Point,
    Size,
    check_format,
    drags_to_grid,
    from_grid,
    grid_size,
    is_grey,
    open_mask,
    open_picture,
    picture_bytes,
    restore,
    save_picture,
    scaled,
    to_grid,
    to_picture,
    to_rgb,
    to_tensor,
    unmasked,
    warn_unmasked,
    working_size,
)
from dragsa.pictures.pasting import Part, edit_part, part_of, paste
from dragsa.pictures.trace import STAGES, DragProgress, Observer, Report, StageProgress, Trace, to_json, versions

__all__ = ["SMALLEST", "STAGES", "DragProgress", "Given", "Observer", "Part", "Point", "Report", "Size"]
__all__ += ["StageProgress", "Trace", "check_format", "drags_to_grid", "draw_path", "edit_part", "from_grid"]
__all__ += ["grid_size", "is_grey", "open_mask", "open_picture", "panels_of", "part_of", "paste", "picture_bytes"]
__all__ += [
    "picture_png",
    "restore",
    "result_html",
    "save_picture",
    "scaled",
    "sheet",
    "source_html",
    "to_grid",
    "to_json",
]
__all__ += ["to_picture", "to_rgb", "to_tensor", "unmasked", "versions", "warn_unmasked", "working_size"]
