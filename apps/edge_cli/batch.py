"""`edge batch`: a file of requests in OpenAI's batch format, answered on this device."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.units import duration_text, plural
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.group import examples
from edge_cli.jsonl import Journal, Lines
from edge_cli.options import json_option, model_options, sampling_options, settings_from

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_serve.batch import BatchRequest
    from edge_serve.inside import Answered

__all__ = ["batch"]

EXAMPLES = examples(
    "edge batch prompts.jsonl --out answers.jsonl",
    "edge batch prompts.jsonl --out answers.jsonl -m smollm2-135m --temperature 0",
    "edge batch prompts.jsonl --out answers.jsonl --parallel 8",
    "edge batch prompts.jsonl --out answers.jsonl --errors failures.jsonl --json",
    "edge batch prompts.jsonl --out answers.jsonl --ray 10.0.0.5:6379 --threads 8",
    "edge batch - --out answers.jsonl < prompts.jsonl",
)
_LONGEST_S = 86_400.0


@click.command(epilog=EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File of the answers.")
@click.option("--errors", type=click.Path(path_type=Path), help="File of what failed. Default: OUT with .errors in its name.")
@model_options
@sampling_options
@click.option("--timeout", metavar="SECONDS", help="Longest time for one request.")
@click.option("--ray", default="", metavar="ADDRESS", help="Spread it over a Ray cluster: HOST:PORT, ray://HOST:PORT or auto.")
@json_option
@pass_app
def batch(app: App, file: Path, **options: Any) -> int:
    """Answer a file of requests (OpenAI's batch format).

    A line of FILE (- is stdin) is a JSON object with custom_id, method (POST), url (/v1/chat/completions, /v1/completions,
    /v1/responses or /v1/embeddings) and body. With -m that model gives all replies; otherwise the one that a body names, or the
    default one.

    Each answer is on the disk before the next one begins. After Ctrl-C, kill -9 or a power cut the same command goes on where
    it was, and it tries again what failed. At the end OUT is in the order of FILE; failures are in a file of their own, and
    the exit code is 1.

    Requests are answered one at a time, so that at temperature 0 an answer is exactly that of a run of its own. --parallel N
    answers N side by side: faster, and where two tokens are almost as likely the other one may be taken.

    --ray ADDRESS spreads the requests over the machines of a Ray cluster, which need edge and the model: an engine on each, or,
    with --threads N, one for every N of its CPUs. A machine that dies loses nothing but time.
    """
    from edge.errors import BackendUnavailableError

    if any(importlib.util.find_spec(name) is None for name in ("starlette", "prometheus_client")):
        raise BackendUnavailableError(
            "The server's packages are not installed, and they read the requests.",
            "Install them: pip install 'edge-assistant[server]'",
        )
    settings = _settings(app, options)
    out: Path = options["out"]
    errors: Path = options["errors"] or out.with_name(f"{out.stem}.errors{out.suffix}")
    lines = Lines(file)
    with Journal(out) as answers, Journal(errors, fresh=True) as failures:
        work = _Work(lines, answers, failures, settings, options["model"])
        work.read()
        began = time.monotonic()
        is_interrupted = False
        try:
            work.answer_on(options["ray"]) if options["ray"] else work.answer(app)
        except KeyboardInterrupt:
            is_interrupted = True
        else:
            answers.reorder(work.numbers[custom_id] for custom_id in work.order if custom_id in work.numbers)
        if not len(failures):
            failures.remove()
        _report(work, out, errors, time.monotonic() - began, is_interrupted=is_interrupted, as_json=options["as_json"])
    if is_interrupted:
        return signals.exit_code()
    return 1 if len(failures) else 0


def _settings(app: App, options: dict[str, Any]) -> Settings:
    from edge.catalog import check_reference
    from edge_serve.batch import with_whole_prompts

    defaults: dict[str, object] = {"kv.enabled": False, "server.timeout_s": _LONGEST_S}
    if options["parallel"] is None:
        defaults |= {"kv.exact": True, "engine.parallel": 1}
    settings = settings_from(app, options, defaults)
    if options["model"] is not None:
        check_reference(settings.model, settings)
    return with_whole_prompts(settings)


@dataclass
class _Work:
    """What is to be done, and what is.

    Attributes:
        lines: the requests.
        answers, failures: where results go.
        settings: of the models.
        model: that answers all requests; None is that of each.
        order: the custom ids of the file.
        numbers: custom id -> line of its answer.
        n_before: requests that had their answer.
        n_prompt, n_generated: tokens, as the answers say.
        has_unknown_model: a request names a model that is not here.
    """

    lines: Lines
    answers: Journal
    failures: Journal
    settings: Settings
    model: str | None
    order: dict[str, None] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    n_before: int = 0
    n_prompt: int = 0
    n_generated: int = 0
    has_unknown_model: bool = False
    _models: dict[str, None] = field(default_factory=dict)
    _is_left: bool = False

    def read(self) -> None:
        """Check all lines: what is not a request is a failure. Find what is answered already.

        Raises:
            UsageError: the answers are of other requests.
        """
        from edge.errors import UsageError
        from edge_serve.batch import VECTORS_PATH, read_request, refusal_line
        from edge_serve.errors import ApiError

        done: dict[str, tuple[int, object]] = {}
        for number, answer in enumerate(self.answers):
            is_one = isinstance(answer, dict) and isinstance(answer.get("custom_id"), str)
            if not is_one:
                hint = "Name another --out."
                raise UsageError(f"Line {number + 1:,} of {self.answers.path} is not an answer of a batch.", hint)
            done[answer["custom_id"]] = number, answer.get("id")
        with contextlib.closing(iter(self.lines)) as lines:
            for number, data in lines:
                try:
                    request = read_request(data, default=self.settings.model, model=self.model)
                    if request.custom_id in self.order:
                        message = f"The custom_id {request.custom_id[:100]!r} is that of an earlier line."
                        raise ApiError(400, message, code="duplicate_custom_id")
                except ApiError as error:
                    self.failures.append(refusal_line(data, number, error))
                    continue
                self.order[request.custom_id] = None
                if request.custom_id not in done:
                    self._is_left = True
                    if request.path != VECTORS_PATH:
                        self._models[request.model] = None
                elif done[request.custom_id][1] != request.id:
                    raise self._other(request.custom_id)
        if unknown := next((custom_id for custom_id in done if custom_id not in self.order), None):
            raise self._other(unknown)
        self.numbers = {custom_id: number for custom_id, (number, _) in done.items()}
        self.n_before = len(self.numbers)

    def _other(self, custom_id: str) -> Exception:
        from edge.errors import UsageError

        what = f"{self.answers.path} has an answer to another request, or of another model (custom_id {custom_id[:100]!r})."
        return UsageError(what, "Name another --out, or move that file away.")

    def answer(self, app: App) -> None:
        """Answer what is left."""
        from edge_cli.progress import CountProgress
        from edge_serve.batch import Batcher

        if not self._is_left:
            return
        with app.runtime(self.settings) as runtime:

            async def answer_all() -> None:
                batcher = Batcher(runtime, self.settings)
                with output.Status() as status:
                    status.show("loading the model")
                    n_at_once = await batcher.prepare(self._models) + 1
                with CountProgress("answered", len(self.order), self.n_before) as progress:

                    def note(request: BatchRequest, answered: Answered) -> None:
                        self._take(request, answered)
                        progress.step()

                    with contextlib.closing(self._waiting()) as waiting:
                        await batcher.answer(waiting, note, n_at_once=n_at_once)

            asyncio.run(answer_all())

    def answer_on(self, address: str) -> None:
        """Answer what is left on the machines of a Ray cluster."""
        import msgspec

        from edge.cluster import Cluster
        from edge.errors import UsageError
        from edge_cli.progress import CountProgress
        from edge_serve.batch import read_answer, worker_options

        if not self._is_left:
            return
        if (path := Path(self.settings.model)).exists() and not path.is_absolute():
            raise UsageError(f"The machines of a cluster do not find {path}.", "Give the whole path, the same on all of them.")
        begun: dict[int, BatchRequest] = {}

        def items() -> Iterator[tuple[int, bytes]]:
            with contextlib.closing(self._waiting()) as waiting:
                for number, request in enumerate(waiting):
                    begun[number] = request
                    yield number, msgspec.msgpack.encode(request)

        n_at_once = (self.settings.engine.parallel or 1) + (self.settings.engine.parallel not in (None, 1))
        with Cluster(address, n_cpus=self.settings.threads, n_at_once=n_at_once) as cluster:
            output.note(f"{plural(cluster.n_workers, 'engine')} on the cluster at {address}.")
            options = worker_options(self.settings, self._models)
            with CountProgress("answered", len(self.order), self.n_before) as progress:
                for done in cluster.map("edge_serve.batch:make_worker", options, items()):
                    request = begun.pop(done.number)
                    self._take(request, read_answer(done.data) if done.data is not None else _died())
                    progress.step()

    def _take(self, request: BatchRequest, answered: Answered) -> None:
        """Write an answer, or why there is none."""
        from edge_serve.batch import answer_line

        line = answer_line(request, answered)
        if answered.status == 200:
            self._count(answered)
            self.numbers[request.custom_id] = len(self.answers)
            self.answers.append(line)
        else:
            self.failures.append(line)
            self.has_unknown_model |= answered.status == 404

    def _waiting(self) -> Generator[BatchRequest, None, None]:
        """Yield the requests that are to be answered."""
        from edge_serve.batch import read_request
        from edge_serve.errors import ApiError

        begun: set[str] = set(self.numbers)
        with contextlib.closing(iter(self.lines)) as lines:
            for _, data in lines:
                with contextlib.suppress(ApiError):  # it is among the failures
                    request = read_request(data, default=self.settings.model, model=self.model)
                    if request.custom_id not in begun:
                        begun.add(request.custom_id)
                        yield request

    def _count(self, answered: Answered) -> None:
        import msgspec

        usage: dict[str, Any] = msgspec.json.decode(answered.body).get("usage") or {}
        self.n_prompt += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self.n_generated += usage.get("completion_tokens", usage.get("output_tokens", 0))


def _died() -> Answered:
    """Return the answer to a request over which every engine died."""
    from edge_serve.inside import Answered

    body = b'{"error": {"message": "Every engine that tried this request died.", "type": "server_error", "code": "died"}}'
    return Answered(500, "", body)


def _report(work: _Work, out: Path, errors: Path, seconds: float, *, is_interrupted: bool, as_json: bool) -> None:
    n_new, n_failed = len(work.numbers) - work.n_before, len(work.failures)
    if as_json:
        output.json_object(
            {
                "n": len(work.lines),
                "n_answered": len(work.numbers),
                "n_before": work.n_before,
                "n_failed": n_failed,
                "out": str(out),
                "errors": str(errors) if n_failed else None,
                "n_prompt": work.n_prompt,
                "n_generated": work.n_generated,
                "seconds": seconds,
                "is_complete": not is_interrupted,
            }
        )
        return
    if is_interrupted:
        output.note(
            f"Interrupted: {len(work.numbers):,} of {len(work.lines):,} are answered. The same command goes on from there."
        )
        return
    before = f", {work.n_before:,} were answered before" if work.n_before else ""
    rate = f", {work.n_generated / max(seconds, 1e-9):.1f} tokens/s" if work.n_generated else ""
    output.note(f"{plural(n_new, 'answer')} in {duration_text(seconds)}{rate}{before}: {out}")
    if n_failed:
        output.note(f"{n_failed:,} failed: {errors} says why. The same command tries them again.")
        if work.has_unknown_model:
            output.note("Some name a model that is not here: -m MODEL answers all requests with one.")
