"""The study of the steerer anchor."""
