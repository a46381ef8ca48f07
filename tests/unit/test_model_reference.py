from tests import reference


def test_the_page_of_resources_is_what_the_models_say() -> None:
    assert reference.FILE.read_text() == reference.page(), "run: python -m tests.reference"
