"""The endpoint that huggingface_hub has in all tests: a port of this process, where `loopback_hub.py` may be started.

Imported before huggingface_hub, which reads its endpoint once. Nothing listens at the port until a test wants the Hub,
so that no other test can depend on the network.
"""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

SOCKET = socket.socket()
SOCKET.bind(("127.0.0.1", 0))
ENDPOINT = f"http://127.0.0.1:{SOCKET.getsockname()[1]}"
os.environ["HF_ENDPOINT"] = ENDPOINT
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.pop("HF_TOKEN", None)

SECRET = "hf_this_must_not_be_shown"


class Hub:
    """A server of `loopback_hub.py`, and what tests have it do."""

    def __init__(self):
        self.saved = set()
        SOCKET.listen()
        command = [sys.executable, Path(__file__).with_name("loopback_hub.py"), f"fd:{SOCKET.fileno()}"]
        self.process = subprocess.Popen(command, pass_fds=[SOCKET.fileno()], stdout=subprocess.DEVNULL)

    def ask(self, path, data=None):
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(ENDPOINT + path, data=body) as answer:
            return json.loads(answer.read() or b"null")

    def begin(self, storage):
        """Go back to what was saved with this storage, or to no repository at all."""
        self.ask("/_begin", {"storage": storage, "saved": storage})

    def save(self, storage):
        self.ask("/_save", {"name": storage})
        self.saved.add(storage)

    def fault(self, on, do, times=99, **more):
        """Make the next requests that match fail."""
        self.ask("/_fault", {"on": on, "do": do, "times": times, **more})

    def reset(self):
        """Forget faults and the log of requests."""
        self.ask("/_reset", {})

    def log(self):
        return self.ask("/_log")

    def weights_bytes(self):
        """Count the bytes of the weights file that were sent."""
        return sum(e["sent"] for e in self.log() if re.match(r"GET .*(safetensors|_lfs)", e["request"]))

    def stop(self):
        self.process.kill()
        self.process.wait()
