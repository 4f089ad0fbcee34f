"""What transformers needs around a model: where it runs, its files, its tokenizer and its chat template."""
