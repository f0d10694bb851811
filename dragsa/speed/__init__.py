"""`dragsa bench`: how fast the drag loop is, and what it holds in memory."""
