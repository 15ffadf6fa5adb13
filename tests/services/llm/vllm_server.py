"""A real vLLM server, from an environment of its own, for as long as a test takes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

PYTHON = os.environ.get("SHORTLIST_VLLM_PYTHON", "")
START_S = 480
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip


@contextmanager
def serve_vllm(
    folder: Path,
    log: Path,
    max_tokens: int = 512,
    *,
    dtype: str = "float32",
    num_threads: int = 1,
    num_sequences: int = 8,
) -> Iterator[str]:
    """Serve the model in `folder` under the name "llm"; yields the URL, on 127.0.0.1.

    Raises RuntimeError, with the end of the log, for a server that ends or is not up in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # `vllm serve` looks for a distribution named vllm, which the build for CPUs is not.
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "llm", "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    command += ["--max-model-len", str(max_tokens), "--max-num-seqs", str(num_sequences), "--enforce-eager"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": str(num_threads)}, cwd=log.parent,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(server)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    said = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    raise RuntimeError(f"vLLM is not up after {START_S} s, exit status {server.poll()}:\n{said}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(30.0)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # its workers too, whether it took them along or not
    server.wait()
