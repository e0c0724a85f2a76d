"""The configuration is read as Java reads it: Java's own reader is asked, by a class that is written here byte by byte."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.tools.serving.doubles import settings

from camserve.tools.serving.configuration.addresses import Addresses, Settings
from camserve.tools.serving.configuration.advice import warn_of_exposure
from camserve.tools.serving.configuration.java import find_java
from camserve.tools.serving.configuration.properties import parse_properties
from camserve.tools.serving.process.errors import ServeError

PIECES = (
    *(
        "key",
        "a",
        "b.c",
        "value",
        "http://127.0.0.1:8080",
        "0.0.0.0",
        "caf\u00e9",
        "#",
        "!",
        "=",
        ":",
        " ",
        "\t",
        "\f",
        "==",
        ": =",
    ),
    *(
        "\\",
        "\\\\",
        "\\ ",
        "\\=",
        "\\:",
        "\\#",
        "\\n",
        "\\t",
        "\\u0041",
        "\\u00e9",
        "\\q",
        "\\\n",
        "\\\r\n",
        "\\\r",
        "\\\n  ",
        "\\\n#",
    ),
    *("\n", "\n", "\n", "\r\n", "\r", "\n\n", "\n \t", "\n# comment\n", "\n! comment \\\n", "\x85", "\xa0"),
)


def java_class() -> bytes:
    """`Properties p = new Properties(); p.load(System.in); p.storeToXML(System.out, null);` as a class named `Read`."""
    pool: list[bytes] = []

    def add(entry: bytes) -> int:
        if entry not in pool:
            pool.append(entry)
        return pool.index(entry) + 1

    def name(text: str) -> int:
        return add(b"\x01" + struct.pack("!H", len(text)) + text.encode())

    def type_of(text: str) -> int:
        return add(b"\x07" + struct.pack("!H", name(text)))

    def member(tag: int, owner: str, called: str, kind: str) -> bytes:
        both = add(b"\x0c" + struct.pack("!HH", name(called), name(kind)))
        return struct.pack("!H", add(bytes([tag]) + struct.pack("!HH", type_of(owner), both)))

    properties = "java/util/Properties"
    code = b"\xbb" + struct.pack("!H", type_of(properties)) + b"\x59\xb7" + member(10, properties, "<init>", "()V") + b"\x4c"
    code += b"\x2b\xb2" + member(9, "java/lang/System", "in", "Ljava/io/InputStream;")
    code += b"\xb6" + member(10, properties, "load", "(Ljava/io/InputStream;)V")
    code += b"\x2b\xb2" + member(9, "java/lang/System", "out", "Ljava/io/PrintStream;") + b"\x01"
    code += b"\xb6" + member(10, properties, "storeToXML", "(Ljava/io/OutputStream;Ljava/lang/String;)V") + b"\xb1"
    attribute = struct.pack("!HHI", 3, 2, len(code)) + code + struct.pack("!HH", 0, 0)
    method = struct.pack("!HHHHHI", 9, name("main"), name("([Ljava/lang/String;)V"), 1, name("Code"), len(attribute)) + attribute
    body = struct.pack("!HHHHHH", 0x21, type_of("Read"), type_of("java/lang/Object"), 0, 0, 1) + method + struct.pack("!H", 0)
    return struct.pack("!IHHH", 0xCAFEBABE, 0, 52, len(pool) + 1) + b"".join(pool) + body


def read_with_java(folder: Path, text: str) -> list[tuple[str, str]]:
    """What `java.util.Properties` makes of a file, as XML passes it on."""
    (folder / "Read.class").write_bytes(java_class())
    command = [str(find_java().path), "-XX:TieredStopAtLevel=1", "-cp", str(folder), "Read"]
    ran = subprocess.run(command, input=text.encode("latin-1"), capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    entries = ET.fromstring(ran.stdout.decode().partition("?>")[2]).iter("entry")
    return sorted((entry.get("key", ""), entry.text or "") for entry in entries)


def hostile_text(seed: int) -> str:
    """Pieces of lines in a random order, 3000 of them, some ends of lines among them."""
    choose = random.Random(seed)
    return "".join(choose.choice(PIECES) for _ in range(3000))


def as_xml_tells(mapping: dict[str, str]) -> list[tuple[str, str]]:
    """XML ends every line alike, and has only spaces in an attribute."""
    pairs = [tuple(each.replace("\r\n", "\n").replace("\r", "\n") for each in pair) for pair in mapping.items()]
    return sorted((key.replace("\n", " ").replace("\t", " "), value) for key, value in pairs)


@pytest.mark.parametrize("seed", range(3))
def test_java_reads_the_same(tmp_path: Path, seed: int) -> None:
    """Hundreds of keys with every kind of separator, continuation, comment and escape."""
    text = hostile_text(seed).replace("\f", " ")
    ours = parse_properties(text)
    assert len(ours) > 150
    assert as_xml_tells(ours) == read_with_java(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a=1\n a = 2 \n", {"a": "2 "}),
        ("a: 1", {"a": "1"}),
        ("a 1", {"a": "1"}),
        ("a\t\f:\t1", {"a": "1"}),
        ("a = = 1", {"a": "= 1"}),
        ("a\\\n  b\\\n  =1\\\n  2", {"ab": "12"}),
        ("a=1\\\\\nb=2", {"a": "1\\", "b": "2"}),
        ("# c \\\na=1", {"a": "1"}),
        ("! c\n  # d\r\ra=1", {"a": "1"}),
        ("\\u0061\\ b\\=c=\\u00e9\\n\\q", {"a b=c": "\u00e9\nq"}),
        ("a", {"a": ""}),
        ("a=\\", {"a": ""}),
        ("=1", {"": "1"}),
        ("a=1\x85b=2", {"a": "1\x85b=2"}),
        ("a\\\r\nb=1", {"ab": "1"}),
        ("\\\n# c\nd=1", {"d": "1"}),
        ("a=\\\n\nb=1", {"a": "", "b": "1"}),
    ],
)
def test_a_file_is_read_by_java_s_rules(text: str, wanted: dict[str, str]) -> None:
    """One rule each."""
    assert parse_properties(text) == wanted


@pytest.mark.parametrize(
    "line", ["{0}={1}", "{0}: {1}", "{0} {1}", "{0}\\\n={1}", "  {0}\t:\t{1}", "\\u006d{2}={1}", "{0}=\\\n {1}"]
)
@pytest.mark.parametrize(
    ("key", "value"), [("management_address", "http://0.0.0.0:8081"), ("grpc_management_address", "0.0.0.0")]
)
def test_public_management_is_refused_however_it_is_written(tmp_path: Path, line: str, key: str, value: str) -> None:
    """TorchServe would have read it."""
    if "\\u006d" in line and not key.startswith("m"):
        key, line = "grpc_management_address", "grpc_\\u006danagement_address={1}"
    path = tmp_path / "c.properties"
    path.write_text(line.format(key, value, key[1:]))
    with pytest.raises(ServeError, match=f"{key} is .* which is not loopback"):
        Addresses.choose(Settings.read(path), 0)


def test_a_variable_that_beats_the_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the file turns the variables on."""
    path = tmp_path / "c.properties"
    monkeypatch.setenv("TS_GRPC_MANAGEMENT_ADDRESS", "0.0.0.0")
    path.write_text("enable_envvars_config=false\n")
    Addresses.choose(Settings.read(path), 0)
    path.write_text("enable_envvars_config: true\n")
    with pytest.raises(ServeError, match="grpc_management_address"):
        Addresses.choose(Settings.read(path), 0)


def test_tokens_are_off_only_where_java_says_so() -> None:
    """`true` with a blank behind it is not true to Java: it asks for tokens, and nothing is warned of."""
    open_to_all = {"inference_address": "http://0.0.0.0:8080"}
    for value, warnings in (("true", 1), ("true ", 0), ("false", 0)):
        given = settings(**open_to_all, disable_token_authorization=value)
        assert len(warn_of_exposure(given, Addresses.choose(given, 0))) == warnings


@pytest.mark.parametrize("text", ["a=\\u12", "a=\\uzzzz", "\\u=1"])
def test_what_java_fails_at_is_an_error(tmp_path: Path, text: str) -> None:
    """It names the file, before Java starts."""
    path = tmp_path / "c.properties"
    path.write_text(text)
    with pytest.raises(ServeError, match="four hexadecimal digits"):
        Settings.read(path)


def _names(texts: Sequence[str]) -> list[str]:
    return [next(iter(parse_properties(text))) for text in texts]


def test_keys_are_unescaped_too() -> None:
    """A key may hold what would end it."""
    assert _names(["a\\:b 1", "a\\ b 1", "a\\=b 1", "\\#a 1"]) == ["a:b", "a b", "a=b", "#a"]
