"""A small real HTTP server of the Open Inference Protocol that misbehaves on demand.

The well-behaved server is MLServer (test_mlserver.py); this one does what that would not.
"""

import contextlib
import json
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime


class Server:
    """`file` served as model `digits`. `requests` counts samples asked for by row of input.

    `trouble(n, answer)` may change the n-th inference's answer, raise, or sleep; `status(n)` may give
    another HTTP status.
    """

    def __init__(self, file, context=None):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.logits = lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]
        self.asked, self.inferences, self.lock = 0, 0, threading.Lock()
        self.trouble = lambda n, answer: answer
        self.status = lambda n: 200
        self.headers = []
        self.metadata = {
            "name": "digits", "versions": ["1"], "platform": "onnx",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
        }  # fmt: skip
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        if context:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def say(self, status, value):
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                server.headers.append(dict(self.headers))
                known = self.path == "/v2/models/digits"
                self.say(200 if known else 404, server.metadata if known else {"error": "no model"})

            def do_POST(self):
                server.headers.append(dict(self.headers))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                (given,) = body["inputs"]
                x = np.array(given["data"], np.float32).reshape(given["shape"])
                with server.lock:
                    server.inferences += 1
                    n = server.inferences
                status = server.status(n)
                if status != 200:
                    self.say(status, {"error": "busy"})
                    return
                logits = server.logits(x)
                output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape)}
                answer = {"outputs": [{**output, "data": logits.ravel().tolist()}]}
                with contextlib.suppress(BrokenPipeError, ConnectionError):
                    answer = server.trouble(n, answer)
                    if answer is None:
                        # Gone in the middle of the answer.
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    with server.lock:
                        server.asked += len(x)
                    self.say(200, answer)

        return Handler


def tls(certificate):
    """A server's context with a certificate made by trustme."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def hang(n, answer):
    time.sleep(5)
    return answer
