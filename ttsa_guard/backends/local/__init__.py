"""Run a causal language model in this process.

Decoding, likelihoods and gradients are computed in batches of sequences.
"""
