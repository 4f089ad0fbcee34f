"""Makers of the models and moderators in the package, and their reports."""
