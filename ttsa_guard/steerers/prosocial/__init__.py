"""*ProSocialAlign* (arXiv 2512.06515): answers that are safe first, and then what the user prefers.

The paper's text was not available to us. What we know of it is from its abstract, its summary pages and its reviews:

* five attributes: empathy, sensitivity, non-judgmental stance, truthfulness, helpfulness;
* generation is lexicographic: first nothing harmful, then as prosocial as possible;
* directional regulation: a harm vector, learned from a harm-tuned copy of the model, of which the top-k dimensions are kept, is
  subtracted from the parameters;
* one autoregressive reward model for all attributes, conditioned on a preference vector (PBLoRA, which is from *PARM*), trained
  jointly with gradient-conflict projection, and combined with the base model at every decoding step.

All equations and numbers are reconstructions of ours from neighbouring code: see `harm_vector`, `adapter`, `conflict`,
`training` and `product`, each of which says what is whose. Nobody should take results of this steerer for the paper's.
"""
