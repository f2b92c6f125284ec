"""A year and more of certificates, in moments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509 import verification

from modelcache.faces.webhook.rotation import (
    AUTHORITY_LIFE,
    SERVING_LIFE,
    Kept,
    renewed,
)
from modelcache.faces.webhook.tls import Pair

START = datetime(2030, 1, 1, tzinfo=UTC)
HOST = "hook.models.svc"
HOSTS = (HOST, "hook.models", "hook", "127.0.0.1", "::1")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def believed(kept: Kept, bundle: bytes, now: datetime) -> None:
    """Raises where a client that trusts the bundle would not connect."""
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(x509.load_pem_x509_certificates(bundle)))
        .time(now)
        .build_server_verifier(x509.DNSName(HOST))
    )
    verifier.verify(x509.load_pem_x509_certificate(kept.serving.certificate), [])


def test_the_first_ones_are_made_at_once():
    kept = renewed(None, HOSTS, START)
    believed(kept, kept.bundle(START), START)
    serving = x509.load_pem_x509_certificate(kept.serving.certificate)
    names = serving.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HOST, "hook.models", "hook"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "::1",
    ]


def test_nothing_is_made_anew_before_its_time():
    kept = renewed(None, HOSTS, START)
    assert renewed(kept, HOSTS, START) is kept
    assert renewed(kept, HOSTS, START + SERVING_LIFE * 2 / 3 - HOUR) is kept


def test_at_two_thirds_of_its_life_a_serving_certificate_is_replaced():
    kept = renewed(None, HOSTS, START)
    fresh = renewed(kept, HOSTS, START + SERVING_LIFE * 2 / 3 + HOUR)
    assert fresh.authority == kept.authority
    assert fresh.serving != kept.serving


def test_a_new_authority_signs_nothing_in_the_step_it_is_made():
    now = START + AUTHORITY_LIFE * 2 / 3 + HOUR
    kept = renewed(None, HOSTS, START)
    while True:  # as it would have been renewed until then
        before = kept
        kept = renewed(kept, HOSTS, min(now, end(kept) - DAY))
        if kept.authority != before.authority:
            break
    assert kept.serving == before.serving
    assert kept.before == before.authority.certificate


def end(kept: Kept) -> datetime:
    return x509.load_pem_x509_certificate(kept.serving.certificate).not_valid_after_utc


def test_through_three_years_whoever_has_the_last_bundle_believes():
    kept = renewed(None, HOSTS, START)
    authorities = {kept.authority.certificate}
    for day in range(3 * 365):
        now = START + day * DAY
        trusted = kept.bundle(now)
        fresh = renewed(kept, HOSTS, now)
        # A replica that has not looked shows the old one; the API server may have either bundle.
        believed(kept, fresh.bundle(now), now)
        believed(fresh, trusted, now)
        believed(fresh, fresh.bundle(now), now)
        assert renewed(fresh, HOSTS, now) is fresh or fresh is not kept
        kept = fresh
        authorities.add(kept.authority.certificate)
        assert len(x509.load_pem_x509_certificates(kept.bundle(now))) <= 2
    assert len(authorities) == 5


def test_an_authority_that_has_ended_is_no_longer_trusted():
    kept = Kept(
        renewed(None, HOSTS, START + AUTHORITY_LIFE).authority,
        renewed(None, HOSTS, START).serving,
        renewed(None, HOSTS, START).authority.certificate,
    )
    assert kept.before in kept.bundle(START + AUTHORITY_LIFE - DAY)
    assert kept.before not in kept.bundle(START + AUTHORITY_LIFE + DAY)


@pytest.mark.parametrize("after", [SERVING_LIFE * 2, AUTHORITY_LIFE * 0.9, AUTHORITY_LIFE * 2])
def test_after_a_long_sleep_it_serves_at_once(after: timedelta):
    now = START + after
    kept = renewed(renewed(None, HOSTS, START), HOSTS, now)
    believed(kept, kept.bundle(now), now)


def test_other_names_need_another_certificate():
    kept = renewed(None, HOSTS, START)
    fresh = renewed(kept, (HOST, "hook.example.test"), START)
    assert fresh.authority == kept.authority
    assert fresh.serving != kept.serving


def test_what_is_broken_is_made_anew():
    kept = renewed(None, HOSTS, START)
    other = renewed(None, HOSTS, START)
    for broken in (
        Kept(Pair(b"", b""), kept.serving),
        Kept(Pair(kept.authority.certificate, b"x"), kept.serving),
        Kept(Pair(kept.authority.certificate, other.authority.key), kept.serving),
        Kept(kept.authority, other.serving),
        Kept(kept.authority, Pair(b"x", kept.serving.key)),
        Kept(kept.authority, Pair(kept.serving.certificate, other.serving.key)),
        Kept(kept.authority, kept.serving, b"x"),
        Kept(kept.authority, kept.authority),
    ):
        fresh = renewed(broken, HOSTS, START)
        assert fresh is not broken
        believed(fresh, fresh.bundle(START), START)
        assert renewed(fresh, HOSTS, START) is fresh
