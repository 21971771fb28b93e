"""Serve a web page and a JSON interface that translate with trained models.

    python scripts/serve.py RUN [RUN ...] [--port 8000] [--host 127.0.0.1]

RUN is a folder of scripts/train.py. The page shows the translations of all runs side by
side and how the beam search of a run found them. Only this computer can reach it unless
`--host` is the address of a network. docs/serve.md describes the JSON interface.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import importlib.util
import logging
import socket
import sys
from pathlib import Path
from typing import Callable

from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import UserError, run_command_line

_MAX_CONNECTIONS = 500


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    missing = [
        name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise UserError(
            f"`serve.py` needs {' and '.join(missing)}: run `bash scripts/setup.sh`, "
            'or `pip install "fairseq-soft-topk[serve]"`.'
        )
    import uvicorn

    from fairseq_plugins.serving.app import create_app, is_loopback
    from fairseq_plugins.serving.served_run import load_served_runs

    # Loading takes a while, so a port that is not free is reported first.
    with _listen(arguments.host, arguments.port) as listener:
        runs = load_served_runs(
            arguments.runs, checkpoint=arguments.checkpoint, use_gpu=not arguments.cpu
        )
        address, port = listener.getsockname()[:2]
        is_local = is_loopback(address)
        if not is_local:
            logging.warning(
                "Warning: everyone who can reach `%s` can use this server. It has no "
                "passwords and no encryption.",
                arguments.host,
            )
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        app = create_app(runs, queue_size=arguments.queue, is_local=is_local)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
        print(f"http://{host}:{port} (Ctrl-C ends)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(
            f"`--host` and `--port` must be an address of this computer and a free "
            f"port, but with `{host}` and {port} the error is: {error.strerror}."
        ) from None


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    add(
        "--port",
        type=_port,
        default=8000,
        help="0 is any free port; default: %(default)s",
    )
    add(
        "--host", default="127.0.0.1", help="address to listen on; default: %(default)s"
    )
    add("--checkpoint", default="best", help="best, last, average or a path")
    add("--queue", type=at_least(1), default=32, metavar="N",
        help="requests that may wait for the models; default: %(default)s")  # fmt: skip
    add("--cpu", action="store_true", help="do not use a GPU")
    return parser.parse_args()


def _port(text: str) -> int:
    port = at_least(0)(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"must be at most 65535, but is {port}")
    return port


if __name__ == "__main__":
    sys.exit(run_command_line(main))
