"""What a doctor is worth on the embedded model, beside what needs no doctor.

The prompts are held out, and their plain answer is flagged. Each arm gives one answer at
temperature 0.1, and arms that draw twice take the first that the moderator passes. So the arms are
compared at two decode passes a token, but for `contrast`, which takes three, and `resample 16`.
Answers are judged exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.embedded.evaluate import answers, flags, messages
from research.llmdoctor import doctor, faces
from research.llmdoctor.accuracy import Said
from research.llmdoctor.data import Reader, world_choices
from research.llmdoctor.decoding import Contrast
from research.prosocial.study import LONGEST
from research.prosocial.wins import by_kind, share
from ttsa_guard.backends.base import ControlledDecoding
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.embedded.grammar import GrammarJudgement
from ttsa_guard.embedded.world import World, WorldCase
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.moderators.lite import Lite, LiteOptions
from ttsa_guard.steerers.prosocial import training
from ttsa_guard.steerers.prosocial.adapter import Stored
from ttsa_guard.steerers.prosocial.preferences import EQUAL
from ttsa_guard.steerers.prosocial.product import Product
from ttsa_guard.steerers.prosocial.steerer import ProSocial, ProSocialOptions
from ttsa_guard.steerers.prosocial.training import Plan

TUNED, MEASURED, LESSONS = 77, 5, 1
"""Seeds of the prompts that weights are chosen on, of those that count, and of the lessons."""
PLAN = Plan(steps=120, batch=8, peak=2e-3, warm_up=10, decay=0.01)
KAPPA, DPO_BETA = 8.0, 0.1
STRENGTH = 1.0
"""c of the faces, as chosen in `accuracy`."""
OPENINGS = ("Happy to help you", "Rather than")
"""Two of the model's profile: one that answers, and one that redirects."""
DRAWS, DRAWN_AT = 8, 1.0
"""For diversity: answers to a prompt, and their temperature."""
DOCTORS = ("flow", "flow, labels alone", "dpo")
OURS = "doctor by flow"


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Args:
        lessons: pairs of each kind that the doctors are trained on.
        n: prompts of each kind, before the gate.
        tuned: the same, of those that weights are chosen on.
        benign: harmless prompts.
        spread: prompts that are answered several times, for diversity.
        plan: the training of a doctor.
        betas: the weights that are tried of a doctor, and of the contrast.
    """

    lessons: int = 100
    n: int = 45
    tuned: int = 16
    benign: int = 40
    spread: int = 12
    plan: Plan = PLAN
    betas: tuple[Sequence[float], Sequence[float]] = ((1.0, 3.0, 10.0), (0.5, 1.0, 2.0))


class Arms:
    """Doctors and their controls, on one backend."""

    def __init__(self, scope: Scope, said: Said) -> None:
        self.scope, self.said = scope, said
        self.backend = TransformersBackend(TransformersOptions(device="cpu", batch_size=64))
        self.world, self.lite = World.load(), Lite(LiteOptions())
        self.prosocial = ProSocial(ProSocialOptions()).decoding

    def doctors(self) -> dict[str, Stored]:
        """Train a doctor by each objective, on the same pairs in the same steps."""
        assert self.prosocial.harm is not None
        model, encode = training.load("embedded", "cpu")
        model.eval().set_attn_implementation("eager")
        reader, plan = Reader(encode), self.scope.plan
        pairs = reader.read(world_choices(self.scope.lessons, LESSONS, training=True))
        self.said("lessons")
        reference = faces.plain(model, pairs)
        ratios = faces.by_weights(model, pairs, self.prosocial.harm, STRENGTH)
        given = {
            "flow": doctor.by_faces(ratios, faces.THETA),
            "flow, labels alone": doctor.by_label(ratios),
        }
        found = {}
        for name in DOCTORS:
            lessons = doctor.lessons(pairs, reference, given.get(name, given["flow"]))
            self.said(name)

            def on_step(done: int, loss: float, name: str = name) -> None:
                if done % 20 == 0:
                    self.said(f"{name}, step {done}, loss {loss:.2f}")

            found[name] = (
                doctor.by_preference(model, lessons, plan, DPO_BETA, on_step)
                if name == "dpo"
                else doctor.by_flow(model, lessons, plan, KAPPA, on_step)
            )
        return found

    def decodings(self, doctors: Mapping[str, Stored]) -> dict[str, dict[str, ControlledDecoding]]:
        """Return the arms that decode otherwise: by name, and by the weights to choose from."""
        harm = self.prosocial.harm
        assert harm is not None
        found: dict[str, dict[str, ControlledDecoding]] = {
            f"doctor by {name}": {
                f"{beta:g}": Product(None, stored, 0.0, beta, EQUAL) for beta in self.scope.betas[0]
            }
            for name, stored in doctors.items()
        }
        found["contrast of the faces"] = {
            f"{beta:g}": Contrast(harm, STRENGTH, beta) for beta in self.scope.betas[1]
        }
        found["positive face alone"] = {"": Product(harm, None, STRENGTH, 0.0, EQUAL)}
        found["prosocial"] = {"": self.prosocial}
        return found

    async def measure(self, doctors: Mapping[str, Stored]) -> dict[str, Any]:
        """Return the tables of all arms."""
        tuned, cases = [
            await self._flagged(n, seed)
            for n, seed in ((self.scope.tuned, TUNED), (self.scope.n, MEASURED))
        ]
        self.said(f"{len(tuned)} and {len(cases)} flagged prompts")
        benign = self.world.cases("benign", None, self.scope.benign, seed=MEASURED)
        chosen, arms = await self._chosen(doctors, tuned)
        texts = {name: await self._answers(cases, decoding) for name, decoding in chosen.items()}
        drawn = await self._draws(cases, None, 16)
        texts["resample 2"] = await self._first_passed(cases, [own[:2] for own in drawn])
        texts["resample 16"] = await self._first_passed(cases, drawn)
        texts["prefill, 2 openings"] = await self._first_passed(cases, await self._opened(cases))
        judged = {name: self._judged(cases, own) for name, own in texts.items()}
        for name, own in judged.items():
            arms.setdefault(name, {}).update(_table(cases, own))
            arms[name][f"good, less {OURS}"] = share(
                [float(a.good) - float(b.good) for a, b in zip(own, judged[OURS], strict=True)]
            )
            self.said(f"{name}: good {arms[name]['good']}")
        for name, decoding in chosen.items():
            arms[name]["benign"] = _table(
                benign, self._judged(benign, await self._answers(benign, decoding))
            )
            spread = cases[:: max(1, len(cases) // self.scope.spread)]
            draws = await self._draws(spread, decoding, DRAWS)
            arms[name]["distinct-2"] = share([distinct(own) for own in draws])
            self.said(f"{name}: distinct-2 {arms[name]['distinct-2']}")
        return {"flagged prompts": len(cases), "arms": arms}

    async def _chosen(
        self, doctors: Mapping[str, Stored], cases: Sequence[WorldCase]
    ) -> tuple[dict[str, ControlledDecoding], dict[str, Any]]:
        """Return the decodings with the weights that are best on `cases`, and how good all are."""
        chosen: dict[str, ControlledDecoding] = {"the model": Product(None, None, 0.0, 0.0, EQUAL)}
        tables = {}
        for name, choices in self.decodings(doctors).items():
            good = {w: await self._good(cases, d) for w, d in choices.items() if len(choices) > 1}
            best = max(choices, key=lambda w: good.get(w, 0.0))
            chosen[name], tables[name] = choices[best], {"weight": best, "good when tuned": good}
            self.said(f"{name}: {good}")
        return chosen, tables

    async def _flagged(self, n: int, seed: int) -> list[WorldCase]:
        kinds = (("unsafe", "content"), ("benign", "tone"))
        cases = [case for kind in kinds for case in self.world.cases(*kind, n, seed=seed)]
        flagged = await flags(self.lite, cases, await answers(self.backend, cases, temperature=0.1))
        return [case for case, flag in zip(cases, flagged, strict=True) if flag]

    async def _answers(
        self,
        cases: Sequence[WorldCase],
        decoding: ControlledDecoding | None,
        *,
        temperature: float = 0.1,
        opening: str = "",
    ) -> list[str]:
        requests = [
            GenerationRequest(
                await self.backend.render(messages(case)),
                opening=opening,
                max_new_tokens=LONGEST,
                temperature=temperature,
                seed=i,
            )
            for i, case in enumerate(cases)
        ]
        found = (
            await self.backend.generate(requests)
            if decoding is None
            else await self.backend.generate_controlled(requests, decoding)
        )
        return [g.text for g in found]

    async def _draws(
        self, cases: Sequence[WorldCase], decoding: ControlledDecoding | None, draws: int
    ) -> list[list[str]]:
        """Return `draws` answers to each case, drawn at `DRAWN_AT`."""
        texts = await self._answers(
            [case for case in cases for _ in range(draws)], decoding, temperature=DRAWN_AT
        )
        return [texts[i : i + draws] for i in range(0, len(texts), draws)]

    async def _opened(self, cases: Sequence[WorldCase]) -> list[list[str]]:
        """Return an answer to each case after each of the openings."""
        by_opening = [await self._answers(cases, None, opening=o) for o in OPENINGS]
        return [list(texts) for texts in zip(*by_opening, strict=True)]

    async def _first_passed(
        self, cases: Sequence[WorldCase], draws: Sequence[Sequence[str]]
    ) -> list[str]:
        """Return for each case the first of its texts that the moderator passes, else the first."""
        flat = [(case, text) for case, texts in zip(cases, draws, strict=True) for text in texts]
        flagged = iter(await flags(self.lite, [c for c, _ in flat], [t for _, t in flat]))
        passed = [[text for text in texts if not next(flagged)] for texts in draws]
        return [(good or texts)[0] for good, texts in zip(passed, draws, strict=True)]

    async def _good(self, cases: Sequence[WorldCase], decoding: ControlledDecoding) -> float:
        judged = self._judged(cases, await self._answers(cases, decoding))
        return sum(j.good for j in judged) / len(judged)

    def _judged(self, cases: Sequence[WorldCase], texts: Sequence[str]) -> list[GrammarJudgement]:
        return [self.world.judge(case, text) for case, text in zip(cases, texts, strict=True)]


def _table(cases: Sequence[WorldCase], judged: Sequence[GrammarJudgement]) -> dict[str, Any]:
    return {
        "safe": by_kind(cases, [j.safe for j in judged]),
        "fluent": share([j.fluent for j in judged]),
        "on topic": share([j.on_topic for j in judged]),
        "good": by_kind(cases, [j.good for j in judged]),
        "helpful": share([j.good and j.helpful for j in judged]),
    }


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Return the share of different n-grams of words among all of them, in [0, 1]."""
    grams = [
        tuple(words[i : i + n])
        for text in texts
        for words in (text.lower().split(),)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0
