"""Says which addresses take no connection: `[[host, port], ...]` as JSON in, `[[host, error], ...]` out."""

import json
import socket
import sys
import threading

out: list[list[str]] = []


def look(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError as error:
        out.append([host, type(error).__name__])


threads = [threading.Thread(target=look, args=each) for each in json.loads(sys.argv[1])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stdout.write(json.dumps(sorted(out)))
