from pathlib import Path
from typing import Any

import pytest

from fabric.config import Config, Credentials, load, required, save, saved
from fabric.errors import ConfigError

FULL = Config(
    ("https://etcd1.example:2379", "https://[2001:db8::10]:2379"),
    "n1",
    Credentials("/e/ca.pem", "/e/n1.pem", "/e/n1.key", "n1", "pa:ss ö\n", ""),
)
CALICO = """
apiVersion: projectcalico.org/v3
kind: CalicoAPIConfig
metadata:
spec:
  datastoreType: etcdv3
  etcdEndpoints: https://etcd1:2379,https://etcd2:2379
  etcdKeyFile: /c/key.pem
  etcdCertFile: /c/cert.pem
  etcdCACertFile: /c/ca.pem
  etcdUsername: calico
  etcdPassword: secret
"""


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "config",
    [Config(("192.0.2.10:2379", "[2001:db8::10]:2379"), "n1"), Config(("a:1",), "n1", bgp=False), FULL],
)
def test_what_is_saved_is_loaded_whole_and_is_for_its_owner_only(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "etc" / "fabricctl.cfg"
    written(path.with_suffix(".new"), "left by a crash").chmod(0o666)
    save(config, path)
    assert saved(path) == config
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["fabricctl.cfg"]


def test_a_host_that_never_joined_has_saved_nothing(tmp_path: Path) -> None:
    assert saved(tmp_path / "absent") == Config()


@pytest.mark.parametrize(
    ("text", "bgp"), [("on", True), ("off", False), ('"off"', False), ("true", True), ("false", False)]
)
def test_bgp_is_switched_on_or_off_as_either_yaml_says_it(tmp_path: Path, text: str, bgp: bool) -> None:
    assert load(written(tmp_path / "fabricctl.cfg", f"bgp: {text}"), {}).bgp is bgp


@pytest.mark.parametrize("text", ["1", "never", "[off]", ""])
def test_another_word_for_bgp_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="bgp: must be on or off; nothing was done"):
        load(written(tmp_path / "fabricctl.cfg", f"bgp: {text}"), {})


@pytest.mark.parametrize(
    ("env", "flags", "want"),
    [
        ({}, {}, Credentials("/f/ca", "/f/cert", "/f/key", "filer", "file")),
        ({"ETCD_CA_CERT_FILE": "/e/ca"}, {}, Credentials("/e/ca", "/f/cert", "/f/key", "filer", "file")),
        (
            {"ETCD_CA_CERT_FILE": "/e/ca", "ETCD_USERNAME": "env", "ETCD_PASSWORD": "env"},
            {"etcd_ca": "/g/ca"},
            Credentials("/g/ca", "/f/cert", "/f/key", "env", "env"),
        ),
        (
            {"ETCD_CERT_FILE": "/e/cert", "ETCD_KEY_FILE": "/e/key"},
            {"etcd_user": "flag"},
            Credentials("/f/ca", "/e/cert", "/e/key", "flag", "file"),
        ),
        (
            {"ETCD_PASSWORD_FILE": "/e/password"},
            {},
            Credentials("/f/ca", "/f/cert", "/f/key", "filer", "", "/e/password"),
        ),
        (
            {"ETCD_PASSWORD_FILE": "/e/password", "ETCD_USERNAME": "env"},
            {"etcd_password_file": "/g/password"},
            Credentials("/f/ca", "/f/cert", "/f/key", "env", "", "/g/password"),
        ),
        # An empty value takes back what was said before.
        ({"ETCD_USERNAME": "", "ETCD_CERT_FILE": "", "ETCD_KEY_FILE": ""}, {}, Credentials("/f/ca", password="file")),
    ],
)  # fmt: skip
def test_the_environment_overrides_the_file_and_flags_override_both(
    tmp_path: Path, env: dict[str, str], flags: dict[str, str], want: Credentials
) -> None:
    path = tmp_path / "fabricctl.cfg"
    save(Config(("https://f:1",), "n1", Credentials("/f/ca", "/f/cert", "/f/key", "filer", "file")), path)
    assert load(path, env, flags) == Config(("https://f:1",), "n1", want)


@pytest.mark.parametrize(
    ("env", "flags", "want"),
    [
        ({}, {}, ("f:1",)),
        ({"ETCD_ENDPOINTS": "http://a:1, http://b:2/"}, {}, ("a:1", "b:2")),
        ({"ETCD_ENDPOINTS": "http://a:1"}, {"etcd": "c:3,c:3,[::1]:4"}, ("c:3", "[::1]:4")),
        ({"ETCD_ENDPOINTS": "https://a:1"}, {}, ("https://a:1",)),
        ({"ETCD_CA_CERT_FILE": "/ca"}, {}, ("https://f:1",)),
        ({"ETCD_CERT_FILE": "/c", "ETCD_KEY_FILE": "/k"}, {"etcd": "a:1,https://b:1"}, ("https://a:1", "https://b:1")),
    ],
)  # fmt: skip
def test_an_endpoint_without_a_scheme_is_tls_where_certificates_are_given(
    tmp_path: Path, env: dict[str, str], flags: dict[str, str], want: tuple[str, ...]
) -> None:
    path = written(tmp_path / "fabricctl.cfg", "etcd: [f:1]\nnode: n1")
    assert load(path, env, flags).etcd == want


def test_relative_paths_start_at_the_file_that_has_them_and_at_the_callers_directory(tmp_path: Path) -> None:
    path = written(tmp_path / "fabricctl.cfg", "etcd: f:1\netcd_ca: pki/ca.pem")
    assert load(path, {}).credentials.ca == str(tmp_path / "pki/ca.pem")
    assert load(path, {}, {"etcd_ca": "ca.pem"}).credentials.ca == str(Path.cwd() / "ca.pem")


def test_a_calicoctl_cfg_is_read_as_it_is(tmp_path: Path) -> None:
    config = load(written(tmp_path / "calicoctl.cfg", CALICO), {})
    assert config.etcd == ("https://etcd1:2379", "https://etcd2:2379")
    assert config.credentials == Credentials("/c/ca.pem", "/c/cert.pem", "/c/key.pem", "calico", "secret")


def test_the_inline_certificates_of_a_calicoctl_cfg_stay_text(tmp_path: Path) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    text = f"kind: CalicoAPIConfig\nspec: {{etcdEndpoints: 'a:1', etcdCACert: {pem!r}, etcdCACertFile: ''}}"
    text = text.replace("'-----", '"-----').replace("-----\\n'", '-----\\n"')
    config = load(written(tmp_path / "calicoctl.cfg", text), {})
    assert config == Config(("https://a:1",), "", Credentials(pem))


def test_the_first_file_there_is_is_read(tmp_path: Path) -> None:
    """The system's own comes between; on a machine that has one, it is what the last line finds."""
    written(tmp_path / ".config/fabricctl/fabricctl.cfg", "etcd: home:1")
    named = written(tmp_path / "named.cfg", "etcd: named:1")
    flagged = written(tmp_path / "flagged.cfg", "etcd: flagged:1")
    env = {"HOME": str(tmp_path), "FABRICCTL_CONFIG": str(named)}
    assert load(flagged, env).etcd == ("flagged:1",)
    assert load(None, env).etcd == ("named:1",)
    if not Path("/etc/fabricctl/fabricctl.cfg").exists():
        assert load(None, {"HOME": str(tmp_path)}).etcd == ("home:1",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("etcd: [\npassword", r"fabricctl.cfg:\d: not readable as YAML"),
        ("[]", "KEY: VALUE"),
        ("etcd: ''", "fabricctl.cfg: etcd: is empty"),
        ("etcd: []", "fabricctl.cfg: etcd: is empty"),
        ("etcd: a:1\nnode: 5", "node: must be text"),
        ("etcd: a:1\netcd_user: u\netcd_password: 0123", "etcd_password: must be text; .* in quotes"),
        ("etcd: a:1\netcd-ca: x", '"etcd-ca" is not a setting; .*etcd_ca'),
        ("etcd: a:1\n5: x", '"5" is not a setting'),
        ("etcd: [nowhere]", "must be HOST:PORT"),
        ("etcd: a:1\netcd_cert: /c", "etcd_cert: is given without etcd_key; .*ETCD_KEY_FILE"),
        ("etcd: a:1\netcd_key: /k", "etcd_key: is given without etcd_cert"),
        ("etcd: a:1\netcd_user: u", "etcd_user: is given without etcd_password or etcd_password_file"),
        ("etcd: a:1\netcd_password: u", "etcd_password: is given without etcd_user"),
        ("etcd: a:1\netcd_user: u\netcd_password: p\netcd_password_file: /p", "two passwords"),
        ("etcd: http://a:1\netcd_ca: /ca", "http:// is plain text .*write https://"),
        ("kind: CalicoAPIConfig\nspec: {datastoreType: kubernetes}", "only etcdv3"),
        ("kind: CalicoAPIConfig\nspec: {etcdDiscoverySrv: example.com}", "ETCD_ENDPOINTS"),
        ("kind: CalicoAPIConfig\nspec: {etcdKey: a, etcdKeyFile: b}", "both a file and inline"),
        ("kind: CalicoAPIConfig\nspec: 5", "spec: must hold settings"),
        ("etcd: 2026-99-99", "looks like a date or a number and is none"),
        ("etcd: !!int x", "looks like a date or a number and is none"),
        ("[" * 5000, "nested too deep"),
        ("etcd: a:1\netcd: b:1", 'cfg:2: "etcd" is given twice'),
        ("? [a]\n: 1", "cfg:1: not readable as YAML"),
        ("#" * (1 << 20) + "\netcd: a:1", "is larger than 1 MiB"),
        ('etcd: a:1\netcd_ca: "\\0"', "etcd_ca: holds bytes that are no UTF-8, or a NUL"),
    ],
)
def test_a_broken_file_is_refused_with_the_place_and_the_way_out(
    tmp_path: Path, text: str, said: str
) -> None:
    path = written(tmp_path / "fabricctl.cfg", text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(path, {})
    assert str(path) in str(caught.value)
    assert "nothing was done" in str(caught.value)


def test_a_password_is_never_repeated_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'"https://…@a:1": must be HOST:PORT'):
        load(None, {"FABRICCTL_CONFIG": "/dev/null", "ETCD_ENDPOINTS": "https://u:hunter2@a:1"})
    path = written(tmp_path / "fabricctl.cfg", 'etcd_password: "hunter2" hunter2\n')
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert "hunter2" not in str(caught.value) + repr(Config(credentials=Credentials(password="hunter2")))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"ETCD_ENDPOINTS": ""}, "ETCD_ENDPOINTS: is empty; nothing was done; unset it"),
        ({"ETCD_ENDPOINTS": "a:1,"}, 'etcd endpoint "": must be HOST:PORT'),
        ({"ETCD_USERNAME": "u"}, "ETCD_USERNAME: is given without .*ETCD_PASSWORD"),
        ({"ETCD_DISCOVERY_SRV": "example.com"}, "ETCD_DISCOVERY_SRV: .*ETCD_ENDPOINTS"),
        ({"FABRICCTL_CONFIG": ""}, "FABRICCTL_CONFIG: is empty"),
        ({"FABRICCTL_CONFIG": "/absent.cfg"}, "/absent.cfg: No such file"),
    ],
)
def test_a_variable_that_makes_no_sense_is_refused(env: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(None, env)
    assert "nothing was done" in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not UTF-8", "a directory"])
def test_a_file_that_cannot_be_read_names_itself(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "fabricctl.cfg"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        load(path, {})


def test_without_an_endpoint_the_message_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="ETCD_ENDPOINTS"):
        required(Config(node="n1"))
    assert required(Config(("a:1",))).etcd == ("a:1",)


@pytest.mark.parametrize(
    "text",
    ["192.0.2.10", ":2379", "a:port", " ,", "//a:1x", "a:0", "a:65536", "2001:db8::1:2379", "u:p@a:1", "a b:1",
     "ftp://a:1", "https://a", "https://a:1/x", "a:١٢", "[:::::]:1", "[::1%eth0]:1", ".a:1", "a..b:1",
     f"{'a' * 64}:1", "a\x01:1"],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be HOST:PORT.*; nothing was done; correct it in --etcd"):
        load(None, {"FABRICCTL_CONFIG": "/dev/null"}, {"etcd": text})


def test_what_cannot_be_sent_is_refused() -> None:
    env = {"FABRICCTL_CONFIG": "/dev/null", "ETCD_USERNAME": "u", "ETCD_PASSWORD": "\udcff"}
    with pytest.raises(
        ConfigError, match=r"ETCD_PASSWORD: holds bytes that are no UTF-8.*; nothing was done"
    ):
        load(None, env)


def test_an_empty_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="--etcd: is empty"):
        load(None, {"FABRICCTL_CONFIG": "/dev/null"}, {"etcd": ""})


def test_nothing_said_is_no_settings() -> None:
    nothing: dict[str, Any] = {}
    assert load(Path("/dev/null"), nothing, nothing) == Config()
