import pytest


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Use one thread: tensors here are tiny, and more threads would only wait for each other.

    Tests of threads set their own number.
    """
    threads(1)
