"""Pictures, points and masks in and out, and an edit's report and drawings."""

from dragsa.pictures.drawing import draw_path, panels_of, sheet
from dragsa.pictures.images import (
    SMALLEST,
    Point,
    Size,
    check_format,
    drags_to_grid,
    from_grid,
    grid_size,
    open_mask,
    open_picture,
    restore,
    save_picture,
    to_grid,
    to_picture,
    to_rgb,
    to_tensor,
    warn_unmasked,
    working_size,
)
from dragsa.pictures.trace import STAGES, DragProgress, Observer, Report, StageProgress, Trace, to_json, versions

__all__ = ["SMALLEST", "STAGES", "DragProgress", "Observer", "Point", "Report", "Size", "StageProgress", "Trace"]
__all__ += ["check_format", "drags_to_grid", "draw_path", "from_grid", "grid_size", "open_mask", "open_picture"]
__all__ += ["panels_of", "restore", "save_picture", "sheet", "to_grid", "to_json", "to_picture", "to_rgb", "to_tensor"]
__all__ += ["versions", "warn_unmasked", "working_size"]
