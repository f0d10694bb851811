"""Weights, settings and tokenizers from files."""
