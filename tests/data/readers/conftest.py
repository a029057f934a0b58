"""What tests of downstream tasks' data share."""

from tests.tasks.conftest import words  # noqa: F401 (a fixture)
