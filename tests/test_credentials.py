"""TLS, tokens and headers against a real Triton and a real gate: they work, and they are seen nowhere."""

from __future__ import annotations

import logging
import pickle
import re
from contextlib import ExitStack

import cloudpickle
import dask.config
import grpc
import numpy as np
import pytest
from certificates import write_authority, write_certificate
from distributed import Client
from token_gate import Gate
from triton_models import write_model

import daskonic as dk
from daskonic.config import Credentials, resolve
from daskonic.errors import ConfigError, DaskonicError, ServerError, UnavailableError
from daskonic.pool import Pool
from daskonic.tensors import Request
from daskonic.transport.grpc import GrpcTransport

X = np.arange(12, dtype="f4").reshape(3, 4)
SECRET = "s3cr3t-of-nobody-else"  # what must appear nowhere


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Folder with ca, server, client; and other, an authority that nobody asked."""
    folder = tmp_path_factory.mktemp("certificates")
    write_authority(folder, "ca")
    write_authority(folder, "other")
    write_certificate(folder, "server", "ca")
    write_certificate(folder, "client", "ca")
    write_certificate(folder, "elsewhere", "ca", "DNS:triton.example.org")
    return folder


@pytest.fixture(scope="module")
def servers(tmp_path_factory, certificates):
    """Addresses of a Triton by TLS, one that wants client certificates, one with a restricted protocol."""
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "identity", kind="identity")

    def flags(name):
        return [
            f"--grpc-server-cert={certificates / name}.pem",
            f"--grpc-server-key={certificates / name}.key",
        ]

    started = {
        "tls": ["--grpc-use-ssl=true", *flags("server")],
        "mutual": ["--grpc-use-ssl-mutual=true", *flags("server"), f"--grpc-root-cert={certificates}/ca.pem"],
        "elsewhere": ["--grpc-use-ssl=true", *flags("elsewhere")],
        "restricted": [f"--grpc-restricted-protocol=inference,model-repository:key={SECRET}"],
    }
    with ExitStack() as stack:
        addresses = {}
        for name, given in started.items():
            server = dk.local_server(repository, flags=given).start()
            stack.callback(server.stop, grace_s=0)  # Triton waits for open connections otherwise
            addresses[name] = server.address
        yield addresses


@pytest.fixture
def ca(certificates):
    return {"ca-file": str(certificates / "ca.pem")}


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    return path


@pytest.fixture
def gate(triton):
    with Gate(triton.address, SECRET) as gate:
        yield gate


def model(address, credentials=None, **settings):
    return dk.Model("identity", servers=[address], credentials=credentials, **settings)


def through(transport, x=X):
    request = Request("identity", "1", {"X": x}, ("Y",), len(x))
    return transport.decode(transport.submit(transport.encode(request), 20).result()).outputs["Y"]


# -- TLS -------------------------------------------------------------------------------------------


def test_tls_with_a_private_authority(servers, ca):
    """grpcs:// and a CA file are enough; large requests still go through shared memory."""
    np.testing.assert_array_equal(model(f"grpcs://{servers['tls']}", ca)(X), X)
    large = np.random.default_rng(0).normal(size=(100, 4096)).astype("f4")
    np.testing.assert_array_equal(model(f"grpcs://{servers['tls']}", ca)(large), large)


def test_tls_for_all_addresses(servers, ca):
    """With tls: true an address needs no scheme, and grpc:// says plain text all the same."""
    with dask.config.set({"daskonic.credentials.tls": True, "daskonic.credentials.ca-file": ca["ca-file"]}):
        np.testing.assert_array_equal(dk.Model("identity", servers=[servers["tls"]])(X), X)
        assert resolve(["a:1", "grpc://b:1", "grpcs://c:1", "unix:/s"]).servers == (
            "grpcs://a:1", "b:1", "grpcs://c:1", "unix:/s",
        )  # fmt: skip


def test_client_certificate(servers, ca, certificates):
    """A server that asks for a certificate gets it."""
    own = {
        "certificate-file": str(certificates / "client.pem"),
        "key-file": str(certificates / "client.key"),
    }
    np.testing.assert_array_equal(model(f"grpcs://{servers['mutual']}", ca | own)(X), X)


@pytest.mark.parametrize(
    ("server", "scheme", "credentials", "said"),
    [
        ("plain", "grpcs://", {"ca-file": "ca.pem"}, "TLS was asked for and the server speaks plain text"),
        ("tls", "", {}, r"one that speaks TLS \(then write grpcs://"),
        (
            "tls",
            "grpcs://",
            {"ca-file": "other.pem"},
            r"not signed by who daskonic\.credentials\.ca-file says",
        ),
        ("tls", "grpcs://", {}, r"not signed by who daskonic\.credentials\.ca-file says"),
        ("elsewhere", "grpcs://", {"ca-file": "ca.pem"}, "certificate is for another name"),
        ("mutual", "grpcs://", {"ca-file": "ca.pem"}, "asks for a client certificate and gets none it knows"),
        (
            "mutual",
            "grpcs://",
            {"ca-file": "ca.pem", "certificate-file": "other.pem", "key-file": "other.key"},
            "asks for a client certificate and gets none it knows",
        ),
        (
            "mutual",
            "grpcs://",
            {"ca-file": "ca.pem", "certificate-file": "client.pem", "key-file": "other.key"},
            "do not belong together",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(triton, servers, certificates, server, scheme, credentials, said):
    """Plain text and TLS mixed up, a wrong authority, name or certificate: one line with the cause and the cure."""
    address = scheme + (triton.address if server == "plain" else servers[server])
    files = {key: str(certificates / name) for key, name in credentials.items()}
    with pytest.raises(ServerError, match=said) as caught:
        model(address, files, connect_timeout="1 s").spec()
    assert "\n" not in str(caught.value)


# -- tokens and headers ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "env"])
@pytest.mark.parametrize("rows", [3, 100_000])
def test_token(gate, token_file, monkeypatch, place, rows):
    """A token from a file or a variable opens the gate, for a small message and for one in shared memory."""
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    source = {"token-file": str(token_file)} if place == "file" else {"token-env": "TEST_TOKEN"}
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype("f4")
    scores = model(gate.address, source | {"token-over-plain-text": True}, batch_bytes="1 MiB")(x)
    np.testing.assert_array_equal(scores, x)
    assert gate.refused == 0


def test_token_by_tls(triton, certificates, ca, token_file):
    """Token and TLS together, as sites have it: nothing has to be allowed."""
    pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
    with Gate(triton.address, SECRET, grpc.ssl_server_credentials([pair])) as gate:
        np.testing.assert_array_equal(model(gate.address, ca | {"token-file": str(token_file)})(X), X)


def test_a_renewed_token_is_seen(gate, token_file):
    """Tokens are read at each request: one that was renewed in time costs nothing."""
    transport = GrpcTransport(gate.address, Credentials(token_file=str(token_file), over_plain_text=True))
    np.testing.assert_array_equal(through(transport), X)
    gate.token = "another"
    token_file.write_text("another")
    np.testing.assert_array_equal(through(transport), X)
    assert gate.refused == 0
    transport.close()


@pytest.mark.parametrize("rows", [3, 1000])
def test_a_refused_token_is_read_once_more(gate, token_file, rows):
    """A token that is renewed at the wrong moment: the same request goes again, and no caller sees it."""
    transport = GrpcTransport(gate.address, Credentials(token_file=str(token_file), over_plain_text=True))
    x = np.ones((rows, 128), "f4")
    through(transport, x)
    gate.token = "another"
    gate.when_refusing = lambda: token_file.write_text("another")
    np.testing.assert_array_equal(through(transport, x), x)
    assert gate.refused == 1
    gate.token = "a third"
    gate.when_refusing = lambda: token_file.write_text("a third")
    assert transport.model_spec("identity", "", 10).name == "identity"
    assert gate.refused == 2
    transport.close()


def test_a_wrong_token_is_tried_twice_and_no_more(gate, token_file):
    """A token that stays wrong is a permanent error."""
    transport = GrpcTransport(gate.address, Credentials(token_file=str(token_file), over_plain_text=True))
    gate.token = "another"
    with pytest.raises(ServerError, match="wants valid credentials") as caught:
        through(transport)
    assert not caught.value.retryable
    assert (gate.passed, gate.refused) == (0, 2)
    transport.close()


def test_a_token_that_is_gone_ends_the_request(gate, token_file):
    """The file vanishes between two attempts: an error that says so, not a hang."""
    transport = GrpcTransport(gate.address, Credentials(token_file=str(token_file), over_plain_text=True))
    gate.token, gate.when_refusing = "another", token_file.unlink
    with pytest.raises(ConfigError, match=r"token-file .* cannot be read on .*: No such file"):
        through(transport)
    transport.close()


def test_restricted_protocol(servers, tmp_path, monkeypatch):
    """Triton's own restriction: a header with a value from a file or a variable."""
    address, name = servers["restricted"], "triton-grpc-protocol-key"
    (tmp_path / "value").write_text(SECRET)
    monkeypatch.setenv("TEST_VALUE", SECRET)
    allowed = {"header": name, "token-over-plain-text": True}
    np.testing.assert_array_equal(model(address, allowed | {"header-file": str(tmp_path / "value")})(X), X)
    np.testing.assert_array_equal(model(address, allowed | {"header-env": "TEST_VALUE"})(X), X)
    with pytest.raises(ServerError, match=r"wants a header with this call \(daskonic\.credentials\.header"):
        model(address)(X)


def test_no_secret_in_plain_text(token_file):
    """Without TLS a token is refused before anything is sent, unless that is allowed."""
    given = {"token-file": str(token_file)}
    with pytest.raises(ConfigError, match=r"triton:8001 is spoken to in plain text.*grpcs://triton:8001"):
        resolve(["grpcs://a:1", "triton:8001"], credentials=given)
    with pytest.raises(ConfigError, match="plain text"):
        GrpcTransport("triton:8001", Credentials(token_file=str(token_file)))
    for address in ("grpcs://triton:8001", "unix:/run/triton"):
        assert resolve([address], credentials=given).credentials.has_secrets
    assert resolve(["triton:8001"], credentials=given | {"token-over-plain-text": True})


# -- never seen ------------------------------------------------------------------------------------


def test_a_secret_is_seen_nowhere(gate, token_file, caplog):
    """After requests that passed and failed: not in a pickle, a repr, an error or a record at any level."""
    given = {"token-file": str(token_file), "token-over-plain-text": True}
    with caplog.at_level(logging.DEBUG):
        tagger = model(gate.address, given)
        tagger(X)
        pool, plugin = tagger.pool(), dk.InferencePlugin([gate.address], credentials=given)
        gate.token = "another"
        with pytest.raises(ServerError) as caught:
            tagger(X)
    things = [tagger, plugin, tagger.pool().settings, caught.value, pool.stats()]
    seen = [repr(t) for t in [*things, pool, GrpcTransport(gate.address, pool.settings.credentials)]]
    seen += [cloudpickle.dumps(t).decode("latin-1") for t in things]
    seen += [pickle.dumps(t).decode("latin-1") for t in things]
    seen += [f"{r.getMessage()} {r.__dict__}" for r in caplog.records]
    assert any("submit" in text for text in seen)
    assert not [text for text in seen if SECRET in text]


def test_a_secret_stays_on_the_worker(gate, token_file):
    """Workers read the token themselves; neither plugin, scheduler nor worker logs have it."""
    given = {"token-file": str(token_file), "token-over-plain-text": True}
    with (
        dk.local_cluster(1, servers=[gate.address], settings={"credentials": given}) as cluster,
        Client(cluster) as client,
    ):
        done = client.submit(dk.Model("identity"), X, pure=False).result()
        np.testing.assert_array_equal(done, X)
        gate.token = "another"
        with pytest.raises(DaskonicError, match="wants valid credentials") as caught:
            client.submit(dk.Model("identity"), X, pure=False).result()
        logs = str([client.get_worker_logs(), client.get_scheduler_logs()])
    assert SECRET not in logs
    assert SECRET not in pickle.dumps(caught.value).decode("latin-1")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"%s\nx", "more than one line"),
        (b"\xff%s", "more than one line"),
        (b"\0%s", "more than"),
    ],
)
def test_an_unusable_secret_is_not_quoted(tmp_path, content, said):
    """What cannot be a header is refused by its place, not by its value."""
    path = tmp_path / "token"
    path.write_bytes(content.replace(b"%s", SECRET.encode()))
    transport = GrpcTransport("127.0.0.1:1", Credentials(token_file=str(path), over_plain_text=True))
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))} .*{said}") as caught:
        through(transport)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    transport.close()


def test_a_variable_that_is_not_set():
    """The message names the variable, and that it is looked for on the worker's side."""
    transport = GrpcTransport("127.0.0.1:1", Credentials(token_env="NO_SUCH_TOKEN", over_plain_text=True))
    with pytest.raises(ConfigError, match=r"variable NO_SUCH_TOKEN .*of process \d+ is not set"):
        through(transport)
    transport.close()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"certificate-file": "c.pem"}, "need each other"),
        ({"token-file": "t", "token-env": "T"}, "are both set"),
        ({"header": "x"}, "exactly one of"),
        ({"header-file": "x"}, "exactly one of"),
        ({"header": "X Y", "header-env": "V"}, "lower-case letters"),
        ({"header": "grpc-timeout", "header-env": "V"}, "lower-case letters"),
        ({"tls": "yes"}, "daskonic.credentials.tls is of type str; true or false is needed"),
        ({"token-file": 7}, "daskonic.credentials.token-file is of type int; text is needed"),
        ({"token": SECRET}, "unknown setting daskonic.credentials.token; did you mean"),
        (SECRET, "daskonic.credentials is of type str, not a mapping"),
    ],
)
def test_wrong_settings_are_named(given, said):
    """Half a pair, two of one, an unknown key: refused at once; values are not quoted."""
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        resolve(["grpcs://a:1"], credentials=given)
    assert SECRET not in str(caught.value)


def test_a_missing_certificate_is_said_where_it_is_missing(tmp_path):
    """Files are those of the worker: a missing one is an error there, with the host's name."""
    settings = resolve(["grpcs://a:1"], credentials={"ca-file": str(tmp_path / "no.pem")})
    with pytest.raises(ConfigError, match=r"ca-file .*no\.pem cannot be read on .*: No such file"):
        Pool(settings).spec("identity", "")
    (tmp_path / "no.pem").write_text("this is no certificate")
    with pytest.raises(ConfigError, match="is not in PEM form"):
        Pool(settings).spec("identity", "")


def test_nobody_there_by_tls(ca):
    """A closed port is a closed port."""
    with pytest.raises(UnavailableError, match="no connection"):
        GrpcTransport("grpcs://127.0.0.1:1", Credentials(ca_file=ca["ca-file"])).model_spec("m", "", 5)
