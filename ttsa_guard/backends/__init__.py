"""Backends: engines that turn prompts, with or without moved embeddings, into answers."""
