"""Where settings come from, which source wins, and how a wrong one is told without telling a secret."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from handler_core.config import (
    EmbeddingsSettings,
    LLMSettings,
    MilvusSettings,
    NatsSettings,
    RerankerSettings,
    ServiceSettings,
    SettingsError,
    load,
    masked,
    printable,
)


class Everything(ServiceSettings, LLMSettings, EmbeddingsSettings, RerankerSettings, MilvusSettings):
    """All groups at once, as a service has them."""


@pytest.fixture(autouse=True)
def secrets_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty SECRETS_DIR, and none of the settings' variables from outside."""
    for name in list(os.environ):
        if name.split("_")[0] in {"NATS", "LLM", "VLLM", "HEALTH", "LOG", "MILVUS", "EMBEDDINGS", "RERANKER", "DRAIN"}:
            monkeypatch.delenv(name)
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("SECRETS_DIR", str(folder))
    return folder


def test_everything_has_a_default_that_works_on_one_machine() -> None:
    settings = load(Everything)
    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.health_port == 8080
    assert settings.llm_url.startswith("http://127.0.0.1:")
    assert settings.reranker_url is None
    assert settings.milvus_address == "http://127.0.0.1:19530"
    assert settings.collection_name == "documents"


@pytest.mark.parametrize("name", ["LLM_MODEL", "llm_model"])
def test_the_environment_sets_a_field_in_any_case(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "big")
    assert load(LLMSettings).llm_model == "big"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEALTH_PORT", "RERANKER_URL", "NATS_TOKEN", "NATS_TOKEN_FILE", "LLM_URL"):
        monkeypatch.setenv(name, "")
    settings = load(Everything)
    assert (settings.health_port, settings.reranker_url, settings.nats_token) == (8080, None, None)
    assert settings.llm_url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("name", ["NATS_TOKEN", "nats_token"])
def test_a_file_in_the_secrets_folder_sets_a_field(secrets_dir: Path, name: str) -> None:
    (secrets_dir / name).write_text("hush\n")
    token = load(NatsSettings).nats_token
    assert token is not None
    assert token.get_secret_value() == "hush"


@pytest.mark.parametrize("name", ["LLM_URL", "VLLM_URL", "llm_url", "vllm_url"])
def test_a_file_in_the_secrets_folder_sets_a_field_by_either_name(secrets_dir: Path, name: str) -> None:
    (secrets_dir / name).write_text("http://gpu:8000\n")
    assert load(LLMSettings).llm_url == "http://gpu:8000"


@pytest.mark.parametrize("name", ["HEALTH_PORT", "LLM_URL", "VLLM_URL"])
def test_a_file_named_by_a_variable_sets_a_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = "9090" if name == "HEALTH_PORT" else "http://gpu:9090"
    (tmp_path / "value").write_text(f" {value}\n")
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "value"))
    settings = load(Everything)
    assert value in (str(settings.health_port), settings.llm_url)


def test_a_mounted_file_is_itself_the_value_of_a_setting_that_is_a_path(secrets_dir: Path) -> None:
    (secrets_dir / "nats_creds").write_text("-----BEGIN NATS USER JWT-----\n")
    assert load(NatsSettings).nats_creds == secrets_dir / "nats_creds"


def test_an_empty_file_sets_nothing(secrets_dir: Path) -> None:
    (secrets_dir / "nats_token").write_text("\n")
    assert load(NatsSettings).nats_token is None


def test_a_folder_of_a_settings_name_is_no_secret(secrets_dir: Path) -> None:
    (secrets_dir / "nats_token").mkdir()
    assert load(NatsSettings).nats_token is None


def test_sources_count_in_order(secrets_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> str:
        return load(LLMSettings).llm_model

    (secrets_dir / "llm_model").write_text("from the folder")
    assert model() == "from the folder"
    (tmp_path / "named").write_text("from the named file")
    monkeypatch.setenv("LLM_MODEL_FILE", str(tmp_path / "named"))
    assert model() == "from the named file"
    monkeypatch.setenv("LLM_MODEL", "from the environment")
    assert model() == "from the environment"
    assert load(LLMSettings, llm_model="from the caller").llm_model == "from the caller"


def test_an_alias_in_the_environment_beats_the_name_in_a_file(
    secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets_dir / "LLM_URL").write_text("http://file")
    monkeypatch.setenv("VLLM_URL", "http://environment")
    assert load(LLMSettings).llm_url == "http://environment"
    assert load(LLMSettings, llm_url="http://caller").llm_url == "http://caller"


def test_the_name_beats_its_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_URL", "http://alias")
    monkeypatch.setenv("LLM_URL", "http://name")
    assert load(LLMSettings).llm_url == "http://name"


def test_settings_do_not_change_once_read() -> None:
    settings = load(ServiceSettings)
    with pytest.raises(ValidationError, match="frozen"):
        settings.health_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEALTH_PORT", "eighty-HUSH"),
        ("HEALTH_PORT", "70000"),
        ("LOG_LEVEL", "HUSH"),
        ("LOG_FORMAT", "HUSH"),
        ("DRAIN_TIMEOUT", "0"),
        ("DRAIN_TIMEOUT", "nan"),
        ("NATS_URL", "HUSH"),
        ("NATS_URL", "http://HUSH"),
        ("NATS_URL", "nats://"),
        ("NATS_URL", "nats://user:HU/SH@host:4222"),
        ("NATS_URL", "nats://host:HUSH"),
        ("NATS_URL", "nats://a:4222,,nats://b"),
        ("NATS_NKEY_SEED", "SUHUSH"),
        ("NATS_NKEY_SEED", "SA" + "A" * 56),
        ("NATS_CREDS", "HUSH"),
        ("NATS_CREDS", "-----BEGIN NATS USER JWT-----\n" + "HUSH" * 2000),
        ("NATS_TLS_CA", "/HUSH.pem"),
        ("LLM_URL", "ftp://user:HUSH@host"),
        ("LLM_TIMEOUT", "-1"),
        ("RERANKER_URL", "HUSH"),
        ("MILVUS_URI", "HUSH"),
        ("MILVUS_PORT", "0"),
        ("COLLECTION_NAME", "HUSH-HUSH"),
        ("NATS_TOKEN_FILE", "/does/not/exist"),
        ("NATS_TOKEN_FILE", "/"),
        ("NATS_PASSWORD", "HUSH"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load(Everything)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert "HUSH" not in message
    assert "HU" not in message
    assert len(message) < 200


def test_a_wrong_alias_is_told_by_a_name_the_user_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_URL", "nonsense")
    with pytest.raises(SettingsError, match=r"^LLM_URL: "):
        load(LLMSettings)


def test_a_file_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "binary").write_bytes(b"HUSH\xff\xfe")
    monkeypatch.setenv("NATS_TOKEN_FILE", str(tmp_path / "binary"))
    with pytest.raises(SettingsError, match=r"^NATS_TOKEN_FILE: .* is not UTF-8 text$"):
        load(NatsSettings)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"nats_user": "u", "nats_password": "HUSH", "nats_token": "HUSH"}, "NATS_TOKEN: .* NATS_USER"),
        ({"nats_token": "HUSH", "nats_nkey_seed": "SU" + "A" * 56}, "NATS_NKEY_SEED: .* NATS_TOKEN"),
        ({"nats_tls_key": Path(__file__)}, "NATS_TLS_KEY: needs NATS_TLS_CERT"),
    ],
)
def test_settings_that_contradict_each_other_are_named(given: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^{named}") as caught:
        load(NatsSettings, **given)
    assert "HUSH" not in str(caught.value)


def secretive() -> Everything:
    return load(
        Everything,
        nats_url="nats://bob:HUSH@a:4222,nats://b:4222,nats://eve:HU@SH@c",
        nats_token="HUSH",
        llm_url="https://key:HUSH@llm.example/v1",
        llm_api_key="HUSH",
        llm_premium_api_key="HUSH",
        embeddings_api_key="HUSH",
        reranker_api_key="HUSH",
        milvus_uri="http://root:HUSH@milvus:19530",
        milvus_token="HUSH",
    )


def test_what_is_printed_has_every_setting_and_no_secret() -> None:
    printed = printable(secretive())
    assert "HU" not in printed
    assert "SH@" not in printed
    lines = dict(line.split("=", 1) for line in printed.splitlines())
    assert lines["NATS_URL"] == "nats://…@a:4222,nats://b:4222,nats://…@c"
    assert lines["LLM_URL"] == "https://…@llm.example/v1"
    assert lines["LLM_API_KEY"] == "**********"
    assert lines["RERANKER_URL"] == ""
    assert lines["HEALTH_PORT"] == "8080"
    assert len(lines) == len(Everything.model_fields)


def test_the_representation_holds_no_secret() -> None:
    settings = secretive()
    for text in (repr(settings), str(settings)):
        assert "HUSH" not in text
        assert "SH@" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://a:4222", "nats://a:4222"),
        ("nats://u:p@a:4222", "nats://…@a:4222"),
        ("nats://a,tls://t@b", "nats://a,tls://…@b"),
        ("http://a/b?c=d@e", "http://…@e"),  # rather too much than too little
        ("plain", "plain"),
    ],
)
def test_masking_hides_user_information(url: str, shown: str) -> None:
    assert masked(url) == shown


PROGRAM = """
from handler_core.config import ServiceSettings
from handler_core.service import Service
Service("sample", ServiceSettings).main()
"""


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_a_wrong_setting_ends_the_process_with_one_line_and_code_2() -> None:
    ended = run(HEALTH_PORT="HUSH")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "setting HEALTH_PORT: Input should be a valid integer, unable to parse string as an integer\n"
    )


def test_print_config_shows_the_effective_settings_and_exits() -> None:
    ended = run("--print-config", NATS_TOKEN="HUSH", HEALTH_PORT="1234")
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert "HEALTH_PORT=1234\n" in ended.stdout
    assert "HUSH" not in ended.stdout


def test_help_names_the_service_and_needs_no_settings() -> None:
    ended = run("--help", HEALTH_PORT="wrong")
    assert ended.returncode == 0
    assert "usage: python -m sample" in ended.stdout
    assert "--print-config" in ended.stdout


def test_an_unknown_option_ends_with_a_usage() -> None:
    ended = run("--frobnicate")
    assert ended.returncode == 2
    assert "unrecognized arguments: --frobnicate" in ended.stderr
