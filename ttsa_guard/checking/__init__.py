"""Check settings and configurations, and say what they come to, without loading a model."""
