"""A client for Python: asks a running server, and gives its answers types.

client = camserve.Client("http://127.0.0.1:8080/explanations/cats")
result = client.explain("cat.jpg", target="tabby")
result.save("overlay.png")
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from camserve.pictures.files.mask import Area, spell_area
from camserve.tools.client.answers import find_fault, read_json
from camserve.tools.client.deadline import Deadline, Wire
from camserve.tools.client.request import Picture, is_tensor, write_request
from camserve.tools.client.result import Result, read_result

TRIES = 5
"""How often a request is sent again, after 0.25, 0.5, 1, ... seconds or what the server's `Retry-After` says, as far as the call
has time: while the queue is full or the worker was lost (503), where a proxy in front lost it (500 or 502 that are not the
contract's), and where the connection to a server that had answered before breaks. A picture has one answer: no harm is done."""

LONGEST = 2000
"""Characters of a server's message that are kept."""


class CamserveError(Exception):
    """A request that got no answer.

    Attributes:
        status: the HTTP status; None: no server answered.
        type: the server's name for the error, such as `UnknownLabel`; `Unreachable` or `Timeout` where none answered.
        message: what is wrong, what came and what would be accepted.
    """

    def __init__(self, status: int | None, type: str, message: str) -> None:  # noqa: A002 the contract's word
        super().__init__(f"{type}: {message}" if status is None else f"{status} {type}: {message}")
        self.status = status
        self.type = type
        self.message = message


@dataclass(frozen=True)
class _Address:
    """A server's root, and the model (with its version) where the URL names it."""

    root: str
    model: str | None

    @classmethod
    def parse(cls, url: str) -> _Address:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            shown = url.rpartition("@")[2]
            raise ValueError(f"url: expected http://HOST:PORT or .../explanations/MODEL, got {shown!r}")
        root, model = parts.path.rstrip("/"), None
        for route in ("/explanations/", "/predictions/"):
            before, _, after = root.partition(route)
            if after:
                root, model = before, unquote(after)
        return cls(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{root}", model)

    def url(self, route: str, model: str | None) -> str:
        chosen = model or self.model
        if not chosen:
            raise ValueError("model: which one? Give model=..., or a URL that ends in /explanations/MODEL")
        return f"{self.root}/{route}/{quote(chosen, safe='/')}"


class Client:
    """Asks one server, over connections that stay open. Not safe for threads: give each its own.

    Args:
        url: the server's root, or its `.../explanations/MODEL[/VERSION]`.
        token: for a server that wants one, or a function that gives the present one (they may expire).
        timeout: seconds that a whole call may take: connecting, sending, waiting while the server's queue is full, and reading
            the answer. None: no limit.
    """

    def __init__(self, url: str, token: str | Callable[[], str] | None = None, timeout: float | None = 60) -> None:
        self._address = _Address.parse(url)
        self._timeout = timeout
        self._answered = False
        self._session = requests.Session()
        self._session.auth = TokenAuth(token)
        self._session.headers["user-agent"] = f"camserve/{_version()}"
        self._wire = Wire()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._wire)

    def __repr__(self) -> str:
        return f"Client({self._address.root!r}, model={self._address.model!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def predict(self, image: Picture, model: str | None = None) -> dict[str, float]:
        """Asks for the most probable labels and their probabilities, most probable first.

        Raises:
            CamserveError: no answer.
        """
        answer: dict[str, float] = self._post("predictions", model, image, {})
        return answer

    def explain(
        self,
        image: Picture,
        model: str | None = None,
        *,
        target: int | str | Sequence[int | str] | None = None,
        top_k: int | None = None,
        method: str | None = None,
        layer: str | Sequence[str] | None = None,
        check: bool | None = None,
        inside: Area | None = None,
        contours: float | Sequence[float] | None = None,
        overlay: bool = True,
        colormap: str | None = None,
        opacity: float | None = None,
    ) -> Result:
        """Explains a picture.

        Args:
            target: class index, label, or several of them; None: the most probable class.
            top_k: in place of targets, the k most probable classes.
            method, layer, check, colormap, opacity: None: the archive's defaults. Of several layers the method `refinecam`
                multiplies the maps.
            check: have the model asked how far each heatmap is borne out: some twenty pictures more for each.
            inside: tell what of each map lies inside a box `[left, top, right, bottom]` in the picture's pixels, or in a mask,
                see `Area`.
            contours: levels of the heatmap, 0.01 to 0.99, whose contours are told, and drawn into the overlay.
            overlay: have the server draw the pictures that `save` writes and notebooks show. A tensor has none.

        Raises:
            CamserveError: no answer; `type` and `message` say why.
            ValueError: `image` is no picture, or no model was named.
        """
        options = {
            "target": target, "top_k": top_k, "method": method, "layer": layer, "colormap": colormap, "opacity": opacity,
            "check": check, "inside": None if inside is None else spell_area(inside), "contours": contours,
            "overlay": (overlay and not is_tensor(image)) or None,
        }  # fmt: skip
        return read_result(self.ask(image, model, {name: value for name, value in options.items() if value is not None}))

    def ask(self, image: Picture, model: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Asks as `explain` does, with options by their names in the contract, and returns the answer's JSON as it came.

        Raises:
            CamserveError, ValueError: as `explain` does.
        """
        answer: dict[str, Any] = self._post("explanations", model, image, options)
        if not isinstance(answer, dict) or "explanations" not in answer:
            raise CamserveError(200, "NoAnswer", "the answer is no explanation; the model's handler is not camserve's")
        fault = find_fault(answer)
        if fault:
            raise CamserveError(200, "BadAnswer", f"the answer is not as the contract says: {fault} is missing or wrong")
        return answer

    def _post(self, route: str, model: str | None, image: Picture, options: Mapping[str, Any]) -> Any:
        url = self._address.url(route, model)
        body, headers = write_request(image, options)
        deadline = Deadline(self._timeout)
        for tried in range(TRIES + 1):
            try:
                response = self._send(url, body, headers, deadline)
            except CamserveError as error:
                wait = _pause(tried, None)
                if error.type != "Unreachable" or not self._answered or tried == TRIES or not deadline.allows(wait):
                    raise
            else:
                self._answered = True
                wait = _pause(tried, response.headers.get("retry-after"))
                if not _is_passing(response) or tried == TRIES or not deadline.allows(wait):
                    break
            time.sleep(wait)
        if response.status_code != 200:
            raise read_error(response.status_code, response.content)
        try:
            return read_json(response.content)
        except ValueError:
            raise read_error(200, response.content) from None

    def _send(self, url: str, body: bytes, headers: Mapping[str, str], deadline: Deadline) -> requests.Response:
        late = CamserveError(None, "Timeout", f"{self._address.root} did not answer in {self._timeout} s")
        try:
            with self._wire.cut_at(deadline):
                left = deadline.left
                response = self._session.post(url, data=body, headers=headers, timeout=left, allow_redirects=False)
        except requests.RequestException as error:
            if isinstance(error, requests.Timeout) or deadline.passed:
                raise late from None
            message = f"{self._address.root} does not answer ({type(error).__name__}); is the server running?"
            raise CamserveError(None, "Unreachable", message) from None
        if deadline.passed:  # an answer of unknown length seems whole when its connection is cut
            raise late
        return response


class TokenAuth(requests.auth.AuthBase):
    """Adds the token to each request. As requests' own `auth` it also keeps a netrc file's passwords out of the requests."""

    def __init__(self, token: str | Callable[[], str] | None) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Adds the present token, where there is one."""
        token = self.token() if callable(self.token) else self.token
        if token:
            request.headers["authorization"] = f"Bearer {token}"
        return request


def read_url(url: str) -> tuple[str, str | None]:
    """Reads from a server's URL its root, without any user, password or query, and the model; None where it names none.

    Raises:
        ValueError: it is not a server's URL.
    """
    address = _Address.parse(url)
    return address.root, address.model


def read_error(status: int, body: bytes) -> CamserveError:
    """Reads the error from a server's answer, or makes one where a proxy on the way wrote it."""
    try:
        answer = read_json(body)
        return CamserveError(status, _shorten(answer["type"]), _shorten(answer["message"]))
    except (ValueError, KeyError, TypeError):
        message = "the upload is larger than the server accepts" if status == 413 else "the answer is not the server's own"
        return CamserveError(status, "TooLarge" if status == 413 else "NoAnswer", message)


def _shorten(words: object) -> str:
    return str(words)[:LONGEST]


def _is_passing(response: requests.Response) -> bool:
    """Whether a request may be answered if it is sent again a little later."""
    ours = response.headers.get("content-type", "").startswith("application/json")
    return response.status_code == 503 or (response.status_code in (500, 502) and not ours)


def _pause(tried: int, asked: str | None) -> float:
    """Seconds to wait before a request is sent again: what the server's `Retry-After` asks for, else longer each time."""
    if asked:
        try:
            return max(0.0, float(Retry().parse_retry_after(asked)))
        except (InvalidHeader, ValueError, OverflowError, TypeError):
            pass
    return 0.25 * (1 << tried) + 0.25 * random.random()  # noqa: S311 no secret


def _version() -> str:
    try:
        return version("camserve")
    except PackageNotFoundError:
        return "unknown"
