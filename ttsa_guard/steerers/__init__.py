"""Steerers propose better answers for one that was flagged."""
