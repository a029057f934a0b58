"""Carries out the steps of a page in one process of the installed package: ``python driver.py STEPS.json``.

A step is ``["onepeace", …words]``, ``["python", "-m", module, …words]``, ``["run", program text]`` or ``["curl", …]``.
A server goes on in the background on a free port, which stands for the one that the pages name.
"""

import json
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

NAMED = "http://127.0.0.1:8000"
served = NAMED


def serve_in_background(app: Any, **settings: Any) -> None:
    """What ``uvicorn.run`` does, without waiting for its end."""
    import uvicorn

    global served
    server = uvicorn.Server(uvicorn.Config(app, **{**settings, "port": 0}))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    served = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def main(steps: list[list[str]]) -> None:
    """Carry them out; the first that fails ends it."""
    from onepeace_lightning import cli

    names: dict[str, Any] = {"__name__": "__page__"}
    for first, *words in steps:
        print("$", first, *words, flush=True)
        if first == "onepeace":
            if words[0] == "serve":
                import uvicorn

                uvicorn.run = serve_in_background
            cli.main(words)
        elif first == "python":
            sys.argv = words[1:]
            try:
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            except SystemExit as error:
                if error.code:
                    raise
        elif first == "run":
            exec(compile(words[0].replace(NAMED, served), "<page>", "exec"), names)
        elif first == "curl":
            print(
                subprocess.check_output([first, "--fail", *(word.replace(NAMED, served) for word in words)], text=True)
            )
        else:
            raise ValueError(f"a page says {first}, which the test does not know")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
