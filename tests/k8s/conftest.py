"""kustomize, for whoever builds manifests."""

import pytest

from tools.k8s import kustomize


@pytest.fixture(scope="session")
def command() -> list[str]:
    try:
        return kustomize.find(build=False)
    except kustomize.KustomizeError as error:
        pytest.skip(str(error))
