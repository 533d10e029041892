"""The process of one run of the program that `edge ladder` measures."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Answer the requests on stdin. Output of engines goes to stderr."""
    from edge import load
    from edge.bench.ladder_child import serve
    from edge.child import claim_stdout

    send = claim_stdout()
    serve(sys.stdin.buffer, send, load)
