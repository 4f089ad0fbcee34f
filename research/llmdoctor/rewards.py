"""Rewards of tokens, from two faces of one model.

This is known of *LLMdoctor* from notes on it; its text and code were not available to us. The
patient model reads an answer y twice, as a positive face and as a negative one, and

    delta_t = | log pi_pos(y_t | x, y_<t) - log pi_neg(y_t | x, y_<t) |
    S_t     = tanh( delta_t / (mean_j delta_j + eps) / tau )
    r_t     = sign * S_t * 1[S_t > theta],

where the sign is +1 in the better answer and -1 in the worse one. So the direction is the pair's
alone. Which face makes a token likelier is lost in the absolute value. tau, theta and eps are not
known to us.
"""

from __future__ import annotations

import torch

EPSILON = 1e-8


def importance(log_ratios: torch.Tensor, *, tau: float = 1.0) -> torch.Tensor:
    """Return S_t of the tokens of one answer, [L], in [0, 1).

    Args:
        log_ratios: the log-probability of each token under the positive face, less that under the
            negative one, [L].
        tau: the temperature, above 0.
    """
    delta = log_ratios.abs()
    return torch.tanh(delta / (delta.mean() + EPSILON) / tau)


def rewards(
    log_ratios: torch.Tensor, *, better: bool, theta: float = 0.5, tau: float = 1.0
) -> torch.Tensor:
    """Return r_t of the tokens of one answer, [L], in (-1, 1).

    Args:
        log_ratios: see `importance`.
        better: whether it is the better answer of its pair.
        theta: tokens whose importance is not above this get nothing.
        tau: see `importance`.
    """
    found = importance(log_ratios, tau=tau)
    return (1.0 if better else -1.0) * found * (found > theta)
