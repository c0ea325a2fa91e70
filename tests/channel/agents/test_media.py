"""Images and files as values; content that cannot be read, and URLs that nothing here fetches."""

from typing import Any

import pytest

from channel.agent import TurnError
from channel.agents.media import Data, Media, media_of


IMAGE: dict[str, Any] = {"type": "input_image"}
FILE: dict[str, Any] = {"type": "input_file"}


@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "input_text", "text": "a"}, None),
        (
            {**IMAGE, "image_url": "data:image/png;base64,aGk=", "detail": "low"},
            Media(is_image=True, data=Data("image/png", b"hi"), detail="low"),
        ),
        ({**IMAGE, "image_url": "https://a/b"}, Media(is_image=True, url="https://a/b")),
        ({**IMAGE, "file_id": "file_1"}, Media(is_image=True, file_id="file_1")),
        (
            {**FILE, "file_data": "data:text/plain,hi", "filename": "a.txt"},
            Media(is_image=False, data=Data("text/plain", b"hi"), filename="a.txt"),
        ),
        (
            {**FILE, "file_data": "aGk="},
            Media(is_image=False, data=Data("application/octet-stream", b"hi")),
        ),
        ({**FILE, "file_url": "https://a/b"}, Media(is_image=False, url="https://a/b")),
    ],
)
def test_a_part_holds_an_image_a_file_or_neither(part: Any, media: Media | None) -> None:
    assert media_of(part) == media


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({**IMAGE, "image_url": "data:image/png;base64,%%%"}, "invalid_base64_image"),
        ({**IMAGE, "image_url": "data:image/png;base64,"}, "empty_image_file"),
        ({**IMAGE, "image_url": "file:///etc/passwd"}, "invalid_image_url"),
        ({**FILE, "file_data": "%%%"}, "invalid_value"),
        ({**FILE, "file_url": "file:///etc/passwd"}, "invalid_value"),
        ({**FILE, "file_url": "nonsense"}, "invalid_value"),
    ],
)
def test_what_cannot_be_read_is_the_clients_error(part: Any, code: str) -> None:
    with pytest.raises(TurnError) as caught:
        media_of(part)

    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, "input")


@pytest.mark.parametrize(
    ("media", "code"),
    [
        (Media(is_image=True, url="https://a/b"), "invalid_image_url"),
        (Media(is_image=False, file_id="file_1"), "invalid_value"),
    ],
)
def test_content_that_is_not_there_is_the_clients_error(media: Media, code: str) -> None:
    with pytest.raises(TurnError) as caught:
        media.content()

    assert (caught.value.status, caught.value.code) == (400, code)


def test_content_that_is_there_is_given() -> None:
    assert Media(is_image=True, data=Data("image/png", b"hi")).content().content == b"hi"
