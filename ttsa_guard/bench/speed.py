"""What decoding candidates costs: our loop, the model's own `generate`, and the floor that the
hardware sets.

Weights are random: speed does not need trained ones.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ttsa_guard.backends.local.decode import SharedDecoder
from ttsa_guard.backends.local.reference import Decoder, ReferenceDecoder, Start
from ttsa_guard.hf.devices import Device, Dtype, resolve_device, resolve_dtype


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True

    def config(self) -> Any:
        """Return the configuration of a Llama of these sizes."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=8192,
        )


SHAPES = {
    "tiny": ModelShape(256, 704, 4, 8, 4, 4096),
    "small": ModelShape(768, 3072, 12, 12, 12, 4096),
    "1b": ModelShape(2048, 8192, 16, 32, 8, 128256),
    "3b": ModelShape(3072, 8192, 28, 24, 8, 128256),
    "8b": ModelShape(4096, 14336, 32, 32, 8, 128256, tied=False),
}
"""By name; the three last ones are those of Llama 3."""
OWN = 12
"""Rows of a candidate after the shared beginning, before its new tokens."""
PREFIXES = (64, 256, 512, 1024, 2048, 4096)
CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class SpeedPoint:
    """Seconds for a batch of candidates.

    Args:
        first: with the beginning to be computed; `later`: with it kept from an earlier call.
        generate: by the model's own loop on whole prompts; None if it was not run.
        equal: whether all three gave the same tokens.
        floor: reading weights and keys, and the arithmetic, at the measured rates of the machine;
            as `later`, without the beginning's own computation.
    """

    prefix: int
    candidates: int
    tokens: int
    first: float
    later: float
    generate: float | None
    equal: bool | None
    floor: float


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use at the peak of a batch, against those of its weights and keys.

    Args:
        keys: of the beginning, kept once, and of all candidates; `keys_per_candidate` of one.
        used: at the peak, besides the weights.
        ratio: of all that is in use to weights and keys.
    """

    weights: int
    keys: int
    keys_per_candidate: int
    used: int
    ratio: float


@dataclass(frozen=True)
class Machine:
    """What was measured, on what.

    Args:
        bandwidth_gb_s, gflop_s: rates that were measured: reading memory, and multiplying matrices.
    """

    shape: str
    device: str
    dtype: str
    threads: int
    bandwidth_gb_s: float
    gflop_s: float
    versions: dict[str, str]


class Speed:
    """Measures one shape on one device."""

    def __init__(
        self, name: str, *, device: Device = "auto", dtype: Dtype = "auto", repeats: int = 3
    ) -> None:
        self.name, self.shape, self.repeats = name, SHAPES[name], repeats
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        torch.manual_seed(0)
        with torch.device(self.device):
            model: Any = LlamaForCausalLM(self.shape.config())
        self.model = model.to(self.dtype).eval()
        self._ends = [self.shape.vocabulary]  # never drawn: every answer has its full length
        head = self.shape.hidden // self.shape.heads
        self.kv_bytes = 2 * self.shape.layers * self.shape.kv_heads * head * self.dtype.itemsize
        # looked up, not read whole
        table = 0 if self.shape.tied else self.shape.vocabulary * self.shape.hidden
        self.parameters = sum(p.numel() for p in self.model.parameters()) - table
        self.bandwidth, self.flops = self._bandwidth(), self._flops()

    def sweep(self, *, generate_up_to: int = 2048) -> Iterator[SpeedPoint]:
        """Measure the cost by length of the beginning, by candidates and by new tokens.

        The model's own `generate` runs too where the beginning has at most `generate_up_to` tokens.
        """
        grid = [
            *((p, 16, 32) for p in PREFIXES),
            *((512, c, 32) for c in CANDIDATES),
            *((512, 16, t) for t in LENGTHS),
        ]
        for prefix, candidates, tokens in dict.fromkeys(grid):
            yield self.point(prefix, candidates, tokens, generate=prefix <= generate_up_to)

    def point(
        self, prefix: int, candidates: int, tokens: int, *, generate: bool = True
    ) -> SpeedPoint:
        """Measure one batch: `candidates` of `tokens` new tokens each, after `prefix` tokens that
        they share.
        """
        starts = self._starts(prefix, candidates, tokens)
        reference = ReferenceDecoder(self.model, self._ends)
        first, later, whole = [], [], []
        decoded: list[list[list[int]]] = []

        def timed(decoder: Decoder) -> float:
            return self._timed(lambda: decoded.append(decoder.decode(starts)))

        for _ in range(self.repeats):  # in turn, so that a busy moment hits all of them
            fresh = SharedDecoder(self.model, self._ends)
            first.append(timed(fresh))
            later.append(timed(fresh))
            if generate:
                whole.append(timed(reference))
        return SpeedPoint(
            prefix,
            candidates,
            tokens,
            first=min(first),
            later=min(later),
            generate=min(whole) if generate else None,
            equal=all(f == decoded[0] for f in decoded) if generate else None,
            floor=self.floor(prefix, candidates, tokens),
        )

    def floor(self, prefix: int, candidates: int, tokens: int) -> float:
        """Estimate the least seconds for the candidates' rows and new tokens.

        A step reads weights and keys once, or it is arithmetic, whichever takes longer.
        """
        total = 0.0
        for step in range(tokens):
            queries = candidates * (1 if step else OWN)
            keys = OWN + step
            weights = self.parameters * self.dtype.itemsize
            read = weights + self.kv_bytes * (prefix + candidates * keys)
            attention = 4 * (prefix + keys) * self.shape.hidden * self.shape.layers
            arithmetic = queries * (2 * self.parameters + attention)
            total += max(read / self.bandwidth, arithmetic / self.flops)
        return total

    def memory(
        self, prefix: int = 2048, candidates: int = 16, tokens: int = 64
    ) -> MemoryUse | None:
        """Return what a batch takes; None where the peak cannot be seen."""
        starts = self._starts(prefix, candidates, tokens)
        decoder = SharedDecoder(self.model, self._ends)
        peak = self._peak()
        if peak is None:
            return None
        # a first batch, so that what libraries keep for ever is not counted
        SharedDecoder(self.model, self._ends).decode(self._starts(64, candidates, 2))
        with peak:
            decoder.decode(starts)
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        own = self.kv_bytes * (OWN + tokens)
        keys = self.kv_bytes * prefix + own * candidates
        ratio = (weights + peak.used) / (weights + keys)
        return MemoryUse(weights, keys, own, peak.used, round(ratio, 3))

    def machine(self) -> Machine:
        """Return what was measured, and on what."""
        on_cuda = self.device.startswith("cuda")
        return Machine(
            shape=self.name,
            device=torch.cuda.get_device_name() if on_cuda else f"{platform.machine()} CPU",
            dtype=str(self.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            bandwidth_gb_s=round(self.bandwidth / 1e9, 1),
            gflop_s=round(self.flops / 1e9, 1),
            versions={
                "python": platform.python_version(),
                **{p: version(p) for p in ("ttsa-guard", "torch", "transformers")},
            },
        )

    # ------------------------------------------------------------------ measuring

    def _starts(self, prefix: int, candidates: int, tokens: int) -> list[Start]:
        draw = torch.Generator().manual_seed(prefix)
        size = self._ends[0]
        fixed = tuple(torch.randint(size, (prefix,), generator=draw).tolist())
        rests = torch.randint(size, (candidates, OWN), generator=draw).to(self.device)
        return [
            Start(fixed, suffix, max_new_tokens=tokens)
            for suffix in self.model.get_input_embeddings()(rests).detach()
        ]

    def _peak(self) -> _CudaPeak | _ResidentPeak | None:
        if self.device.startswith("cuda"):
            return _CudaPeak()
        return _ResidentPeak() if sys.platform == "linux" else None

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
        """Measure the bytes a second that a sum over a large tensor reads."""
        data = torch.ones(2**26, device=self.device)
        return data.numel() * 4 / min(self._timed(data.sum) for _ in range(5))

    def _flops(self) -> float:
        a = torch.randn(2048, 2048, device=self.device, dtype=self.dtype)
        return 2 * 2048**3 / min(self._timed(lambda: a @ a) for _ in range(5))


class _CudaPeak:
    used = 0

    def __enter__(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()

    def __exit__(self, *_: object) -> None:
        self.used = torch.cuda.max_memory_allocated() - self._before


class _ResidentPeak:
    """By how much the resident size of this process grew at most, looked at every millisecond."""

    used = 0

    def __enter__(self) -> None:
        # of the GNU C library: freed memory would be used again, unseen
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._before = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _now(self) -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _look(self) -> None:
        while not self._ended.wait(0.001):
            self.used = max(self.used, self._now() - self._before)


def results(speed: Speed, points: Sequence[SpeedPoint], memory: MemoryUse | None) -> dict[str, Any]:
    """Return all that was measured, as plain data."""
    return {
        "machine": asdict(speed.machine()),
        "points": [asdict(p) for p in points],
        "memory": memory and asdict(memory),
    }
