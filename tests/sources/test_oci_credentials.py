"""Credentials for registries: where they are found, how they are used, and that none is shown."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from modelcache.config import OciSettings, Settings, TransferSettings
from modelcache.domain.refs import parse_ref
from modelcache.errors import Forbidden, InvalidConfig, NoCredentials, SourceRefused
from modelcache.sources.oci import OciSource
from modelcache.sources.oci.auth import Challenge, challenges_of
from modelcache.sources.oci.keyring import Credential, Keyring
from modelcache.sources.oci.registry import Registry
from tests.servers.certificates import Certificates
from tests.servers.docker_registry import DockerRegistry
from tests.servers.process import ServerUnavailable
from tests.sources.artifacts import Repository
from tests.sources.fetching import read
from tests.sources.scripted import Reply, ScriptedServer
from tests.sources.token_server import TokenServer

CONFIG = b'{"hidden_size": 4096}'
SECRET = DockerRegistry.password
_numbers = count()


def packed(username: str, secret: str) -> str:
    return base64.b64encode(f"{username}:{secret}".encode()).decode()


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def stored(path: Path, registry: str, secret: str = SECRET) -> Path:
    auth = packed(DockerRegistry.username, secret)
    return write(path, {"auths": {registry: {"auth": auth}}})


def helper(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential helper in PATH."""
    path = write(folder / f"docker-credential-{name}", f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


# Where they are found


@pytest.mark.parametrize(
    "place", [".docker/config.json", ".config/containers/auth.json", "elsewhere/config.json"]
)
def test_a_credential_is_found_where_tools_keep_it(place, monkeypatch):
    home = Path(os.environ["HOME"])
    if place.startswith("elsewhere"):
        monkeypatch.setenv("DOCKER_CONFIG", str(home / "elsewhere"))
    stored(home / place, "registry.example:5000")
    found = Keyring("").find("registry.example:5000", "team/model")
    assert found == Credential("puller", SECRET)
    assert Keyring("").find("other.example", "team/model") is None


def test_the_file_of_the_settings_comes_first(tmp_path):
    stored(Path(os.environ["HOME"]) / ".docker/config.json", "r.example", "of docker")
    own = stored(tmp_path / "pull-secret.json", "r.example", "of the settings")
    assert Keyring(str(own)).find("r.example", "m") == Credential("puller", "of the settings")


@pytest.mark.parametrize(
    "spelled", ["https://r.example/v1/", "r.example/", "https://r.example", "r.example/team"]
)
def test_a_registry_may_be_spelled_as_tools_have_spelled_it(tmp_path, spelled):
    path = stored(tmp_path / "c.json", spelled)
    assert Keyring(str(path)).find("r.example", "team/model") is not None


def test_the_most_specific_entry_decides(tmp_path):
    auths = {
        "r.example": {"auth": packed("all", "1")},
        "r.example/team": {"auth": packed("team", "2")},
    }
    keyring = Keyring(str(write(tmp_path / "c.json", {"auths": auths})))
    assert keyring.find("r.example", "team/model") == Credential("team", "2")
    assert keyring.find("r.example", "teams/model") == Credential("all", "1")


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_is_known_by_its_names(tmp_path, name):
    path = stored(tmp_path / "c.json", "https://index.docker.io/v1/")
    assert Keyring(str(path)).find(name, "library/model") is not None


def test_an_identity_token_is_told_from_a_password(tmp_path):
    entry = {"auth": packed("00000000-0000-0000-0000-000000000000", ""), "identitytoken": "t"}
    path = write(tmp_path / "c.json", {"auths": {"r.example": entry}})
    found = Keyring(str(path)).find("r.example", "m")
    assert found is not None
    assert found.is_identity_token


def test_a_secret_with_colons_is_kept_whole(tmp_path):
    path = write(tmp_path / "c.json", {"auths": {"r.example": {"auth": packed("u", "a:b:c")}}})
    assert Keyring(str(path)).find("r.example", "m") == Credential("u", "a:b:c")


@pytest.mark.parametrize("text", ["", "[]", "{", '"secret"', "[" * 100_000])
def test_a_file_that_is_no_config_is_named_without_its_content(tmp_path, text):
    path = write(tmp_path / "c.json", text)
    with pytest.raises(InvalidConfig) as caught:
        Keyring(str(path)).find("r.example", "m")
    assert str(path) in caught.value.message
    assert "secret" not in caught.value.message


def test_a_malformed_entry_is_named_without_its_secret(tmp_path):
    path = write(tmp_path / "c.json", {"auths": {"r.example": {"auth": "c2VjcmV0"}}})
    with pytest.raises(InvalidConfig, match=r"r\.example") as caught:
        Keyring(str(path)).find("r.example", "m")
    assert "c2VjcmV0" not in caught.value.message


def test_a_file_of_the_settings_must_exist(tmp_path):
    with pytest.raises(InvalidConfig, match="auth_file"):
        Keyring(str(tmp_path / "absent.json")).find("r.example", "m")


# Helpers


@pytest.mark.parametrize(
    "config", [{"credsStore": "ours"}, {"credHelpers": {"r.example": "ours"}, "credsStore": "no"}]
)
def test_a_helper_is_asked_by_the_registrys_name(tmp_path, monkeypatch, config):
    script = (
        f'read -r name; echo "$name" >{tmp_path}/asked; echo \'{{"Username":"u","Secret":"s"}}\''
    )
    helper(tmp_path / "bin", "ours", script, monkeypatch)
    path = write(tmp_path / "c.json", {"auths": {"r.example": {}}, **config})
    assert Keyring(str(path)).find("r.example", "m") == Credential("u", "s")
    assert (tmp_path / "asked").read_text().strip() == "r.example"


def test_a_helper_may_give_an_identity_token(tmp_path, monkeypatch):
    helper(tmp_path / "bin", "ours", """echo '{"Username":"<token>","Secret":"s"}'""", monkeypatch)
    path = write(tmp_path / "c.json", {"credsStore": "ours"})
    found = Keyring(str(path)).find("r.example", "m")
    assert found is not None
    assert found.is_identity_token


def test_a_helper_that_knows_nothing_is_no_failure(tmp_path, monkeypatch):
    script = "echo credentials not found in native keychain; exit 1"
    helper(tmp_path / "bin", "ours", script, monkeypatch)
    path = write(tmp_path / "c.json", {"credHelpers": {"r.example": "ours"}})
    assert Keyring(str(path)).find("r.example", "m") is None


def test_a_general_helper_that_is_not_installed_is_passed_over(tmp_path):
    path = write(tmp_path / "c.json", {"credsStore": "desktop-of-somebody"})
    assert Keyring(str(path)).find("r.example", "m") is None


@pytest.mark.parametrize("script", ["echo s3cret; exit 3", "echo s3cret", """echo '["s3cret"]'"""])
def test_a_helper_that_fails_is_named_without_what_it_printed(tmp_path, monkeypatch, script):
    helper(tmp_path / "bin", "ours", script, monkeypatch)
    path = write(tmp_path / "c.json", {"credHelpers": {"r.example": "ours"}})
    with pytest.raises(InvalidConfig, match="docker-credential-ours") as caught:
        Keyring(str(path)).find("r.example", "m")
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", 7])
def test_a_helper_must_be_a_plain_name(tmp_path, name):
    path = write(tmp_path / "c.json", {"credHelpers": {"r.example": name}})
    with pytest.raises(InvalidConfig, match="helper"):
        Keyring(str(path)).find("r.example", "m")


# Challenges


def test_challenges_are_read_in_every_spelling():
    bearer = Challenge(bearer=True, realm="https://a/t?x=1", service="s, t")
    assert challenges_of('Bearer realm="https://a/t?x=1",service="s, t",scope="a:b:c,d"') == [
        bearer
    ]
    assert challenges_of('bearer service="s, t" , realm="https://a/t?x=1"') == [bearer]
    both = challenges_of('Basic realm="x", Bearer realm=https://a/t')
    assert both == [Challenge(bearer=False, realm="x"), Challenge(bearer=True, realm="https://a/t")]
    assert challenges_of("Negotiate abc") == []
    assert challenges_of("Bearer") == []


# Passwords


@pytest.fixture(scope="module")
def guarded() -> Iterator[DockerRegistry]:
    try:
        with DockerRegistry(passwords=True) as running:
            yield running
    except ServerUnavailable as error:
        pytest.skip(str(error))


def repository(registry: DockerRegistry, folder: Path) -> Repository:
    try:
        return Repository(registry.name, f"guarded/m{next(_numbers)}", folder / "oras")
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def private(guarded: DockerRegistry, tmp_path: Path) -> Repository:
    """An artifact behind a password."""
    made = repository(guarded, tmp_path)
    login = ["--username", guarded.username, "--password", SECRET]
    made.push({"config.json": CONFIG}, extra=login)
    return made


def open_with(ref: str, auth_file: Path | None = None, **settings: str) -> OciSource:
    oci = OciSettings(auth_file=str(auth_file or ""), **settings)
    return OciSource(parse_ref(f"oci://{ref}"), oci, TransferSettings())


def first_file(source: OciSource, ref: str) -> bytes:
    (file,) = source.resolve(parse_ref(f"oci://{ref}")).files
    return read(source, file).body


def test_a_stored_password_opens_a_registry(private, tmp_path):
    auth_file = stored(tmp_path / "c.json", private.registry)
    assert first_file(open_with(private.ref(), auth_file), private.ref()) == CONFIG


def test_without_credentials_the_message_says_what_to_do(private):
    with pytest.raises(NoCredentials, match=f"docker login {private.registry}.*oci.auth_file"):
        first_file(open_with(private.ref()), private.ref())


def test_a_wrong_password_is_refused_and_not_shown(private, tmp_path):
    auth_file = stored(tmp_path / "c.json", private.registry, "wr0ng")
    with pytest.raises(Forbidden) as caught:
        first_file(open_with(private.ref(), auth_file), private.ref())
    assert "wr0ng" not in caught.value.message
    assert packed("puller", "wr0ng") not in repr(caught.value)


def test_nothing_shows_a_password(private, tmp_path):
    auth_file = stored(tmp_path / "c.json", private.registry)
    source = open_with(private.ref(), auth_file)
    (file,) = source.resolve(parse_ref(f"oci://{private.ref()}")).files
    target = source.locate(file)
    assert any(name == "Authorization" for name, _ in target.headers)
    credential = Keyring(str(auth_file)).find(private.registry, private.name)
    for shown in (repr(target), repr(source), repr(file), repr(credential)):
        assert SECRET not in shown
        assert packed("puller", SECRET) not in shown


# Tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    with TokenServer(tmp_path / "tokens") as running:
        yield running


@pytest.fixture
def tokened(tokens: TokenServer) -> Iterator[DockerRegistry]:
    """A registry that trusts the token server."""
    try:
        with DockerRegistry(tokens=tokens.auth()) as running:
            yield running
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def open_model(tokened: DockerRegistry, tmp_path: Path) -> Repository:
    """An artifact that anybody with a token may read."""
    made = repository(tokened, tmp_path)
    made.push({"config.json": CONFIG, "b.json": CONFIG[::-1]})
    return made


def test_anybody_gets_a_token_where_the_realm_gives_one(open_model, tokens):
    before = len(tokens.issued)
    ref = open_model.ref()
    source = open_with(ref)
    files = source.resolve(parse_ref(f"oci://{ref}")).files
    assert [read(source, file).body for file in files] == [CONFIG[::-1], CONFIG]
    assert len(tokens.issued) == before + 1
    assert tokens.scopes()[-1] == [f"repository:{open_model.name}:pull"]


def test_a_password_is_given_to_the_realm_and_a_token_to_the_registry(open_model, tokens, tmp_path):
    basic = f"Basic {packed('puller', SECRET)}"
    tokens.accepted, tokens.anonymous = {basic}, False
    ref = open_model.ref()
    auth_file = stored(tmp_path / "c.json", open_model.registry)
    source = open_with(ref, auth_file)
    file = source.resolve(parse_ref(f"oci://{ref}")).files[0]
    assert tokens.asked[-1].headers["authorization"] == basic
    headers = dict(source.locate(file).headers)
    assert headers["Authorization"] == f"Bearer {tokens.issued[-1]}"


def test_an_identity_token_is_exchanged_by_a_form(open_model, tokens, tmp_path):
    tokens.accepted, tokens.anonymous = {"refresh:identity"}, False
    entry = {"auth": packed("x", "y"), "identitytoken": "identity"}
    auth_file = write(tmp_path / "c.json", {"auths": {open_model.registry: entry}})
    ref = open_model.ref()
    assert open_with(ref, auth_file).resolve(parse_ref(f"oci://{ref}")).files
    assert tokens.asked[-1].method == "POST"
    assert "identity" not in tokens.asked[-1].path


def test_without_a_credential_a_closed_realm_is_no_credentials(open_model, tokens):
    tokens.anonymous = False
    with pytest.raises(NoCredentials, match="docker login"):
        open_with(open_model.ref()).resolve(parse_ref(f"oci://{open_model.ref()}"))


def test_a_credential_that_the_realm_refuses_is_forbidden(open_model, tokens, tmp_path):
    tokens.anonymous = False
    auth_file = stored(tmp_path / "c.json", open_model.registry)
    with pytest.raises(Forbidden, match="token server") as caught:
        open_with(open_model.ref(), auth_file).resolve(parse_ref(f"oci://{open_model.ref()}"))
    assert SECRET not in caught.value.message


def test_a_lost_token_is_fetched_again(open_model, tokens):
    ref = open_model.ref()
    source = open_with(ref)
    file = source.resolve(parse_ref(f"oci://{ref}")).files[0]
    (grant,) = source._registry._authority._grants.values()
    spoiled = type(grant)("Bearer spoiled", grant.until_s)
    source._registry._authority._grants = dict.fromkeys(
        source._registry._authority._grants, spoiled
    )
    assert dict(source.locate(file).headers)["Authorization"] == "Bearer spoiled"
    fresh = source.locate(file, fresh=True)
    assert dict(fresh.headers)["Authorization"] == f"Bearer {tokens.issued[-1]}"
    assert read(source, file).body == CONFIG[::-1]


def test_a_token_of_short_life_is_renewed_in_time(open_model, tokens):
    tokens.lifetime_s = 8
    ref = open_model.ref()
    source = open_with(ref)
    file = source.resolve(parse_ref(f"oci://{ref}")).files[0]
    assert source.locate(file).good_for_s <= 4


def test_reading_and_writing_have_tokens_of_their_own(open_model, tokens):
    registry = Registry(open_model.registry, OciSettings(), TransferSettings())
    path = f"/v2/{open_model.name}/blobs/uploads/"
    started = registry.request("POST", path, repository=open_model.name, push=True)
    assert started.status == 202
    assert tokens.scopes()[-1] == [f"repository:{open_model.name}:pull,push"]
    registry.request("GET", "/v2/", repository=open_model.name)
    assert tokens.scopes()[-1] == [f"repository:{open_model.name}:pull"]
    registry.close()


def test_mounting_asks_to_read_from_the_other_repository_too(open_model, tokens):
    registry = Registry(open_model.registry, OciSettings(), TransferSettings())
    path = f"/v2/{open_model.name}/blobs/uploads/"
    registry.request("POST", path, repository=open_model.name, push=True, mount_from="other/model")
    own = f"repository:{open_model.name}:pull,push"
    assert tokens.scopes()[-1] == [own, "repository:other/model:pull"]
    registry.close()


# Realms that are not to be trusted, and answers that are none


def scripted_registry(challenge: str) -> ScriptedServer:
    server = ScriptedServer()
    server.answers["*"] = lambda _: Reply(401, {"WWW-Authenticate": challenge})
    return server


def refused(server: ScriptedServer) -> str:
    ref = f"127.0.0.1:{server.port}/m:t"
    with server, pytest.raises(SourceRefused) as caught:
        open_with(ref).resolve(parse_ref(f"oci://{ref}"))
    return caught.value.message


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        ("", "without saying how to log in"),
        ("Negotiate", "without saying how to log in"),
        ('Bearer realm="ftp://x/"', "cannot be used"),
        ('Bearer realm="http://u:p@x/"', "cannot be used"),
    ],
)
def test_challenges_that_cannot_be_met_are_named(challenge, words):
    assert words in refused(scripted_registry(challenge))


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"token": 7}', b'{"token": "a\\nb"}', b"[]"])
def test_a_realm_that_gives_no_token_is_named(body):
    server = ScriptedServer()
    realm = f'Bearer realm="{server.url("/token?secret=1")}",service="s"'
    server.answers["*"] = lambda _: Reply(401, {"WWW-Authenticate": realm})
    server.answers["/token"] = lambda _: Reply(200, {}, body)
    message = refused(server)
    assert "without a token" in message
    assert "secret" not in message


def test_a_registry_with_tls_may_not_send_us_to_a_realm_without(
    certificates: Certificates, tmp_path
):
    both = tmp_path / "both.pem"
    both.write_text(certificates.cert_file.read_text() + certificates.key_file.read_text())
    with ScriptedServer(both) as server:
        realm = 'Bearer realm="http://127.0.0.1:1/token"'
        server.answers["*"] = lambda _: Reply(401, {"WWW-Authenticate": realm})
        ref = f"127.0.0.1:{server.port}/m:t?plain-http=no"
        with pytest.raises(SourceRefused, match="not https"):
            open_with(ref, ca_file=str(certificates.ca_file)).resolve(parse_ref(f"oci://{ref}"))


def test_an_authority_of_ones_own_is_trusted_by_a_setting(certificates: Certificates):
    try:
        with DockerRegistry(tls=certificates) as registry:
            ref = f"oci://{registry.name}/m:t?plain-http=0"
            with pytest.raises(SourceRefused, match=r"oci\.ca_file"):
                OciSource(parse_ref(ref), OciSettings(), TransferSettings()).resolve(parse_ref(ref))
            trusting = OciSettings(ca_file=str(certificates.ca_file))
            source = OciSource(parse_ref(ref), trusting, TransferSettings())
            with pytest.raises(SourceRefused, match="does not exist"):
                source.resolve(parse_ref(ref))
    except ServerUnavailable as error:
        pytest.skip(str(error))


def test_netrc_is_not_for_registries(private):
    netrc = Path(os.environ["HOME"]) / ".netrc"
    write(netrc, f"machine 127.0.0.1 login puller password {SECRET}\n").chmod(0o600)
    with pytest.raises(NoCredentials):
        first_file(open_with(private.ref()), private.ref())


def test_docker_hub_has_an_address_and_a_library_of_its_own():
    registry = Registry("docker.io", Settings().oci, TransferSettings())
    assert registry.server.url == "https://registry-1.docker.io/"
    assert registry.repository("model") == "library/model"
    assert registry.repository("org/model") == "org/model"
    other = Registry("ghcr.io", Settings().oci, TransferSettings())
    assert (other.server.url, other.repository("model")) == ("https://ghcr.io/", "model")


@pytest.mark.parametrize(
    ("name", "option", "settings", "plain"),
    [
        ("localhost:5000", None, (), True),
        ("127.0.0.1", None, (), True),
        ("[::1]:5000", None, (), True),
        ("localhost:5000", "0", (), False),
        ("registry.lan:5000", None, (), False),
        ("registry.lan:5000", None, ("registry.lan:5000",), True),
        ("registry.lan", "1", (), True),
        ("localhost.example", None, (), False),
    ],
)
def test_tls_is_left_out_on_loopback_and_where_asked(name, option, settings, plain):
    registry = Registry(
        name, OciSettings(plain_http=settings), TransferSettings(), plain_http=option
    )
    assert registry.server.tls is not plain
