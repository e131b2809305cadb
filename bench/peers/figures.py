"""Figures of a comparison.  Enters: series of measurements and the model's sizes; leaves: medians, ratios, spreads, and
what part of the machine's limit each is.

A ratio is that of medians, halfbyte's over the peer's; its spread goes from the lowest to the highest ratio of one
turn, in which both were measured one after the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...quant.gguf_reader import open_gguf
from ...runtime.models import read_model
from .engines import ENGINES, OURS
from .turns import PEAK, STARTS, Case, Series

BYTES = (STARTS["resident"], PEAK)
"""Figures in bytes; those with a case are tokens per second, the others seconds."""

_EXPERTS = "_exps.weight"  # how names of tensors of experts end


@dataclass(frozen=True)
class ModelSizes:
    """What one token takes.

    layer_weights   elements of the layers' matrices, each multiplied with every token
    output_weights  elements of the output matrix, multiplied with the last token only
    matrix_bytes    bytes of both in the GGUF file
    position        elements of keys and values of one position
    expert_weights  elements of all experts' matrices, and
    expert_bytes    their bytes in the file
    used            part of the experts that a token is multiplied with
    """

    layer_weights: int
    output_weights: int
    matrix_bytes: int
    position: int
    expert_weights: int = 0
    expert_bytes: int = 0
    used: float = 1.0

    def bytes_per_token(self, case: Case, weight_bytes: float | None, cache_bytes: float) -> float:
        """Return the bytes of weights, keys and values that generating one token reads, on average over the case.

        weight_bytes, cache_bytes  of one element, as an engine holds them (base.Peer)

        Sequences of a batch are taken to go to experts by chance, so that some are read for several of them.
        """
        read = 1 - (1 - self.used) ** case.batch
        if weight_bytes is None:
            weights = self.matrix_bytes + read * self.expert_bytes
        else:
            weights = weight_bytes * (self.layer_weights + self.output_weights + read * self.expert_weights)
        positions = case.n_depth + (case.n_gen + 1) / 2
        return weights / case.batch + cache_bytes * self.position * positions

    def operations_per_token(self, case: Case) -> float:
        """Return the multiplications and additions with weights that a token of the case's prompt takes, on average."""
        return 2 * (self.layer_weights + self.used * self.expert_weights + self.output_weights / case.n_prompt)


@dataclass(frozen=True)
class Spread:
    """A middle value, and the lowest and highest of what it was made of."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """One figure of one peer.

    engine    the way of running it that was best
    value     median of the turns, in tokens per second, seconds or bytes; None where it failed (`failures` says why),
              or where the system does not tell how much memory a process holds
    of_limit  part of the machine's limit, 1 for all of it; None for figures without one
    ratio     halfbyte's value over this one; None for halfbyte itself and where one failed
    samples   the value of each turn
    """

    engine: str
    value: Spread | None
    of_limit: float | None
    ratio: Spread | None
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One figure of every peer, by name; halfbyte is the first."""

    threads: int
    figure: str
    case: Case | None
    results: dict[str, Result]


@dataclass(frozen=True)
class Failure:
    """Why an engine gave no figure, and the first figure that it did not give."""

    engine: str
    threads: int
    figure: str
    reason: str


@dataclass(frozen=True)
class MachineLimits:
    """What the machine reached with a number of threads: bytes per second read, and integer operations per second."""

    threads: int
    read: Spread
    operations: Spread


def read_sizes(path: Path) -> ModelSizes:
    """Return the sizes of the model in a GGUF file; raises ModelFileError or UnsupportedError."""
    with open_gguf(path) as file:
        model = read_model(file)
        matrices = {name: view for name, view in file.tensors.items() if len(view.shape) > 1}
        output = matrices.get("output.weight", matrices["token_embd.weight"])
        experts = [view for name, view in matrices.items() if name.endswith(_EXPERTS)]
        layers = [view for name, view in matrices.items() if name.startswith("blk.") and not name.endswith(_EXPERTS)]
        used = file.get_int(f"{file.get_str('general.architecture')}.expert_used_count") if experts else 1
        return ModelSizes(
            layer_weights=sum(math.prod(view.shape) for view in layers),
            output_weights=math.prod(output.shape),
            matrix_bytes=sum(view.nbytes for view in layers) + output.nbytes,
            position=2 * model.n_layers * model.n_kv_heads * model.head_dim,
            expert_weights=sum(math.prod(view.shape) for view in experts),
            expert_bytes=sum(view.nbytes for view in experts),
            used=used / experts[0].shape[0] if experts else 1.0,
        )


def spread(values: Sequence[float]) -> Spread:
    """Return median, lowest and highest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the ratio of medians, and the lowest and highest ratio of the values of one turn."""
    turns = [a / b for a, b in zip(ours, theirs, strict=False)]
    return Spread(statistics.median(ours) / statistics.median(theirs), min(turns), max(turns))


def rows(found: Iterable[Series], sizes: ModelSizes) -> list[Row]:
    """Return a row for each number of threads and figure, in the order in which they were measured.

    A speed is that of the peer's best way; what is no speed is that of its way that is fastest over all speeds, since
    what a way does at its start it does for them.
    """
    found = list(found)
    fastest = _fastest_ways(found)
    grouped: dict[tuple[int, str], dict[str, list[Series]]] = {}
    for series in found:
        row = grouped.setdefault((series.threads, series.figure), {})
        row.setdefault(ENGINES[series.engine].peer, []).append(series)
    made = []
    for (threads, figure), peers in grouped.items():
        best = {peer: _best(ways, fastest.get((threads, peer))) for peer, ways in peers.items()}
        ours = best[OURS].values
        results = {peer: _result(series, ours if peer != OURS else [], sizes) for peer, series in best.items()}
        made.append(Row(threads, figure, best[OURS].case, results))
    return made


def _fastest_ways(found: Sequence[Series]) -> dict[tuple[int, str], str]:
    """For each number of threads and peer, its way of the most speeds, and of those the highest geometric mean."""
    speeds: dict[tuple[int, str], dict[str, list[float]]] = {}
    for series in found:
        if series.case and series.is_whole:
            ways = speeds.setdefault((series.threads, ENGINES[series.engine].peer), {})
            ways.setdefault(series.engine, []).append(statistics.median(series.values))

    def rank(values: list[float]) -> tuple[int, float]:
        return len(values), statistics.geometric_mean(values)

    return {key: max(ways, key=lambda way: rank(ways[way])) for key, ways in speeds.items()}


def _best(ways: Sequence[Series], fastest: str | None) -> Series:
    """Return the best of several ways of running a peer: the fastest; for no speed `fastest`, else the least."""
    whole = [series for series in ways if series.is_whole]
    if not whole:
        return ways[0]
    if ways[0].case is None:
        whole = [series for series in whole if series.engine == fastest] or whole
    return (max if ways[0].case else min)(whole, key=lambda series: statistics.median(series.values))


def _result(series: Series, ours: Sequence[float], sizes: ModelSizes) -> Result:
    if not series.is_whole:
        return Result(series.engine, None, None, None, tuple(series.values))
    value = spread(series.values)
    compared = ratio(ours, series.values) if ours else None
    return Result(series.engine, value, _of_limit(series, value, sizes), compared, tuple(series.values))


def _of_limit(series: Series, value: Spread, sizes: ModelSizes) -> float | None:
    """Return a speed as part of what the machine reached in the same turns: of reading, of multiplying for prompts."""
    case = series.case
    if case is None:
        return None
    if case.n_prompt:
        reached = sizes.operations_per_token(case) * value.middle
        return reached / statistics.median(limit["operations"] for limit in series.limits)
    reached = sizes.bytes_per_token(case, **series.facts) * value.middle
    return reached / statistics.median(limit["read"] for limit in series.limits)


def failures(found: Iterable[Series]) -> list[Failure]:
    """Return each reason once for an engine and a number of threads, also where another way of the peer went well."""
    seen: dict[tuple[str, int, str], Failure] = {}
    for series in found:
        if series.failed:
            failure = Failure(series.engine, series.threads, series.figure, series.failed)
            seen.setdefault((series.engine, series.threads, series.failed), failure)
    return list(seen.values())


def machine_limits(found: Iterable[Series]) -> list[MachineLimits]:
    """Return what was measured between the engines, for each number of threads."""
    seen: dict[int, list[dict[str, float]]] = {}
    for series in found:
        if series.engine == OURS:  # the others of the same figure share its list
            seen.setdefault(series.threads, []).extend(series.limits)
    return [
        MachineLimits(threads, spread([x["read"] for x in limits]), spread([x["operations"] for x in limits]))
        for threads, limits in seen.items()
        if limits
    ]
