"""Run a causal language model in this process: decoding, attention, likelihoods and gradients in
batches of sequences.
"""
