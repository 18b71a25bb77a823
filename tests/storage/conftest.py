"""Provide a bucket behind a proxy that can fail, for each kind of address."""

import os

import pytest

ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}


@pytest.fixture(scope="module", params=ENDPOINTS)
def place(request, tmp_path_factory):
    """Yield a function that makes a bucket, and a proxy between this process and the server."""
    # At the top, this would import the package before tests/conftest.py has set the filters of warnings.
    from tests.helpers.bucket_case import Proxy, bucket_maker

    with bucket_maker(request.param, tmp_path_factory.mktemp("cache")) as make, pytest.MonkeyPatch.context() as patch:
        proxy = Proxy(os.environ[ENDPOINTS[request.param]])
        patch.setitem(os.environ, ENDPOINTS[request.param], proxy.address)
        yield make, proxy
        proxy.close()
