"""What Ray is told before it starts."""

from __future__ import annotations

import resource

import pytest

from camserve.tools.serving.process.ray_cluster import HAPROXY_FILES, lacks_files


@pytest.mark.parametrize("most", [HAPROXY_FILES, resource.RLIM_INFINITY])
def test_haproxy_may_open_its_files(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Then there is nothing to say."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, most))
    assert lacks_files() == ""


def test_too_few_files_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAProxy would end at once; what takes its place is said."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, HAPROXY_FILES - 1))
    assert lacks_files().startswith(f"at most {HAPROXY_FILES - 1} files may be open, so Ray's own proxy takes connections")
    assert lacks_files().endswith(f"(docker run --ulimit nofile={HAPROXY_FILES})")
