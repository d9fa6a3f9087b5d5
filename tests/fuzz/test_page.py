"""The page under hostile requests, two visitors, and some jobs in a row."""

import httpx
import pytest
from gradio_client.exceptions import AppError

from fuzz import page


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site():
    with page.hostile_page() as site:
        yield site


def test_hostile_requests_do_no_harm(site):
    answers = [request() for request in page.requests(site)]
    assert len(answers) >= 50
    assert not {answer.name: found for answer in answers if (found := page.faults(site, answer))}
    assert next(answer.status for answer in answers if answer.name == "oversized upload") == 413


def test_others_are_served_beside_slow_uploads_and_many_tabs(site):
    with page.slow_uploads(site, 20):
        page.many_sessions(site, 60)
        assert page.is_alive(site)
        assert site.call("inspect", "inspect", [None]).status == 200


def test_two_visitors_never_see_each_others_files(site):
    """Neither by their names, nor the person that another has made."""
    mine, other = site.client(), site.client()
    result, *_ = site.animate(mine)
    assert result and mine.session_hash != other.session_hash
    for endpoint in ("/save_person", "/person_card", "/try_person"):
        names = other.view_api(return_format="dict")["named_endpoints"]
        if endpoint in names:
            with pytest.raises(AppError):
                other.predict(*[None] * len(names[endpoint]["parameters"]), api_name=endpoint)
    for path in (site.secret, site.cache, site.cache.parent, site.folder / "work"):
        assert httpx.get(f"{site.url}gradio_api/file={path}").status_code in (403, 404)


def test_memory_is_flat_and_nothing_is_left():
    with page.hostile_page(keep_seconds=20) as site:
        site.call("a folder", "inspect", [{"path": str(site.cache), "meta": {"_type": "gradio.FileData"}}])
        assert page.soak(site, 10) < 100
        assert page.files_left(site) == []
