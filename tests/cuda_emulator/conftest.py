import pytest

from cuda_emulator import emulator


@pytest.fixture(scope="session", autouse=True)
def compiler():
    if emulator.COMPILER is None:
        pytest.skip("no g++ found")


@pytest.fixture(scope="session")
def program(compiler, tmp_path_factory):
    """program(operator) -> the operator's kernels, compiled once."""
    folder, programs = tmp_path_factory.mktemp("cuda_emulator"), {}

    def build(operator):
        if operator not in programs:
            programs[operator] = emulator.build(operator, folder)
        return programs[operator]

    return build
