import asyncio
import logging

import pytest

from ttsa_guard.moderators.lite import Lite
from ttsa_guard.moderators.panel import Panel, Seat
from ttsa_guard.testing import (
    ScriptedImageModerator,
    ScriptedModerator,
    check_image_moderator,
    check_moderator,
)
from ttsa_guard.verdict import Verdict

log = logging.getLogger("plugin")
PASS = Verdict.scored("broken", 0.1, threshold=0.5)


@pytest.mark.parametrize(
    "moderator",
    [Lite(), ScriptedModerator(), Panel((Seat(Lite()), Seat(ScriptedModerator())))],
    ids=["lite", "scripted", "panel"],
)
def test_moderators_that_keep_the_contract(moderator):
    check_moderator(moderator)


class Broken:
    name = "broken"

    async def moderate(self, texts, *, prompts):
        return [PASS] * len(texts)


class Nameless(Broken):
    name = ""


class Raises(Broken):
    async def moderate(self, texts, *, prompts):
        if "" in texts:
            raise ValueError("empty")
        return [PASS] * len(texts)


class OneTooFew(Broken):
    async def moderate(self, texts, *, prompts):
        return [PASS] * (len(texts) - 1)


class Tuples(Broken):
    async def moderate(self, texts, *, prompts):
        return (PASS,) * len(texts)


class Booleans(Broken):
    async def moderate(self, texts, *, prompts):
        return [True] * len(texts)


class SomebodyElse(Broken):
    async def moderate(self, texts, *, prompts):
        return [Verdict.scored("other", 0.1, threshold=0.5)] * len(texts)


class Reorders(Broken):
    async def moderate(self, texts, *, prompts):
        return [Verdict.scored("broken", min(1, len(t) / 50), threshold=0.5) for t in sorted(texts)]


class Upside(Broken):
    async def moderate(self, texts, *, prompts):
        return [
            Verdict("broken", "flag" if len(t) > 20 else "pass", 0.1 if len(t) > 20 else 0.9)
            for t in texts
        ]


class Talkative(Broken):
    async def moderate(self, texts, *, prompts):
        log.debug("judging %s", texts)
        return [PASS] * len(texts)


class Quotes(Broken):
    async def moderate(self, texts, *, prompts):
        return [Verdict.failure("broken", f"cannot judge {t!r}") for t in texts]


class OneLoop(Broken):
    lock = None

    async def moderate(self, texts, *, prompts):
        loop = asyncio.get_running_loop()
        self.lock = self.lock or loop
        if self.lock is not loop:
            raise RuntimeError("attached to a different loop")
        return [PASS] * len(texts)


class Shares(Broken):
    async def moderate(self, texts, *, prompts):
        self.texts = texts
        await asyncio.sleep(0.01)
        return [Verdict.scored("broken", float(len(t) > 20), threshold=0.5) for t in self.texts]


class Slow(Broken):
    async def moderate(self, texts, *, prompts):
        await asyncio.sleep(60 if len(texts) == 1 else 0)
        return [PASS] * len(texts)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Nameless, "name: it is empty"),
        (Raises, "batches: raised ValueError"),
        (OneTooFew, "8 for 9 texts"),
        (Tuples, "a tuple, not a list"),
        (Booleans, "something else is among them"),
        (SomebodyElse, "do not carry the moderator's name"),
        (Reorders, "is judged differently alone"),
        (Upside, "scores higher than one that does not"),
        (Talkative, "it logs the text"),
        (Quotes, "the text is in one"),
        (OneLoop, "raised RuntimeError"),
        (Shares, "get each other's verdicts"),
        (Slow, "took more than"),
    ],
)
def test_moderators_that_break_it(broken, message):
    with pytest.raises(AssertionError, match="breaks the contract") as caught:
        check_moderator(broken(), seconds=1)
    assert message in str(caught.value)


def test_everything_that_is_wrong_is_listed():
    class Hopeless(Talkative):
        name = ""

    with pytest.raises(AssertionError) as caught:
        check_moderator(Hopeless())
    assert str(caught.value).count("\n  * ") >= 2


class BrokenImages:
    name = "broken"

    async def moderate_images(self, images):
        return [PASS] * len(images)


class RaisesAtImages(BrokenImages):
    async def moderate_images(self, images):
        if any(len(image.data) < 69 for image in images):
            raise ValueError("too small")
        return [PASS] * len(images)


class TalkativeOfImages(BrokenImages):
    async def moderate_images(self, images):
        log.debug("judging %s", [image.data for image in images])
        return [PASS] * len(images)


class ReordersImages(BrokenImages):
    async def moderate_images(self, images):
        widths = sorted(image.width for image in images)
        return [Verdict.scored("broken", min(1, width / 100), threshold=0.5) for width in widths]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (RaisesAtImages, "batches: raised ValueError"),
        (TalkativeOfImages, "it logs the image"),
        (ReordersImages, "is judged differently alone"),
    ],
)
def test_image_moderators_that_break_it(broken, message):
    with pytest.raises(AssertionError, match="breaks the contract") as caught:
        check_image_moderator(broken(), seconds=5)
    assert message in str(caught.value)


def test_image_moderators_that_keep_the_contract():
    check_image_moderator(ScriptedImageModerator(lambda image: min(1, image.width / 200)))
    check_image_moderator(BrokenImages())
