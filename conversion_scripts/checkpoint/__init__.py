"""A model on disk: opened, planned, written."""
