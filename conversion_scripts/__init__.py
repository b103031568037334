"""Checkpoints to Nexus and back, verified; the `nexus` command."""
