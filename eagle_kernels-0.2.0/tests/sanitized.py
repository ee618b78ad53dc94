"""A plugin of pytest, `-p tests.sanitized`: the tests run the native module that `make sanitize` built, which ends the
process at the first wrong address or undefined arithmetic. The sanitizers' libraries must be loaded before Python's."""

from pathlib import Path

import eagle_kernels

FOLDER = Path(__file__).parent.parent / "build/sanitize/eagle_kernels"
eagle_kernels.__path__.insert(0, str(FOLDER))


def pytest_report_header() -> str:
    from eagle_kernels import native

    loaded = Path(str(native.load().__file__))
    assert loaded.parent == FOLDER, f"{loaded} was loaded, not the module in {FOLDER}; make sanitize builds it"
    return f"native module: {loaded}"
