"""llama.cpp's own server, from the package xllamacpp, as a process: prints its address, and ends with its stdin.

python -m tests.standins.llama_server MODEL N_CTX
"""

from __future__ import annotations

import sys


def main() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = int(sys.argv[2])
    params.n_parallel = 2
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.no_extra_bufts = True  # some builds crash on CPUs that report AMX
    params.cpuparams.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
