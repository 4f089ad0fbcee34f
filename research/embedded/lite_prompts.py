"""Train the prompt head of the lite moderator: which prompts ask for harm, and what follows.

Prompts of the training rows say what asks for harm: those of GPTFuzz and of just-eval's safety set
do, those of ordinary answers do not, nor do the contexts of DiaSafety, which are turns of chat. The
embedded world's questions are left out, since the heads know every answer there. Prompts of
refusal_direction are left out, too: their licence does not allow them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from research.embedded.lite_data import UNKNOWN, Example
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.features import BUCKETS
from ttsa_guard.moderators.lite_network import PROMPT_BUCKETS, PromptHead, widened

HARMFUL = ("gptfuzz", "just-eval safety")
HARMLESS = (
    *("dolly", "GPTeacher", "just-eval answers", "personalitychat", "self-dialogue", "clinc"),
    "DiaSafety",
)
INVERSE_REGULARISATION = 3.0
STRENGTHS = tuple(i / 10 for i in range(41))


def with_prompts(examples: Iterable[Example], contexts: Iterator[str]) -> list[Example]:
    """Return examples with the prompts that may be used.

    Args:
        contexts: those of all rows of DiaSafety, in the order of `examples`.
    """
    return [
        replace(e, prompt=next(contexts) if e.source == "DiaSafety" else "")
        if e.source in ("DiaSafety", "refusal_direction")
        else e
        for e in examples
    ]


def labelled(examples: Sequence[Example]) -> dict[str, int]:
    """Return whether each prompt of the training rows asks for harm: 1 or 0.

    A prompt that also stands in another part is left out. A request of CLINC150 is its own prompt.
    """
    elsewhere = {e.prompt for e in examples if e.part != "train"}
    found: dict[str, int] = {}
    for sources, label in ((HARMFUL, 1), (HARMLESS, 0)):
        for e in examples:
            prompt = e.text if e.source == "clinc" else e.prompt
            if e.part == "train" and e.source in sources and prompt and prompt not in elsewhere:
                found.setdefault(prompt, label)
    return found


def train(
    rows: csr_matrix, labels: NDArray[Any], *, seed: int
) -> tuple[NDArray[np.float16], float]:
    """Fit the chance that a prompt asks for harm.

    Args:
        rows: feature vectors of prompts, [prompts, BUCKETS].
        labels: 1 or 0, [prompts].

    Returns:
        The weights in half precision, [PROMPT_BUCKETS], and the bias.
    """
    model = LogisticRegression(
        C=INVERSE_REGULARISATION, max_iter=300, class_weight="balanced", random_state=seed
    )
    model.fit(_narrowed(rows), labels)
    return model.coef_[0].astype(np.float16), float(model.intercept_[0])


def strongest(
    validation: Sequence[Example],
    scores: NDArray[np.float64],
    weights: NDArray[np.float16],
    bias: float,
) -> tuple[float, float, float]:
    """Find how much a prompt that asks for harm should count.

    Args:
        validation: examples with their prompts.
        scores: probabilities of the answers alone, [examples, 3].

    Returns:
        The strength of `STRENGTHS` with the highest ROC-AUC of harm, and the ROC-AUC without a
        prompt and with it.
    """
    harm, refusal = scores[:, HEADS.index("harm")], scores[:, HEADS.index("refusal")]
    full = PromptHead(widened(weights), bias, 1.0).raise_of([e.prompt for e in validation], refusal)
    labels = np.array([e.harm for e in validation])
    known, logits = labels != UNKNOWN, np.log(harm) - np.log1p(-harm)
    areas = [
        float(roc_auc_score(labels[known], (logits + strength * full)[known]))
        for strength in STRENGTHS
    ]
    best = int(np.argmax(areas))
    return STRENGTHS[best], areas[0], areas[best]


def _narrowed(rows: csr_matrix) -> csr_matrix:
    """Return feature vectors [n, BUCKETS] as ones of [n, PROMPT_BUCKETS]."""
    places = rows.indices // (BUCKETS // PROMPT_BUCKETS)
    result = csr_matrix((rows.data, places, rows.indptr), shape=(rows.shape[0], PROMPT_BUCKETS))
    result.sum_duplicates()
    return result
