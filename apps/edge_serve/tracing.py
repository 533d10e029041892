"""Traces of requests for OpenTelemetry, if the user asks for them (`edge serve --otel`; extra `otel`).

A request becomes a span when it is over, from the times that its record has anyway, so tracing costs nothing while a reply is
generated. Below it is a span for each reply ("chat MODEL", with the GenAI attributes), and below that its wait in the queue,
the prefill of its prompt and its decoding. No span has any text of a prompt or a reply.

The SDK reads the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...); without --otel
nothing of it is imported, and no variable counts.

Source: OpenTelemetry's semantic conventions for HTTP and for generative AI.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from typing import TYPE_CHECKING, Any

import edge
from edge.errors import BackendUnavailableError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

    from edge.reply import Reply
    from edge_serve.call import Record

__all__ = ["Tracing", "make_tracing"]

_TEXT_ROUTES = ("/v1/completions", "/api/generate")
_CLOSE_S = 5.0  # a collector that does not answer is not waited for any longer
_PARENT = ("traceparent", "tracestate")


def make_tracing() -> Tracing:
    """Return what sends traces to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, else to port 4318 of this machine.

    Raises:
        BackendUnavailableError: the packages for it are not installed.
    """
    name = "opentelemetry.exporter.otlp.proto.http"
    try:
        is_there = importlib.util.find_spec("opentelemetry.sdk") is not None and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise BackendUnavailableError(
            "The packages for OpenTelemetry are not installed.", "Install them: pip install 'edge-assistant[otel]'"
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracing(OTLPSpanExporter())


class Tracing:
    """Sends the spans of requests.

    Args:
        exporter: where they go.
        is_batched: in the background, some seconds later; else at once.
    """

    def __init__(self, exporter: SpanExporter, *, is_batched: bool = True) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        resource = Resource.create({SERVICE_VERSION: edge.__version__})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):  # no variable names it
            resource = resource.merge(Resource({SERVICE_NAME: "edge"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor((BatchSpanProcessor if is_batched else SimpleSpanProcessor)(exporter))
        self._tracer = self._provider.get_tracer("edge_serve", edge.__version__)

    def add(self, record: Record, route: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Make the spans of a request that is over.

        Args:
            record: of the request.
            route: its path, as the server names it; "" if there is no such.
            headers: of the request; `traceparent` names the span that it belongs to.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers}
        parent = TraceContextTextMapPropagator().extract({key: carrier[key] for key in _PARENT if key in carrier})
        end, clock = time.time_ns(), time.perf_counter()
        attributes: dict[str, Any] = {
            "http.request.method": record.method if record.method.isalpha() and len(record.method) < 10 else "_OTHER",
            "http.response.status_code": record.status,
            "edge.request.id": record.id,
        }
        if route:
            attributes["http.route"] = route
        if record.status >= 500:
            attributes["error.type"] = str(record.status)
        name = f"{attributes['http.request.method']} {route}".strip()
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=end - _ns(clock - record.began))
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        below = set_span_in_context(span, parent)
        if record.load_s and record.asked_at:
            asked = end - _ns(clock - record.asked_at)
            self._span("load", below, asked - _ns(record.load_s), asked, {"gen_ai.request.model": record.model})
        for reply in record.replies:
            self._add_reply(reply, record, route, below, end - _ns(clock - record.asked_at))
        span.end(end)

    def close(self) -> None:
        """Send what is left, or give up after some seconds."""
        # The SDK has a limit, too, and tries again beyond it.
        closing = threading.Thread(target=self._provider.shutdown, name="edge-otel-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _add_reply(self, reply: Reply, record: Record, route: str, parent: Context, asked: int) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        usage, timing = reply.usage, reply.timing
        operation = "text_completion" if route in _TEXT_ROUTES else "chat"
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "edge",
            "gen_ai.request.model": record.model,
            "gen_ai.response.model": record.model,
            "gen_ai.response.finish_reasons": (reply.finish_reason or "cancelled",),
            "gen_ai.usage.input_tokens": usage.n_prompt,
            "gen_ai.usage.output_tokens": usage.n_generated,
            "gen_ai.usage.cache_read.input_tokens": usage.n_reused,
        }
        end = asked + _ns(timing.total_ms / 1000)
        span = self._tracer.start_span(f"{operation} {record.model}", parent, SpanKind.INTERNAL, attributes, start_time=asked)
        below = set_span_in_context(span, parent)
        started = asked + _ns(timing.queue_ms / 1000)
        if timing.total_ms:
            self._span("queue", below, asked, started, {})
            prefill = {"edge.prompt.computed_tokens": usage.n_prompt - usage.n_reused}
            self._span("prefill", below, started, started + _ns(timing.prefill_ms / 1000), prefill)
        if timing.decode_ms:
            self._span(
                "decode", below, end - _ns(timing.decode_ms / 1000), end, {"gen_ai.usage.output_tokens": usage.n_generated}
            )
        span.end(end)

    def _span(self, name: str, parent: Context, start: int, end: int, attributes: dict[str, Any]) -> None:
        self._tracer.start_span(name, parent, attributes=attributes, start_time=start).end(end)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
