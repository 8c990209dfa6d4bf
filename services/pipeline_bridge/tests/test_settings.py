"""Whether the bridge may have to encrypt, on which it depends whether OpenSSL is loaded."""

from pathlib import Path
from typing import Any

import pytest

from pipeline_bridge.service import Settings


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain"
    path.write_text("clusters: [{name: here, cluster: {server: 'http://127.0.0.1:8001'}}]")
    return path


@pytest.fixture
def secure(tmp_path: Path) -> Path:
    path = tmp_path / "secure"
    path.write_text("clusters: [{name: here, cluster: {server: 'https://10.0.0.1:6443'}}]")
    return path


def settings(**given: Any) -> Settings:
    return Settings(**{"kubernetes_service_host": None, **given})


def test_a_pods_own_access_is_encrypted() -> None:
    assert settings(kubernetes_service_host="10.0.0.1").encrypted


def test_a_kubeconfig_tells_whether_its_clusters_are(plain: Path, secure: Path) -> None:
    assert not settings(kubeconfig=plain, kubernetes_service_host="10.0.0.1").encrypted
    assert settings(kubeconfig=secure).encrypted


def test_a_kubeconfig_that_cannot_be_read_is_taken_to_be(tmp_path: Path) -> None:
    assert settings(kubeconfig=tmp_path / "none").encrypted


def test_other_upstreams_count_as_well(plain: Path) -> None:
    assert settings(kubeconfig=plain, argo_host="https://argo:2746").encrypted
    assert not settings(kubeconfig=plain, argo_host="http://argo:2746").encrypted
    assert not settings().encrypted
