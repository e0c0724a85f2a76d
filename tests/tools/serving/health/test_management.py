"""What the management address answers, and what is made of answers that are none."""

from __future__ import annotations

import http.server
import threading

import pytest

from camserve.tools.serving.health.management import Management


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not JSON", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"models": 3}', "TypeError"),
        ("{}", "KeyError"),
        (None, "HTTPError: 400"),
    ],
)
def test_answers_that_are_of_no_use(content: str | None, words: str) -> None:
    """Whatever answers at the address, it ends no wait with another error; what came is kept."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if content else 400)
            self.end_headers()
            self.wfile.write((content or "").encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        management = Management(f"http://127.0.0.1:{other.server_port}")
        assert management.fetch_models() is None
        assert words in management.last_error
        management.close()
        other.shutdown()
