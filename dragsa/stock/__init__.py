"""Hooks that come with the package beside the paper's own: all are names of `dragsa.hooks`."""

from dragsa.stock.combined import AtRegions, Named, compose
from dragsa.stock.maps import Map, Maps, attention_map
from dragsa.stock.processors import as_processors
from dragsa.stock.replay import ReplayKV

__all__ = ["AtRegions", "Map", "Maps", "Named", "ReplayKV", "as_processors", "attention_map", "compose"]
