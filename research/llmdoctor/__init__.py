"""A study of *LLMdoctor* (arXiv 2601.10416): token rewards, a doctor, and what they are worth."""
