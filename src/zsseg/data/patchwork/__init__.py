"""Patchwork: an unlimited panoptic world, drawn when it is read."""
