"""Backends: engines that turn prompts, with or without soft embeddings, into answers."""
