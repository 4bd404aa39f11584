"""Web pages as a source: what is fetched, what is refused, and the attacks that a URL or a redirect may be."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import httpx2
import pytest

from genaifactory_common import formats, specs
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_common.testing import certificates
from genaifactory_pipelines.sources import fetching, guard, pages
from genaifactory_pipelines.sources.fetching import Failed, Fetched, Fetcher
from genaifactory_pipelines.sources.guard import Refused, Resolve
from genaifactory_pipelines.sources.protocol import Content

pytestmark = pytest.mark.allow_blocking  # makes files

TLS = httpx2.create_ssl_context()


@dataclass
class Site:
    """A server on loopback; the first part of a path says how it answers."""

    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and Host header of each request."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


def answer(path: str, times: int) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers. times: requests so far, this one included."""
    how, _, rest = path[1:].partition("/")
    match how:
        case "to":
            return 302, b"", {"location": unquote(rest)}
        case "status":
            return int(rest), b"no", {}
        case "busy" if times < 3:
            return 503, b"later", {"retry-after": unquote(rest, "latin-1")}
        case "zeros":
            return 200, bytes(formats.MAX_DOCUMENT_BYTES + 1), {}
        case "zipped":
            return 200, b"x", {"content-encoding": "gzip"}
        case "type":
            return 200, b"x", {"content-type": unquote(rest, "latin-1")}
        case "empty":
            return 200, b"", {}
    return 200, f"<h1>{path}</h1>".encode(), {}


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append((self.path, self.headers["host"]))
            status, body, headers = answer(self.path, len(site.asked))
            self.send_response(status)
            for name, value in {"content-type": "text/html; charset=utf-8", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # the reader has had enough
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that refuse it
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        site.port = server.server_port
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_BACKOFF", Backoff(first_seconds=0.01, longest_seconds=0.01))


def names(**addresses: Sequence[str]) -> Resolve:
    """A name service with these names; the n-th question for a name gets its n-th address."""
    left = {name.replace("_", "."): list(found) for name, found in addresses.items()}

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [left[host].pop(0)] if host in left else [host]

    return resolve


async def fetch(url: str, file: Path, *, private: bool = True, resolver: Resolve = guard.resolve) -> Fetched | Failed:
    return await Fetcher(private, TLS, resolver).fetch(url, file)


async def test_a_page_is_fetched_with_its_type(site: Site, tmp_path: Path) -> None:
    assert await fetch(site.url("/a.html?b=c"), tmp_path / "p") == Fetched("text/html", 20)
    assert (tmp_path / "p").read_bytes() == b"<h1>/a.html?b=c</h1>"


async def test_what_passes_is_tried_again_and_what_leads_on_is_followed(site: Site, tmp_path: Path) -> None:
    assert isinstance(await fetch(site.url("/busy/0"), tmp_path / "p"), Fetched)
    assert isinstance(await fetch(site.url("/to/%2Fa"), tmp_path / "p"), Fetched)
    assert (tmp_path / "p").read_bytes() == b"<h1>/a</h1>"


@pytest.mark.parametrize(
    ("path", "why", "gone"),
    [
        ("/status/404", "was answered with 404", True),
        ("/status/410", "was answered with 410", True),
        ("/status/500", "was answered with 500", False),
        ("/status/503", "was answered with 503", False),
        ("/zeros/x", "is larger than 32 MiB", False),
        ("/zipped/x", "is compressed although that was not asked for", False),
        ("/type/image/png", "is of the type 'image/png', which is not read", False),
        ("/type/", "is of the type '', which is not read", False),
        ("/type/a%1B[2J%07%9B2J", "is of the type 'a%1B[2j%07%C2%9B2j', which is not read", False),
        ("/empty/x", "is empty", False),
        ("/to/http:%2F%2Fa:b%2F", "has no valid URL, or leads on to an invalid one", False),
        ("/to/http:%2F%2F127.0.0.1:99999%2F", "has the port 99999, or leads on to it; the last one is 65535", False),
    ],
)
async def test_a_page_that_cannot_be_read_has_a_reason(
    site: Site, tmp_path: Path, path: str, why: str, gone: bool
) -> None:
    assert await fetch(site.url(path), tmp_path / "p") == Failed(why, gone)


@pytest.mark.parametrize("after", ["%B2", "%BD", "-1", "1e9", "nan", "Wed,%2021%20Oct%202026%2007:28:00%20GMT", ""])
async def test_a_pause_that_is_no_number_of_seconds_is_none(site: Site, tmp_path: Path, after: str) -> None:
    assert isinstance(await fetch(site.url(f"/busy/{after}"), tmp_path / "p"), Fetched)
    assert len(site.asked) == 3


async def test_a_circle_of_redirects_ends(site: Site, tmp_path: Path) -> None:
    path = "/to/"
    assert await fetch(site.url(path), tmp_path / "p") == Failed("leads on more than 5 times")
    assert len(site.asked) == 6


async def test_a_server_that_is_away_is_no_server_that_has_lost_the_page(tmp_path: Path) -> None:
    found = await fetch("http://127.0.0.1:9/a", tmp_path / "p")
    assert found == Failed("cannot be reached (ConnectError)")
    found = await fetch("http://no-such-host.invalid/a", tmp_path / "p")
    assert isinstance(found, Failed)
    assert not found.gone


# Attacks


LOOPBACK = ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"]


@pytest.mark.parametrize("host", LOOPBACK)
async def test_a_url_does_not_reach_this_machine(site: Site, tmp_path: Path, host: str) -> None:
    found = await fetch(f"http://{host}:{site.port}/secret", tmp_path / "p", private=False)
    assert isinstance(found, Failed)
    assert "is not public" in found.why
    assert not site.asked


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.3.4", "192.168.1.1", "100.64.0.1", "fd00::1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("::1", "fec0::2", "4000::1", "2001:db8::1"),
    ],
)
async def test_a_name_of_a_private_address_is_refused(tmp_path: Path, address: str) -> None:
    found = await fetch("http://evil.example/", tmp_path / "p", private=False, resolver=names(evil_example=[address]))
    assert isinstance(found, Failed)
    assert f"is on evil.example, whose address {address} is not public" in found.why


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1", "::", "64:ff9b::a9fe:a9fe", "::ffff:169.254.1.1"),
        *("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "64:ff9b::6464:64c8"),
        *("64:ff9b:1::a9fe:a9fe", "::ffff:0:169.254.169.254", "::169.254.169.254", "2002:a9fe:a9fe::"),
    ],
)
async def test_the_addresses_of_cloud_credentials_are_refused_even_in_an_intranet(
    tmp_path: Path, address: str, private: bool
) -> None:
    found = await fetch("http://evil.example/", tmp_path / "p", private=private, resolver=names(evil_example=[address]))
    assert isinstance(found, Failed)
    assert "is no address of a web page" in found.why


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "64:ff9b::5db8:d70e", "::ffff:93.184.215.14"])
async def test_public_addresses_are_allowed_and_those_of_an_intranet_on_demand(address: str) -> None:
    found = await guard.addresses("page.example", 80, names(page_example=[address]), private=False)
    assert found == [address]
    for own in ("::1", "127.0.0.1", "10.0.0.1", "fd00::1", "100.64.0.1"):
        assert await guard.addresses("wiki", 80, names(wiki=[own]), private=True) == [own]


async def test_one_private_address_among_public_ones_is_refused() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["93.184.215.14", "10.0.0.1"]

    with pytest.raises(Refused):
        await guard.addresses("evil.example", 80, resolve, private=False)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("http://169.254.169.254/latest/meta-data/", "is no address of a web page"),
        ("//169.254.169.254/latest/meta-data/", "is no address of a web page"),
        ("file:///etc/passwd", "not http(s)://HOST/..."),
        ("ftp://127.0.0.1/x", "not http(s)://HOST/..."),
        ("http://user:pw@127.0.0.1/x", "not http(s)://HOST/..."),
    ],
)
async def test_a_redirect_is_checked_like_the_first_address(site: Site, tmp_path: Path, target: str, why: str) -> None:
    found = await fetch(site.url(f"/to/{target}"), tmp_path / "p")
    assert isinstance(found, Failed)
    assert why in found.why
    assert "pw@" not in found.why
    assert len(site.asked) == 1


async def test_a_name_is_looked_up_once_so_that_it_cannot_change_after_the_check(site: Site, tmp_path: Path) -> None:
    resolver = names(pages_test=["127.0.0.1", "169.254.169.254"])
    assert isinstance(await fetch(f"http://pages.test:{site.port}/a", tmp_path / "p", resolver=resolver), Fetched)
    assert site.asked == [("/a", f"pages.test:{site.port}")]


async def test_a_certificate_must_be_of_the_name_in_the_url(tmp_path: Path) -> None:
    files = certificates.write(tmp_path, certificates.new_authority(), names=["pages.test"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.private_key)
    client = ssl.create_default_context(cafile=files.ca)
    fetcher = Fetcher(True, client, names(pages_test=["127.0.0.1"], other_test=["127.0.0.1"] * 3))
    with serving(server) as site:
        assert isinstance(await fetcher.fetch(f"https://pages.test:{site.port}/a", tmp_path / "p"), Fetched)
        found = await fetcher.fetch(f"https://other.test:{site.port}/a", tmp_path / "p")
        assert found == Failed("cannot be reached (ConnectError)")
        back = Fetcher(True, client, names(pages_test=["127.0.0.1"]))
        found = await back.fetch(f"https://pages.test:{site.port}/to/http:%2F%2F127.0.0.1%2Fa", tmp_path / "p")
        assert found == Failed("leads on to an address without https://")


# The source


def source(*urls: str) -> specs.PagesSource:
    return specs.PagesSource(
        name="site",
        type="pages",
        urls=urls,
        knowledge_base="documents",
        private_addresses=True,
        pause_seconds=0,
    )


async def test_a_list_of_pages_is_read_whole_before_anything_is_returned(site: Site) -> None:
    where = f"127.0.0.1:{site.port}"
    urls = [site.url(path) for path in ("/a?x=1", "/status/404", "/status/500", "/b%20c", "/a?x=1")]
    async with pages.reading(source(*urls)) as listing:
        contents = {each.document_id: await each.content() for each in listing.documents}
    assert contents == {
        f"site/{where}/a?x=1": Content(b"<h1>/a?x=1</h1>", "text/html"),
        f"site/{where}/b%20c": Content(b"<h1>/b%20c</h1>", "text/html"),
        f"site/{where}/status/500": "was answered with 500",
    }
    assert [each.uri for each in listing.documents] == [urls[0], urls[3], urls[2]]
    assert [(each.name, each.why) for each in listing.skipped] == [
        (f"site/{where}/status/404", "was answered with 404")
    ]
    assert len(site.asked) == 4


async def test_a_host_is_asked_for_one_page_after_the_other(site: Site) -> None:
    paused = source(*(site.url(f"/{number}") for number in range(3))).model_copy(update={"pause_seconds": 0.1})
    begun = asyncio.get_running_loop().time()
    async with pages.reading(paused):
        assert asyncio.get_running_loop().time() - begun > 0.2


async def test_a_url_that_is_none_is_named() -> None:
    with pytest.raises(InvalidArgument, match="'http://a:b/' is no valid URL"):
        async with pages.reading(source("http://a:b/")):
            pass


async def test_pages_that_are_together_too_large_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_MOST_BYTES", 10)
    with pytest.raises(TooLarge, match="Make several sources"):
        async with pages.reading(source(site.url("/a"))):
            pass
