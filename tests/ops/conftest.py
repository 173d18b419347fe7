import pytest


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tensors here are tiny: more threads would only wait for each other. Tests of threads set
    their own number."""
    threads(1)
