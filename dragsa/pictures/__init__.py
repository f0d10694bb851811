"""Pictures, points and masks in and out, and what an edit reports."""
