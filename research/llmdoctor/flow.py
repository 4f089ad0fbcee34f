"""The flow objective that a doctor is trained with, as printed and as it can be used.

This is known of *LLMdoctor* from notes on it: for the states s_0 ... s_L of an answer, with the
flow F(s) = Q(s) V(s), where Q is a score of the rewards so far and V a learned value,

    L = sum_{m < n} ( log[ F(s_n) / F(s_m) ] - sum_{k=m}^{n-1} log pi(y_{k+1} | s_k) )^2.

With g_t = log Q(s_t) V(s_t) - sum_{k<t} log pi(y_{k+1} | s_k) this is the sum of (g_n - g_m)^2, and
so (L + 1)^2 times the variance of g, in linear time.

As printed, the loss says nothing of the policy: for any pi, V(s_t) = prod pi / Q(s_t) makes it
zero. Ours is relative to the frozen patient and ends at V(s_L) = 1:

    g_t = log Q(s_t) V(s_t) - sum_{k<t} log[ pi(y_{k+1} | s_k) / pi_ref(y_{k+1} | s_k) ],
    Q(s_t) = exp( kappa sum_{k<=t} r_k ).

Its solution over all answers is pi(y | x) ~ pi_ref(y | x) exp(kappa sum_k r_k). So it has only the
*sum* of an answer's rewards: to move reward from one token to another changes V and not the doctor.
"""

from __future__ import annotations

import torch


def potentials(log_q: torch.Tensor, log_v: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Return g of the states of one answer, [L + 1].

    Args:
        log_q: log Q of the states, [L + 1].
        log_v: log V of the states, [L + 1].
        log_probs: the log-probability of each token, or its log-ratio to the reference, [L].
    """
    said = torch.cat([log_probs.new_zeros(1), log_probs.cumsum(0)])
    return log_q + log_v - said


def balance(potentials: torch.Tensor) -> torch.Tensor:
    """Return the sum of (g_n - g_m)^2 over all m < n, from g [L + 1]."""
    squared: torch.Tensor = len(potentials) ** 2 * potentials.var(correction=0)
    return squared


def log_scores(rewards: torch.Tensor, kappa: float) -> torch.Tensor:
    """Return log Q of the states of one answer, [L + 1], from the rewards of its tokens [L]."""
    return kappa * torch.cat([rewards.new_zeros(1), rewards.cumsum(0)])


def hinge(better: torch.Tensor, worse: torch.Tensor, margin: float) -> torch.Tensor:
    """Return max(0, margin - (V(better) - V(worse))); where they are taken is the caller's."""
    return torch.relu(margin - (better - worse))
