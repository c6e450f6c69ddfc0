"""What tests of experiments share."""

import pytest

from tests.fixtures.comparisons import finished_report


@pytest.fixture(scope="session")
def report_dir(tmp_path_factory):
    """The folder of a finished comparison; leave it as it is."""
    return finished_report(tmp_path_factory.getbasetemp())
