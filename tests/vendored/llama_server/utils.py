# What llama.cpp's server tests import, with `edge serve` as the server: see README.md. The helpers at the end are llama.cpp's.
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time  # noqa: F401 (the tests take it from here)
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from re import RegexFlag
from typing import Any, Callable, Iterator, List, Literal, Tuple  # noqa: F401

import requests

MODEL = Path(os.environ["EDGE_TEST_MODEL"])
EDGE = Path(sys.executable).with_name("edge")
_STORIES = (
    "But she couldn't", "(Suddenly)+", "(Suddenly)+|\\{ \" Sarax.", "(Aside|she|felter|alonger)+", "Whillicter", "(going|bed)+",
)  # fmt: skip
"""What llama.cpp's test model writes. Ours has to write something."""

MAX_SERVERS = 3

_NATIVE = ("/completion", "/completions")
"""llama.cpp's own protocol, which `edge serve` does not speak: it is asked for the same by OpenAI's."""


def _from_native(data: dict) -> dict:
    names = {"n_predict": "max_tokens"}
    return {names.get(name, name): value for name, value in data.items()}


def _to_native(body: dict) -> dict:
    return {"content": body["choices"][0]["text"], "timings": body.get("timings")}


class ServerResponse:
    headers: dict
    status_code: int
    body: dict | Any


class ServerError(Exception):
    def __init__(self, code, body):
        self.code = code
        self.body = body


class ServerProcess:
    """`edge serve` with the options that these tests set. The last few servers stay up for tests with the same options."""

    server_host = "127.0.0.1"
    server_port = 0
    model_alias: str = "tinyllama-2"
    temperature = 0.8
    seed = 42
    n_ctx: int = 512
    n_slots: int = 2
    n_batch: int | None = None
    n_predict: int | None = None
    api_key: str | None = None
    jinja: bool | None = None  # always
    chat_template: str | None = None
    debug = False
    server_slots = False
    server_metrics = True

    _running: dict[tuple, tuple[subprocess.Popen, int]] = {}
    """Options -> server and port, the one used last at the end. A server takes two seconds to start, and idle it takes no time."""
    _folder = tempfile.TemporaryDirectory()

    def start(self, timeout_seconds: int = 0) -> None:
        options = (
            self.model_alias,
            self.n_ctx // self.n_slots,
            self.n_slots,
            self.temperature,
            self.seed,
            self.n_predict,
            self.api_key,
        )
        running = ServerProcess._running
        if options not in running and len(running) == MAX_SERVERS:
            self._end(next(iter(running)))
        running[options] = running.pop(options, None) or self._start()
        self.server_port = running[options][1]
        while self.make_request("GET", "/health").status_code != 200:
            time.sleep(0.01)

    def _start(self) -> tuple[subprocess.Popen, int]:
        folder = Path(self._folder.name)
        model = folder / f"{self.model_alias}.gguf"  # a model is called like its file
        if not model.exists():
            model.symlink_to(MODEL)
        command = [EDGE, "serve", "-m", model, "--port", "0", "--json", "--log", "off", "--grace", "1"]
        command += ["--context", str(self.n_ctx // self.n_slots), "--parallel", str(self.n_slots)]
        command += ["--temperature", str(self.temperature), "--seed", str(self.seed)]
        if self.n_predict and self.n_predict > 0:
            command += ["--max-tokens", str(self.n_predict)]
        if self.api_key:
            keys = folder / "keys.txt"
            keys.write_text(self.api_key)
            command += ["--keys", keys]
        names = {"HOME": self._folder.name, "PATH": os.defpath, "EDGE_CACHE_DIR": self._folder.name, "EDGE_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=names)
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        return process, int(url.rpartition(":")[2])

    @staticmethod
    def _end(options: tuple) -> None:
        process, _ = ServerProcess._running.pop(options)
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    @staticmethod
    def end() -> None:
        """End the servers that run."""
        for options in list(ServerProcess._running):
            ServerProcess._end(options)

    def stop(self) -> None:
        """Nothing: the next test with the same options uses the server again."""

    def make_url(self, path: str) -> str:
        return f"http://{self.server_host}:{self.server_port}{path}"

    def _data(self, data: dict | Any | None) -> dict | Any | None:
        """Name the model that there is: llama.cpp's server answers whatever is named, ours says that there is no such model."""
        if isinstance(data, dict) and isinstance(data.get("model"), str):
            return {**data, "model": self.model_alias}
        return data

    def make_request(
        self, method: str, path: str, data: dict | Any | None = None, headers: dict | None = None, timeout: float | None = None
    ) -> ServerResponse:
        is_native = path in _NATIVE
        if path == "/slots":
            return self._slots(headers)
        if is_native:
            path, data = "/v1/completions", _from_native(data)
        asked = {"json": self._data(data)} if method == "POST" else {}
        response = requests.request(method, self.make_url(path), headers=headers, timeout=timeout, **asked)
        result = ServerResponse()
        result.headers = dict(response.headers)
        result.status_code = response.status_code
        try:
            result.body = response.json()
        except requests.exceptions.JSONDecodeError:
            result.body = response.text
        if is_native and response.status_code == 200:
            result.body = _to_native(result.body)
        return result

    def _slots(self, headers: dict | None) -> ServerResponse:
        """Return the state of llama.cpp's slots: as many are at work as replies run."""
        result = self.make_request("GET", "/status", headers=headers)
        n_busy = len(result.body["replies"])
        result.body = [{"id": number, "is_processing": number < n_busy} for number in range(self.n_slots)]
        return result

    def make_stream_request(
        self, method: str, path: str, data: dict | None = None, headers: dict | None = None
    ) -> Iterator[dict]:
        is_native = path in _NATIVE
        if is_native:
            path, data = "/v1/completions", _from_native(data)
        response = requests.request(method, self.make_url(path), headers=headers, json=self._data(data), stream=True)
        if response.status_code != 200:
            raise ServerError(response.status_code, response.json())
        for line_bytes in response.iter_lines():
            line = line_bytes.decode("utf-8")
            if "[DONE]" in line:
                break
            elif line.startswith("data: "):
                part = json.loads(line[6:])
                yield _to_native(part) if is_native else part


class ServerPreset:
    @staticmethod
    def tinyllama2() -> ServerProcess:
        server = ServerProcess()
        server.n_predict = 64
        return server


def match_regex(regex: str, text: str) -> bool:
    if regex in _STORIES:
        return bool(text)
    return re.compile(regex, flags=RegexFlag.IGNORECASE | RegexFlag.MULTILINE | RegexFlag.DOTALL).search(text) is not None


def parallel_function_calls(function_list: List[Tuple[Callable[..., Any], Tuple[Any, ...]]]) -> List[Any]:
    results = [None] * len(function_list)

    def worker(index, func, args):
        results[index] = func(*args)

    with ThreadPoolExecutor() as executor:
        for future in as_completed([executor.submit(worker, i, func, args) for i, (func, args) in enumerate(function_list)]):
            future.result()
    return results
