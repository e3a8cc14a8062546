"""A small real HTTP server of the chat API, for what `transformers serve` would not do: prices, refusals."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer:
    """`answer(n, body)` is what the n-th request (from 1) gets as content, or (status, JSON)."""

    def __init__(self, answer):
        self.answer = answer
        self.usage = {"prompt_tokens": 100, "completion_tokens": 10}
        self.model = "tiny-1"
        self.bodies, self.headers, self.lock = [], [], threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
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

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    n = len(server.bodies)
                said = server.answer(n, body)
                status, value = said if isinstance(said, tuple) else (200, None)
                if value is None:
                    message = {"role": "assistant", "content": said}
                    value = {"model": server.model, "choices": [{"message": message}]}
                    if server.usage:
                        value["usage"] = server.usage
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler
