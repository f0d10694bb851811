"""The page on which a drag is a drag, and the same canvas in a notebook.

The server is `page.server`, whose packages are the extra `ui`; nothing here needs them.
"""

from dragsa.page.desk import Asked, Desk, Example
from dragsa.page.handles import handles_in_pixels

__all__ = ["Asked", "Desk", "Example", "handles_in_pixels"]
