"""A model on the Hub: its card, its upload and the check of what arrived."""
