"""A learned blend of what texts and what images say of a class: a reconstruction of TAEA's gate.

Of TAEA the abstract and two formulas are known, second hand and garbled: the features of texts
attend to those of images, through one learned projection, and what they find is added through a
gate. The loss, the optimiser, the steps, and which images these are, are ours.
"""

from __future__ import annotations

import torch

from ttsa_guard.vision.base import Floats

_CONFIDENT = 3
"""Views whose mean prediction is made surer: those that are the surest already."""


class ClassBlend:
    """Features of classes, blended with those of images. It begins at zero, where nothing is added.

    Args:
        classes: [C, dimensions].
        scale: what cosines are multiplied with.
        rate: learning rate of AdamW.
    """

    def __init__(self, classes: Floats, *, scale: float, rate: float) -> None:
        self._classes = torch.as_tensor(classes)
        self._scale = scale
        size = classes.shape[1]
        self._share = torch.zeros(size, dtype=self._classes.dtype, requires_grad=True)
        self._projection = torch.eye(size, dtype=self._classes.dtype, requires_grad=True)
        self._optimizer = torch.optim.AdamW([self._share, self._projection], lr=rate)

    def classes(self, views: Floats) -> Floats:
        """Return the features of the classes in the light of these views, [C, dimensions]."""
        with torch.no_grad():
            moved: Floats = self._moved(torch.as_tensor(views)).numpy()
        return moved

    def step(self, views: Floats) -> None:
        """Make the mean prediction of the surest of `views`, [views, dimensions], surer."""
        seen = torch.as_tensor(views)
        with torch.enable_grad():
            classes = torch.nn.functional.normalize(self._moved(seen), dim=-1)
            probabilities = (self._scale * seen @ classes.T).softmax(-1)
            surest = _entropy(probabilities).argsort()[:_CONFIDENT]
            self._optimizer.zero_grad()
            _entropy(probabilities[surest].mean(0)).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def _moved(self, views: torch.Tensor) -> torch.Tensor:
        images = views @ self._projection
        attention = self._classes @ images.T / self._classes.shape[1] ** 0.5
        moved: torch.Tensor = self._classes + self._share * (attention.softmax(-1) @ images)
        return moved


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.special.entr(probabilities).sum(-1)
    return found
