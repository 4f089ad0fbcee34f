"""What transformers needs around a model: devices, files, tokenizer and chat template."""
