import pytest
from built import ROOT, SITE, chromium, pages, served


@pytest.fixture(scope="session")
def address():
    with served() as url:
        yield url


@pytest.fixture(scope="session")
def browser():
    with chromium() as running:
        yield running


def pytest_generate_tests(metafunc):
    if "page" in metafunc.fixturenames:
        found = pages()
        metafunc.parametrize("page", found, ids=[str(path.relative_to(SITE)) for path in found])


@pytest.fixture(scope="session", autouse=True)
def site_is_there():
    if not (SITE / "index.html").exists():
        pytest.fail(f"there is no site in {SITE.relative_to(ROOT)}: make book")
