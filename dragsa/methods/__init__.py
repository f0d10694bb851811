"""Other people's methods, as settings and hooks of the same edit."""
