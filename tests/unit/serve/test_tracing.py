"""Traces for OpenTelemetry: their spans, times and attributes, nothing of prompts, and a collector that gets them."""

from __future__ import annotations

import http.server
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from edge_serve.call import Record
from edge_serve.tracing import Tracing
from tests.serving import Serving, serving, wait_until

SECRET = "nobody may read this"
CHAT = "/v1/chat/completions"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def traced() -> Iterator[tuple[Serving, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    with serving(script=lambda text: f"{SECRET}: {text}", delay_s=0.001) as server:
        server.service.tracing = Tracing(exporter, is_batched=False)
        yield server, exporter


def spans(
    traced: tuple[Serving, InMemorySpanExporter], path: str, body: dict[str, Any], **headers: str
) -> dict[str, ReadableSpan]:
    """Ask, and return the spans of it by name."""
    server, exporter = traced
    exporter.clear()
    server.post(path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    wait_until(lambda: any(span.name.startswith("POST") for span in exporter.get_finished_spans()))
    return {span.name: span for span in exporter.get_finished_spans()}


def messages(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 8, **more}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_tree_of_its_phases(traced: Any, stream: bool) -> None:
    found = spans(traced, CHAT, messages(stream=stream), traceparent=PARENT)
    root, reply = found[f"POST {CHAT}"], found["chat tiny"]
    phases = [found[name] for name in ("queue", "prefill", "decode")]
    assert f"{root.context.trace_id:032x}" == PARENT.split("-")[1]
    assert root.parent is not None and f"{root.parent.span_id:016x}" == PARENT.split("-")[2]
    assert reply.parent is not None and reply.parent.span_id == root.context.span_id
    assert {span.parent.span_id for span in phases if span.parent} == {reply.context.span_id}
    assert root.attributes is not None and reply.attributes is not None
    assert (root.attributes["http.route"], root.attributes["http.response.status_code"]) == (CHAT, 200)
    assert dict(reply.attributes) | {"gen_ai.usage.cache_read.input_tokens": 0} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "edge",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": len(f"<user\n{SECRET}>\n<assistant\n"),
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    times = [(span.start_time, span.end_time) for span in (root, reply, *phases)]
    assert all(start is not None and end is not None and start <= end for start, end in times)
    order = [root, *phases, root]
    for one, next_one in itertools.pairwise(order):
        first = one.start_time if one is root else one.end_time
        then = next_one.end_time if next_one is root else next_one.start_time
        assert first is not None and then is not None and first <= then + 1_000_000, (one.name, next_one.name)


def test_choices_texts_and_errors_have_theirs(traced: Any) -> None:
    _, exporter = traced
    spans(traced, CHAT, messages(n=3))
    assert [span.name for span in exporter.get_finished_spans()].count("chat tiny") == 3
    assert "text_completion tiny" in spans(traced, "/v1/completions", {"prompt": SECRET, "max_tokens": 2})
    failed = spans(traced, CHAT, messages(temperature=-1))[f"POST {CHAT}"]
    assert failed.attributes is not None and failed.attributes["http.response.status_code"] == 400
    assert "POST" in spans(traced, f"/{SECRET.replace(' ', '-')}", {}), "an unknown path is no name, there may be any number"


def test_nothing_of_prompts_and_replies_is_in_them(traced: Any) -> None:
    _, exporter = traced
    spans(traced, CHAT, messages(user=SECRET, metadata={"x": SECRET}), x_request_id=SECRET)
    assert SECRET not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_a_collector_gets_them_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[ExportTraceServiceRequest] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            got.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        with serving() as silent:
            silent.post(CHAT, messages())
        assert silent.service.tracing is None
        with serving(server={"otel": True}) as server:
            server.post(CHAT, messages())
        collector.shutdown()
    (resource,) = [one for request in got for one in request.resource_spans]
    names = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert names["service.name"] == "edge"
    found = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(found) == sorted([f"POST {CHAT}", "chat tiny", "queue", "prefill", "decode", *({"load"} & set(found))])


def test_nothing_of_it_is_imported_unless_it_is_asked_for() -> None:
    code = "import sys, edge_serve.server; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_collector_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_serve.tracing._CLOSE_S", 0.01)
    released, is_asked = threading.Event(), threading.Event()

    class Hanging(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            is_asked.set()
            released.wait(60)
            return super().export(spans)

    tracing = Tracing(Hanging())
    record = Record("GET", "/health")
    tracing.add(record, "/health", [])
    closing = threading.Thread(target=tracing.close)
    closing.start()
    assert is_asked.wait(60)
    closing.join(30)
    assert not closing.is_alive()
    released.set()
