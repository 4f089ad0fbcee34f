"""What decoding candidates costs: our loop, the model's own `generate`, and the floor that the hardware sets.

Weights are random: speed does not need trained ones.
"""

from __future__ import annotations

import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ttsa_guard.backends.decode import ReferenceDecoder, SharedDecoder, Start
from ttsa_guard.devices import resolve_device, resolve_dtype

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 4096},
    "small": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 4096,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "vocab_size": 128256,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "vocab_size": 128256,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 128256,
    },
}
_KV_HEADS = {"tiny": 4, "small": 12, "1b": 8, "3b": 8, "8b": 8}
OWN = 12
"""Rows of a candidate after the shared beginning, before its new tokens."""
PREFIXES, CANDIDATES, LENGTHS = (64, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16, 32, 64), (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Point:
    """Seconds for a batch of candidates.

    Args:
        first: with the beginning to be computed; `later`: with it kept from an earlier call.
        generate: by the model's own loop on whole prompts; None if it was not run.
        equal: whether all three gave the same tokens.
        floor: reading weights and keys, and the arithmetic, at the measured rates of the machine; as `later`, without the
            beginning's own computation.
    """

    prefix: int
    candidates: int
    tokens: int
    first: float
    later: float
    generate: float | None
    equal: bool | None
    floor: float


class Speed:
    """Measures one shape on one device."""

    def __init__(self, shape: str, *, device: str = "auto", dtype: str = "auto", repeats: int = 3) -> None:
        self.shape, self.repeats = shape, repeats
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)  # type: ignore[arg-type]
        torch.manual_seed(0)
        config = LlamaConfig(
            **SHAPES[shape], num_key_value_heads=_KV_HEADS[shape], max_position_embeddings=8192, tie_word_embeddings=shape != "8b"
        )
        with torch.device(self.device):
            self.model: Any = LlamaForCausalLM(config).to(self.dtype).eval()
        self._ends = [config.vocab_size]  # never drawn: every answer has its full length
        size = self.dtype.itemsize
        head = config.hidden_size // config.num_attention_heads
        self.kv_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head * size
        self._attention = config.hidden_size * config.num_hidden_layers  # multiply-adds a query and key, for scores or values
        table = config.vocab_size * config.hidden_size
        self.parameters = sum(p.numel() for p in self.model.parameters()) - (0 if config.tie_word_embeddings else table)
        self.weight_bytes = self.parameters * size
        self.bandwidth, self.flops = self._bandwidth(), self._flops()

    def sweep(self, *, generate_up_to: int = 2048) -> Iterator[Point]:
        """Cost by length of the beginning, by candidates and by new tokens; `generate` runs up to that many prompt tokens."""
        grid = [*((p, 16, 32) for p in PREFIXES), *((512, c, 32) for c in CANDIDATES), *((512, 16, t) for t in LENGTHS)]
        for prefix, candidates, tokens in dict.fromkeys(grid):
            yield self.point(prefix, candidates, tokens, generate=prefix <= generate_up_to)

    def point(self, prefix: int, candidates: int, tokens: int, *, generate: bool = True) -> Point:
        starts = self._starts(prefix, candidates, tokens)
        reference = ReferenceDecoder(self.model, self._ends)
        decoder = SharedDecoder(self.model, self._ends)
        first, later, whole = [], [], []
        found: list[list[list[int]]] = []
        for _ in range(self.repeats):  # in turn, so that a busy moment hits all of them
            decoder = SharedDecoder(self.model, self._ends)
            first.append(self._timed(lambda: found.append(decoder.decode(starts))))  # noqa: B023
            later.append(self._timed(lambda: found.append(decoder.decode(starts))))  # noqa: B023
            if generate:
                whole.append(self._timed(lambda: found.append(reference.decode(starts))))
        return Point(
            prefix,
            candidates,
            tokens,
            first=min(first),
            later=min(later),
            generate=min(whole) if generate else None,
            equal=all(f == found[0] for f in found) if generate else None,
            floor=self.floor(prefix, candidates, tokens),
        )

    def floor(self, prefix: int, candidates: int, tokens: int) -> float:
        """The least time for the candidates' own rows and new tokens: a step reads weights and keys once, or is arithmetic."""
        total = 0.0
        for step in range(tokens):
            queries = candidates * (1 if step else OWN)
            keys = OWN + step
            read = self.weight_bytes + self.kv_bytes * (prefix + candidates * keys)
            work = queries * (2 * self.parameters + 4 * (prefix + keys) * self._attention)
            total += max(read / self.bandwidth, work / self.flops)
        return total

    def memory(self, prefix: int = 2048, candidates: int = 16, tokens: int = 64) -> dict[str, float] | None:
        """Peak over weights and keys of a batch, in bytes; None where the peak cannot be known."""
        starts = self._starts(prefix, candidates, tokens)
        decoder = SharedDecoder(self.model, self._ends)
        before = self._peak()
        if before is None:
            return None
        decoder.decode(starts)
        used = self._peak(reset=False) - before  # type: ignore[operator]
        keys = self.kv_bytes * (prefix + candidates * (OWN + tokens))
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return {
            "weights": weights,
            "keys": keys,
            "keys_per_candidate": self.kv_bytes * (OWN + tokens),
            "used": used,
            "ratio": (weights + used) / (weights + keys),
        }

    def machine(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "device": torch.cuda.get_device_name() if self.device.startswith("cuda") else f"{platform.machine()} CPU",
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "bandwidth_gb_s": round(self.bandwidth / 1e9, 1),
            "gflop_s": round(self.flops / 1e9, 1),
            "versions": {"python": platform.python_version(), **{p: version(p) for p in ("ttsa-guard", "torch", "transformers")}},
        }

    # ------------------------------------------------------------------ measuring

    def _starts(self, prefix: int, candidates: int, tokens: int) -> list[Start]:
        draw = torch.Generator().manual_seed(prefix)
        size = self._ends[0]
        fixed = tuple(torch.randint(size, (prefix,), generator=draw).tolist())
        rests = torch.randint(size, (candidates, OWN), generator=draw).to(self.device)
        return [Start(fixed, rest, most=tokens) for rest in self.model.get_input_embeddings()(rests).detach()]

    def _timed(self, work: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def _bandwidth(self) -> float:
        """Bytes a second that a sum over a large tensor reads."""
        data = torch.ones(2**26, device=self.device)
        return data.numel() * 4 / min(self._timed(data.sum) for _ in range(5))

    def _flops(self) -> float:
        a = torch.randn(2048, 2048, device=self.device, dtype=self.dtype)
        return 2 * 2048**3 / min(self._timed(lambda: a @ a) for _ in range(5))

    def _peak(self, *, reset: bool = True) -> int | None:
        if self.device.startswith("cuda"):
            if reset:
                torch.cuda.reset_peak_memory_stats()
            return torch.cuda.max_memory_allocated()
        if sys.platform != "linux":
            return None
        if reset:
            self._watch = _Resident()
            return self._watch.now()
        return self._watch.stop()


class _Resident:
    """The largest resident size of this process, looked at every millisecond."""

    def __init__(self) -> None:
        self._page = 4096
        self._most = self.now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def now(self) -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * self._page

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._most

    def _look(self) -> None:
        while not self._ended.wait(0.001):
            self._most = max(self._most, self.now())


def summary(speed: Speed, points: Sequence[Point], memory: dict[str, float] | None) -> dict[str, Any]:
    return {"machine": speed.machine(), "points": [asdict(p) for p in points], "memory": memory}
