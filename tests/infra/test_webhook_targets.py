"""The guard: which URLs and addresses a webhook may go to."""

from ipaddress import ip_address

import pytest

from infra.webhook_targets import Target, TargetRefusedError, is_public, parse_target


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://example.com", Target(True, "example.com", 443, "/"), "example.com"),
        ("https://example.com?a=b", Target(True, "example.com", 443, "/?a=b"), "example.com"),
        ("HTTPS://Example.COM/Hook", Target(True, "example.com", 443, "/Hook"), "example.com"),
        (
            "https://a_b.xn--bcher-kva.example:8443/x/%20?t=1&u=@",
            Target(True, "a_b.xn--bcher-kva.example", 8443, "/x/%20?t=1&u=@"),
            "a_b.xn--bcher-kva.example:8443",
        ),
        ("https://93.184.215.14/", Target(True, "93.184.215.14", 443, "/"), "93.184.215.14"),
        (
            "https://[2606:2800:21f:cb07::1]:444/",
            Target(True, "2606:2800:21f:cb07::1", 444, "/"),
            "[2606:2800:21f:cb07::1]:444",
        ),
    ],
)
def test_a_good_url_is_taken_apart(url: str, target: Target, authority: str) -> None:
    parsed = parse_target(url)

    assert parsed == target
    assert parsed.authority == authority


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "begins with https://"),
        ("example.com/hook", "begins with https://"),
        ("http://example.com/", "begins with https://"),
        ("ftp://example.com/", "begins with https://"),
        ("file:///etc/passwd", "begins with https://"),
        ("https://" + "a" * 2041, "at most 2048 characters"),
        ("https://example.com/ x", "printable ASCII"),
        ("https://example.com/\r\nx: y", "printable ASCII"),
        ("https://example.com/\x00", "printable ASCII"),
        ("https://exämple.com/", "printable ASCII"),
        ("https://example.com\\@127.0.0.1/", "printable ASCII"),
        ("https://example.com/#", "no fragment"),
        ("https://example.com/#part", "no fragment"),
        ("https://user:password@example.com/", "no user and no password"),
        ("https://@example.com/", "no user and no password"),
        ("https://example.com:0/", "port from 1 to 65535"),
        ("https://example.com:65536/", "not a URL with a host and a port"),
        ("https://example.com:x/", "not a URL with a host and a port"),
        ("https://[::1/", "not a URL with a host and a port"),
        ("https:///hook", "DNS name in ASCII, or an IP address"),
        ("https:example.com", "DNS name in ASCII, or an IP address"),
        ("https://exam_ple..com/", "DNS name in ASCII, or an IP address"),
        ("https://-example.com/", "DNS name in ASCII, or an IP address"),
        ("https://example.com./", "DNS name in ASCII, or an IP address"),
        ("https://exa%6dple.com/", "DNS name in ASCII, or an IP address"),
        ("https://[fe80::1%25eth0]/", "DNS name in ASCII, or an IP address"),
        ("https://" + ".".join(["a" * 63] * 4) + "/", "DNS name in ASCII, or an IP address"),
        ("https://" + "a" * 64 + "/", "DNS name in ASCII, or an IP address"),
        ("https://127.0.0.1/", "127.0.0.1 is not a public address"),
        ("https://169.254.169.254/latest/meta-data/", "169.254.169.254 is not a public address"),
        ("https://[::ffff:10.0.0.1]/", "::ffff:.* is not a public address"),
    ],
)
def test_a_bad_url_is_refused_with_its_reason(url: str, reason: str) -> None:
    with pytest.raises(TargetRefusedError, match=reason):
        parse_target(url)


def test_the_longest_url_is_taken() -> None:
    assert parse_target("https://example.com/".ljust(2048, "a")).host == "example.com"


def test_local_development_may_use_http_and_private_addresses() -> None:
    parsed = parse_target("http://127.0.0.1:8001/hook", allow_private=True)

    assert parsed == Target(False, "127.0.0.1", 8001, "/hook")
    assert parsed.authority == "127.0.0.1:8001"
    assert parse_target("http://localhost/", allow_private=True).authority == "localhost"
    with pytest.raises(TargetRefusedError, match="no user"):
        parse_target("http://user@127.0.0.1/", allow_private=True)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # this host, and unspecified
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",  # carriers' own
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.0.1",
        "169.254.100.1",
        "169.254.169.254",  # instance metadata
        "169.254.170.2",  # container credentials
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.0.192",
        "192.0.2.1",  # documentation
        "192.88.99.1",  # 6to4 relays
        "192.168.0.1",
        "192.168.255.255",
        "198.18.0.1",  # benchmarks
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",  # multicast
        "239.255.255.250",
        "240.0.0.1",  # reserved
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "::127.0.0.1",  # IPv4-compatible
        "::8.8.8.8",
        "::ffff:127.0.0.1",  # IPv4-mapped
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:8.8.8.8",  # IPv4-translated
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "64:ff9b::a9fe:a9fe",  # NAT64 of 169.254.169.254
        "64:ff9b::a00:1",
        "64:ff9b:1::8.8.8.8",  # NAT64 of a network's own
        "100::1",  # discard
        "2001::1",  # Teredo
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1",  # benchmarks
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",  # documentation
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:a9fe:a9fe::1",  # 6to4 of 169.254.169.254
        "2002:c0a8:101::1",
        "3fff::1",
        "5f00::1",
        "4000::1",  # not assigned
        "fc00::1",
        "fd00:ec2::254",  # instance metadata
        "fe80::1",
        "fe80::1%eth0",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "52.94.236.248",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",  # NAT64 of 8.8.8.8
        "2002:808:808::1",  # 6to4 of 8.8.8.8
        "2001:4860:4860::8888",
        "2606:4700:4700::1111",
        "2a05:d018::1",
    ],
)
def test_an_address_of_the_public_internet_is_allowed(address: str) -> None:
    assert is_public(ip_address(address))
