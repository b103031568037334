"""
A fresh process with torch and transformers takes six seconds, nearly all of them to import the two. Here one that has
imported them, and done nothing else, waits, and whoever asks gets a copy of it (`fork`) within a tenth of a second. The
copy has run no code of ours and holds nothing but what was imported.

    server:  python ready.py SOCKET                           once per worker of pytest; ends when its input does
    client:  python -S -E ready.py SOCKET SCRIPT [ARGUMENT]   in place of `python SCRIPT [ARGUMENT]`

The client hands over its folder, environment and standard streams, and ends as the copy does. If it is killed, so is
the copy.
"""

import json
import os
import select
import socket
import sys

AUTO, LLAMA = "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"
MODULES = ("torch", "transformers", AUTO, LLAMA)
# Read from the environment when they are imported, which was before.
CACHES = {
    "huggingface_hub.constants": ("HF_HUB_CACHE", "HF_XET_CACHE"),
    "transformers.utils.hub": ("HF_MODULES_CACHE",),
    "transformers.dynamic_module_utils": ("HF_MODULES_CACHE",),
}


def ask(path: str, command: list[str]) -> int:
    """Runs the command in a copy of the server. Returns its exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(server, [len(text := json.dumps(request).encode()).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(text)
        return int.from_bytes(server.recv(1) or b"\x01", "big")


def serve(path: str) -> None:
    import importlib
    import signal

    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the copies
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path + ".new")
        listening.listen()
        os.rename(path + ".new", path)
        while listening in select.select([listening, sys.stdin], [], [])[0]:
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                become(client)
            client.close()


def become(client: socket.socket) -> None:
    """Runs what the client asks for. Does not return."""
    import runpy
    import threading
    import traceback

    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        text += client.recv(1 << 20)
    request = json.loads(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)

    def watch() -> None:
        client.recv(1)  # the client says no more: this is its end
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for module, names in CACHES.items():
        for name in names:
            if name in os.environ:
                setattr(sys.modules[module], name, os.environ[name])
    sys.argv = request["command"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    client.sendall(bytes([status & 255]))
    os._exit(status)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
