"""The Your person tab in a real browser, against the real app with the bundled model and a hub on loopback."""

import zipfile

import pytest

from testing_utils.browser import Visitor
from testing_utils.hub_server import ANN
from testing_utils.paths import DRIVER, PORTRAIT


expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed").expect


def open_tab(visitor: Visitor, steps: int):
    page = visitor.page
    page.get_by_role("tab", name="Your person").click()
    page.locator("#person-options").get_by_role("button", name="Options").click()
    page.locator("#steps input").fill(str(steps))
    page.locator("#steps input").blur()
    return page


def test_from_portrait_to_published_person(visit, url, hub, tmp_path):
    visitor = visit()
    visitor.add_portraits(PORTRAIT)
    visitor.add_clip(DRIVER)
    visitor.limit_frames(2)
    page = open_tab(visitor, 2)
    page.locator("#fine-tune").click()
    page.locator("#person-preview img").wait_for(timeout=240_000)
    page.locator("#person-details").get_by_text("Fine-tuned on 1 portrait").wait_for(timeout=240_000)

    page.locator("#publish").get_by_role("button", name="Publish to the hub").click()
    page.locator("#repository textarea, #repository input").fill("anna")
    page.locator("#token input").fill(ANN)
    page.locator("#publish-button").click()
    page.get_by_text("Nothing was sent: tick the box").wait_for()
    assert hub.repositories == {} and page.locator("#token input").input_value() == ANN

    page.get_by_role("button", name="The card that will be sent").click()
    page.locator("#card h1").get_by_text("anna").wait_for()
    assert page.locator("#card img").evaluate("image => image.complete && image.naturalWidth") == 4 * 256
    page.locator("#consent input").check()
    page.locator("#publish-button").click()
    page.locator("#published").get_by_text("Published").wait_for(timeout=30_000)
    assert hub.repositories["ann/anna"].private and page.locator("#token input").input_value() == ""

    with page.expect_download() as download:
        page.locator("#save-person").click()
    download.value.save_as(tmp_path / "person.zip")
    assert "person/identity.json" in zipfile.ZipFile(tmp_path / "person.zip").namelist()

    page.get_by_role("tab", name="Animate").click()  # where the fine-tuned person is now chosen
    assert page.get_by_label("Your fine-tuned person").is_checked()
    visitor.animate()
    assert visitor.foreign_requests(url) == [] and not any(ANN in request for request in visitor.requests)

    # Who comes later loads the file, and tries it on the example's clip.
    other = visit().page
    other.get_by_role("tab", name="Your person").click()
    other.get_by_role("button", name="Or load a person").click()
    other.locator("#person-file input[type=file]").set_input_files(tmp_path / "person.zip")
    other.locator("#person-file").get_by_text("person.zip").first.wait_for()
    other.locator("#load-file").click()
    other.locator("#person-details").get_by_text("Loaded person.zip").wait_for(timeout=30_000)
    other.locator("#publish").get_by_role("button", name="Publish to the hub").click()
    other.locator("#consent input").check()
    other.locator("#load-file").click()  # another person, who needs a consent of their own
    expect(other.locator("#consent input")).not_to_be_checked(timeout=30_000)
    other.locator("#try-person:enabled").click()
    other.locator("#person-preview img").wait_for(timeout=30_000)
    other.locator("#person-cancel").click()
    other.locator("#person-details").get_by_text("Cancelled").wait_for()
    other.locator("#try-person:enabled").wait_for()
