"""Moderators: they look at texts and say pass or flag."""
