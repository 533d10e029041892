"""llama.cpp's own server, from the package xllamacpp, as a process: prints its address, and ends with its stdin.

python -m tests.standins.llama_server MODEL N_CTX [--parallel N] [--threads N] [--repack]
"""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("n_ctx", type=int)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repack", action="store_true", help="some builds crash so on CPUs that report AMX")
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_ctx = options.n_ctx
    params.n_parallel = options.parallel
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.no_extra_bufts = not options.repack
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
