"""Counters of what was served, and the page of them that Prometheus reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_serve.call import Record
    from edge_serve.service import Service

__all__ = ["Counters", "Histogram", "page"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SMOOTHING = 0.2


@dataclass
class Histogram:
    """Counts of values up to each bound, as Prometheus has them.

    Attributes:
        bounds: upper bounds, ascending; one without bound follows.
        counts: values within each bound that are above the one before.
        total: sum of the values.
    """

    bounds: Sequence[float] = _SECONDS
    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total: float = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        place = next((n for n, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (bound, number of values up to it)."""
        found, n = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            n += count
            found.append((bound, float(n)))
        return found


@dataclass
class Counters:
    """Of one server since its start. Changed by the event loop only.

    Attributes:
        requests: by (path, status).
        tokens: by (model, kind): "prompt", "cached" (of that, from memory), "restored" (of that, from the disk), "generated".
        finishes: replies by (model, finish reason).
        seconds, first_token: duration of requests for replies, and time to the first text, in seconds.
        stripped: blocks that were left out of prompts since they change with every request (docs/serve.md).
        reply_s: duration of the newest replies, smoothed, in seconds.
        tokens_per_s: speed of the newest reply.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    finishes: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)
    stripped: int = 0
    reply_s: float = 2.0
    tokens_per_s: float = 0.0

    def add(self, record: Record, path: str, seconds: float) -> None:
        """Count a request that is over.

        Args:
            record: of the request.
            path: of its route; requests of unknown paths are counted together.
            seconds: that it took.
        """
        self.requests[path, record.status] += 1
        for reply in record.replies:
            usage, model = reply.usage, record.model
            self.tokens[model, "prompt"] += usage.n_prompt
            self.tokens[model, "cached"] += usage.n_reused - usage.n_restored
            self.tokens[model, "restored"] += usage.n_restored
            self.tokens[model, "generated"] += usage.n_generated
            self.tokens_per_s = reply.timing.tokens_per_s(usage.n_generated) or self.tokens_per_s
            self.finishes[model, reply.finish_reason or "cancelled"] += 1
            if reply.timing.first_token_ms:
                self.first_token.add(reply.timing.first_token_ms / 1000)
        if record.replies:
            self.seconds.add(seconds)
            self.reply_s += _SMOOTHING * (seconds - self.reply_s)


def page(service: Service) -> tuple[bytes, str]:
    """Return the page for Prometheus and its content type."""
    from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Collector:
    """Reads counters and models at the moment of a scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        counters, runtime = self._service.counters, self._service.runtime

        def counted(name: str, about: str, labels: list[str], values: Counter[tuple[str, Any]]) -> Any:
            family = CounterMetricFamily(f"edge_{name}", about, labels=labels)
            for key, value in list(values.items()):
                family.add_metric([str(part) for part in key], value)
            return family

        yield counted("requests", "Requests by route and status.", ["route", "status"], counters.requests)
        yield counted("tokens", "Tokens of replies and their prompts.", ["model", "kind"], counters.tokens)
        yield counted("replies", "Replies by the reason of their end.", ["model", "finish_reason"], counters.finishes)
        stripped = CounterMetricFamily("edge_stripped_blocks", "Blocks left out of prompts to keep their prefix the same.")
        stripped.add_metric([], counters.stripped)
        yield stripped
        for name, about, histogram in (
            ("request_seconds", "Duration of requests for replies.", counters.seconds),
            ("first_token_seconds", "Time to the first text of a reply.", counters.first_token),
        ):
            family = HistogramMetricFamily(f"edge_{name}", about)
            family.add_metric([], buckets=histogram.cumulative(), sum_value=histogram.total)
            yield family
        running = GaugeMetricFamily("edge_running_replies", "Replies that the engine works on.", labels=["model"])
        waiting = GaugeMetricFamily("edge_waiting_replies", "Replies that wait for the engine.", labels=["model"])
        memory = GaugeMetricFamily("edge_model_memory_bytes", "Planned memory of a loaded model.", labels=["model"])
        for model in runtime.loaded:
            running.add_metric([model.name], model.assistant.n_running)
            waiting.add_metric([model.name], model.assistant.n_waiting)
            memory.add_metric([model.name], model.memory_bytes)
        for embedder in runtime.loaded_embedders:
            memory.add_metric([embedder.name], embedder.memory_bytes)
        yield from (running, waiting, memory)
