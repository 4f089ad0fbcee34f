"""Rebuild *ProSocialAlign* (arXiv 2512.06515): safety first, then what the user prefers.

The paper's text was not available to us. We know this from its abstract, its summary pages and its
reviews:

* There are five attributes: empathy, sensitivity, non-judgmental stance, truthfulness, helpfulness.
* Generation is lexicographic: first nothing harmful, then as prosocial as possible.
* Directional regulation subtracts a harm vector from the parameters. The vector is learned from a
  harm-tuned copy of the model, and only its top-k dimensions are kept.
* One autoregressive reward model serves all attributes. It is conditioned on a preference vector
  (by PBLoRA, which is from *PARM*), trained jointly with gradient-conflict projection, and combined
  with the base model at every decoding step.

All equations and numbers are our reconstructions from neighbouring code. The modules `harm_vector`,
`adapter`, `conflict`, `training` and `product` each say what is whose. Nobody should take results
of this steerer for the paper's.
"""
